"""Attention inside buckets of steps, which are chosen by content.

The steps of a bucket, in their order, are cut into chunks of C steps. A step with r earlier steps
in its bucket belongs to chunk `floor(r / C)`, and attends to the steps of its bucket in its own
chunk and in the one before. Ranks count earlier steps only, so a later step never moves an earlier
one to another chunk, and a stream has the chunks of the whole sequence.

Each head and round is sorted once by (bucket, position). All keys of a step are then close to it,
and `attend_in_blocks` computes the attention.

Shapes: r rounds, z = b * h * r sorted sequences.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_cosattn.ops import arrays, timesteps
from keras_cosattn.ops.block_attention import attend_in_blocks

Tensor = Any

LAST_SCORE = -1e5
"""The score of a step's own key if it counts only where there is no other key. Its exponential is
zero in float32."""


def bucket_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    buckets: Tensor,
    count: int,
    *,
    size: int,
    causal: bool = False,
    mask: Tensor | None = None,
    segments: Tensor | None = None,
    own_key_last: bool = False,
) -> Tensor:
    """Softmax attention to the keys of the same bucket, in the own chunk and the one before.

    With several rounds of buckets, there is one softmax over the keys of all rounds.

    It takes O(r t (log t + C (d + e))) time and O(r t (C + d + e)) memory for each head. Merging r
    rounds adds O(r^2 t C) time.

    Args:
        q, k: tensors `(b, t, h, d)` of the same steps.
        v: tensor `(b, t, hk, e)`. q, k and v must be finite, also at masked steps.
        buckets: int32 tensor `(b, t, h, r)`, from 0 to count - 1.
        count: int, the number of buckets.
        size: int, C.
        causal: bool. If True, query t attends to keys s <= t. Defaults to `False`.
        mask: bool tensor `(b, t)`, the valid steps.
        segments: int32 tensor `(b, t)`, of `timesteps.segment_numbers`. A bucket ends with its
            segment.
        own_key_last: bool. If True, a step attends to itself only if it attends to nothing else.
            Defaults to `False`.

    Returns:
        Tensor `(b, t, h, e)`. A masked step gives zero.
    """
    b, t = ops.shape(q)[:2]
    h, r = buckets.shape[2:]
    if isinstance(t, int):
        size = min(size, t)
    order, codes = _sort(buckets, count, size, mask, segments)
    inverse = ops.argsort(order, axis=1)
    round_ = ops.expand_dims(ops.arange(b * h * r, dtype="int32") % r, 1)
    steps = {"position": order, "round": ops.broadcast_to(round_, (b * h * r, t))}
    for i, code in enumerate(_codes_of_rounds(codes, order, inverse, r)):
        steps[f"code_{i}"] = code
    before = 2 * size  # a chunk begins anywhere in a block
    k_steps = {name: arrays.pad_start(x, before) for name, x in steps.items()}

    def can_attend(q, k):
        rounds = ops.arange(r + 1, dtype="int32")  # a Python integer has the default type
        first = rounds[r]
        for i in reversed(range(r)):
            first = ops.where(_near(q[f"code_{i}"], k[f"code_{i}"]), rounds[i], first)
        allowed = ops.equal(first, q["round"])  # a pair counts in the first round that allows it
        return ops.logical_and(allowed, k["position"] <= q["position"]) if causal else allowed

    def own_last(q, k, q_positions, k_positions):
        own = ops.equal(ops.expand_dims(q_positions, 2), ops.expand_dims(k_positions, 1))
        return q, k, ops.expand_dims(own_key_bias(own, arrays.sum_dtype(q)), 1)

    mixed, totals = attend_in_blocks(
        take_rows(q, order, r),
        arrays.pad_start(take_rows(k, order, r), before),
        arrays.pad_start(take_rows(v, order, h // v.shape[2] * r), before),
        steps,
        k_steps,
        can_attend,
        size=size,
        before=2,
        after=0 if causal else 1,
        encode_positions=own_last if own_key_last else None,
        log_totals=True,
    )
    mixed = take_rows(ops.concatenate([mixed, ops.expand_dims(totals, 3)], axis=3), inverse, 1)
    mixed = _merge(ops.reshape(mixed, (-1, r, t, v.shape[3] + 1)))
    mixed = ops.transpose(ops.reshape(mixed, (-1, h, t, v.shape[3])), (0, 2, 1, 3))
    return arrays.zero_masked(mixed, mask)


def own_key_bias(own: Tensor, dtype: str) -> Tensor:
    """Return `LAST_SCORE` where a step meets its own key, as the bool tensor `own` says, else 0."""
    return ops.where(own, LAST_SCORE, ops.zeros((), dtype))


def largest(x: Tensor) -> Tensor:
    """Return the index of the largest number along the last axis, int32."""
    # `ops.argmax` looks at the bits of floats, for which TFLite has no operation.
    return ops.cast(ops.top_k(x, 1)[1][..., 0], "int32")


def earlier_in_bucket(past: Tensor, new: Tensor) -> Tensor:
    """Count the earlier steps in the bucket of each new step, float32 `(b, t, h, r)`.

    `past (b, n, h, r)` and `new (b, t, h, r)` have the numbers of buckets from 1, and 0 where there
    is no step. This takes O((n + t) t h r) time.
    """
    b, t, h, r = ops.shape(new)
    n = ops.shape(past)[1]
    known = ops.reshape(ops.concatenate([past, new], axis=1), (b, 1, n + t, h * r))
    same = ops.equal(ops.reshape(new, (b, t, 1, h * r)), known)
    index = ops.arange(n + t, dtype="int32")
    earlier = ops.expand_dims(index, 0) < ops.expand_dims(index[n:], 1)  # (t, n + t)
    same = ops.logical_and(same, ops.expand_dims(earlier, -1))
    return ops.reshape(ops.sum(ops.cast(same, "float32"), axis=2), (b, t, h, r))


def can_attend_in_cache(
    q_bucket: Tensor, q_chunk: Tensor, k_bucket: Tensor, k_chunk: Tensor
) -> Tensor:
    """Return the slots of a cache to which each query attends in any round, `(b, h, t, n)`.

    Bucket and chunk of the queries are `(b, t, h, r)`, and those of the slots are `(b, n, h, r)`.
    """
    allowed = None
    for i in range(q_bucket.shape[3]):
        q = [ops.expand_dims(_heads_first(x, i), 3) for x in (q_bucket, q_chunk)]
        k = [ops.expand_dims(_heads_first(x, i), 2) for x in (k_bucket, k_chunk)]
        near = ops.logical_or(ops.equal(q[1], k[1]), ops.equal(q[1], k[1] + 1))
        near = ops.logical_and(near, ops.equal(q[0], k[0]))
        allowed = near if allowed is None else ops.logical_or(allowed, near)
    return allowed


def take_rows(x: Tensor, order: Tensor, copies: int) -> Tensor:
    """Sort the steps of each head of `x (b, s, hx, d)`.

    `order (b * hx * copies, t)` has `copies` orders for each head. Returns a tensor
    `(b * hx * copies, t, 1, d)`.
    """
    b, s, heads, d = ops.shape(x)
    row = ops.arange(b * heads * copies, dtype="int32") // copies
    start, head = row // heads * s, row % heads
    index = (ops.expand_dims(start, 1) + order) * heads + ops.expand_dims(head, 1)
    return ops.expand_dims(ops.take(ops.reshape(x, (b * s * heads, d)), index, axis=0), 2)


def rows_of_heads(x: Tensor, copies: int) -> Tensor:
    """Repeat `x (b, t)` for the `copies` sorted sequences of an example, `(b * copies, t)`."""
    return ops.repeat(x, copies, axis=0)


def _sort(buckets, count, size, mask, segments):
    """Return the order that sorts steps by bucket, and their codes in it, `(z, t)` both.

    Masked steps come last. A step attends to a step of code c if its own code is c or c + 1. Masked
    steps have code 0, and other codes are from 2 to 2 t + 1: they rise by 1 with each chunk, and
    again with each bucket or segment.
    """
    _, t, h, r = ops.shape(buckets)
    buckets = ops.reshape(ops.transpose(buckets, (0, 2, 3, 1)), (-1, t))
    if mask is not None:
        mask = rows_of_heads(mask, h * r)
        buckets = ops.where(mask, buckets, count)
    order = timesteps.stable_argsort(buckets)
    group = timesteps.segment_numbers(ops.take_along_axis(buckets, order, axis=1))
    if segments is not None:
        segments = ops.take_along_axis(rows_of_heads(segments, h * r), order, axis=1)
        group = timesteps.segment_numbers(group + timesteps.segment_numbers(segments))
    rank = timesteps.positions(t, None, group)
    starts = ops.cast(rank % size == 0, "int32")
    codes = ops.cumsum(starts, axis=1) + group + 1
    if mask is not None:
        codes = ops.where(ops.take_along_axis(mask, order, axis=1), codes, 0)
    return order, codes


def _codes_of_rounds(codes, order, inverse, r):
    """Return the codes of all steps in each of the r rounds, r times `(z, t)`, in sorted order."""
    if r == 1:
        return [codes]
    t = ops.shape(codes)[1]
    by_step = ops.reshape(ops.take_along_axis(codes, inverse, axis=1), (-1, r, t))
    return [
        ops.take_along_axis(ops.repeat(by_step[:, i], r, axis=0), order, axis=1) for i in range(r)
    ]


def _merge(parts):
    """Merge attention over parts of the keys into `(b, t, e)`.

    Each part `(b, r, t, e + 1)` has the logarithm of its normaliser in the last column.
    """
    if parts.shape[1] == 1:
        return parts[:, 0, :, :-1]
    share = ops.softmax(parts[..., -1:], axis=1)
    return ops.sum(share * parts[..., :-1], axis=1)


def _near(q_code, k_code):
    """Return whether a key is in the chunk of the query or in the one before."""
    near = ops.logical_or(ops.equal(q_code, k_code), ops.equal(q_code, k_code + 1))
    return ops.logical_and(near, k_code > 0)


def _heads_first(x, i):
    """Return round i of `x (b, t, h, r)` as `(b, h, t)`."""
    return ops.transpose(x[:, :, :, i], (0, 2, 1))
