"""Attention inside buckets of steps: content decides which steps meet.

The steps of a bucket, in their order, are cut into chunks of C. Step t with r_t earlier steps in
its bucket is in chunk `floor(r_t / C)`, and sees the steps of its bucket in its own chunk and in
the one before. Ranks count the past only, so a later step never moves an earlier one to another
chunk, and a stream has the chunks of the whole sequence.

Every head and round of buckets is sorted by (bucket, position), once; then what a step may see is
close by, and `attend_in_blocks` does the rest.

Shapes: r rounds, z = b * h * r sorted sequences.
"""

from keras import ops

from keras_cosattn.ops import arrays, timesteps
from keras_cosattn.ops.windows import attend_in_blocks

LAST_SCORE = -1e5
"""The score of a step's own key if it counts only where there is no other key. Its exponential is
zero in float32."""


def bucket_attention(
    q,
    k,
    v,
    buckets,
    count,
    *,
    size,
    causal=False,
    mask=None,
    segments=None,
    own_key_last=False,
):
    """Softmax attention to the keys that share a bucket and are in the own chunk or the one before.

    With several rounds of buckets, one softmax over all keys that are seen in any of them.

    Args:
        q, k: `(b, t, h, d)`, of the same steps.
        v: `(b, t, hk, e)`; all three finite.
        buckets: int32 `(b, t, h, r)`, from 0 to count - 1.
        count: number of buckets.
        size: C.
        causal: let query t see keys s <= t.
        mask: `(b, t)`, the real steps.
        segments: `(b, t)`, from `timesteps.segment_numbers`: a bucket ends with its segment.
        own_key_last: a step sees itself only if it sees nothing else.

    Returns `(b, t, h, e)`; a masked step gives zero.
    O(r t (log t + C (d + e))) time and O(r t (C + d + e)) memory per head. Merging r rounds adds
    O(r^2 t C).
    """
    b, t = ops.shape(q)[:2]
    h, r = buckets.shape[2:]
    if isinstance(t, int):
        size = min(size, t)
    order, codes = _sort(buckets, count, size, mask, segments)
    back = ops.argsort(order, axis=1)
    turn = ops.expand_dims(ops.arange(b * h * r, dtype="int32") % r, 1)
    steps = {"position": order, "round": ops.broadcast_to(turn, (b * h * r, t))}
    for i, code in enumerate(_codes_of_rounds(codes, order, back, r)):
        steps[f"code_{i}"] = code
    before = 2 * size  # a chunk begins anywhere in a block
    k_steps = {name: arrays.pad_start(x, before) for name, x in steps.items()}

    def sees(q, k):
        rounds = ops.arange(r + 1, dtype="int32")  # a Python integer has the default type
        first = rounds[r]
        for i in reversed(range(r)):
            first = ops.where(_near(q[f"code_{i}"], k[f"code_{i}"]), rounds[i], first)
        seen = first == q["round"]  # each pair in one round, the first that shows it
        return ops.logical_and(seen, k["position"] <= q["position"]) if causal else seen

    def own_last(q, k, q_positions, k_positions):
        own = ops.expand_dims(q_positions, 2) == ops.expand_dims(k_positions, 1)
        return q, k, ops.expand_dims(ops.where(own, LAST_SCORE, 0.0), 1)

    mixed, totals = attend_in_blocks(
        take_rows(q, order, r),
        arrays.pad_start(take_rows(k, order, r), before),
        arrays.pad_start(take_rows(v, order, h // v.shape[2] * r), before),
        steps,
        k_steps,
        sees,
        size=size,
        before=2,
        after=0 if causal else 1,
        encode_positions=own_last if own_key_last else None,
        log_totals=True,
    )
    mixed = take_rows(ops.concatenate([mixed, ops.expand_dims(totals, 3)], axis=3), back, 1)
    mixed = _merge(ops.reshape(mixed, (-1, r, t, v.shape[3] + 1)))
    mixed = ops.transpose(ops.reshape(mixed, (-1, h, t, v.shape[3])), (0, 2, 1, 3))
    return arrays.zero_masked(mixed, mask)


def largest(x):
    """The index of the largest of the last axis, int32."""
    # `ops.argmax` looks at the bits of floats, for which TFLite has no operation.
    return ops.cast(ops.top_k(x, 1)[1][..., 0], "int32")


def earlier_in_bucket(past, new):
    """How many earlier steps have the bucket of each new one, float32 `(b, t, h, r)`.

    `past (b, n, h, r)` and `new (b, t, h, r)` are numbers of buckets from 1; 0 is no step.
    O((n + t) t h r).
    """
    b, t, h, r = ops.shape(new)
    n = ops.shape(past)[1]
    known = ops.reshape(ops.concatenate([past, new], axis=1), (b, 1, n + t, h * r))
    same = ops.equal(ops.reshape(new, (b, t, 1, h * r)), known)
    index = ops.arange(n + t, dtype="int32")
    earlier = ops.expand_dims(index, 0) < ops.expand_dims(index[n:], 1)  # (t, n + t)
    same = ops.logical_and(same, ops.expand_dims(earlier, -1))
    return ops.reshape(ops.sum(ops.cast(same, "float32"), axis=2), (b, t, h, r))


def can_attend_in_cache(q_bucket, q_chunk, k_bucket, k_chunk):
    """Which slots each query sees, in any round, `(b, h, t, n)`.

    Queries' bucket and chunk are `(b, t, h, r)`, those of the slots `(b, n, h, r)`.
    """
    seen = None
    for i in range(q_bucket.shape[3]):
        q = [ops.expand_dims(_heads_first(x, i), 3) for x in (q_bucket, q_chunk)]
        k = [ops.expand_dims(_heads_first(x, i), 2) for x in (k_bucket, k_chunk)]
        near = ops.logical_or(q[1] == k[1], q[1] == k[1] + 1)
        near = ops.logical_and(near, q[0] == k[0])
        seen = near if seen is None else ops.logical_or(seen, near)
    return seen


def take_rows(x, order, copies):
    """The steps `order (b * hx * copies, t)` of the heads of `x (b, s, hx, d)`.

    Each head has so many rows of `order`. Returns `(b * hx * copies, t, 1, d)`.
    """
    b, s, heads, d = ops.shape(x)
    row = ops.arange(b * heads * copies, dtype="int32") // copies
    start, head = row // heads * s, row % heads
    index = (ops.expand_dims(start, 1) + order) * heads + ops.expand_dims(head, 1)
    return ops.expand_dims(ops.take(ops.reshape(x, (b * s * heads, d)), index, axis=0), 2)


def rows_of_heads(x, copies):
    """`x (b, t)` once for each of a step's rows, `(b * copies, t)`."""
    return ops.repeat(x, copies, axis=0)


def _sort(buckets, count, size, mask, segments):
    """The order that sorts steps by bucket, padding last, and their codes in it, `(z, t)` both.

    A step sees another of code c if its own is c or c + 1. Padding has code 0, else codes are
    from 2 to 2 t + 1: they rise by 1 with each chunk, and once more with each bucket or segment.
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


def _codes_of_rounds(codes, order, back, r):
    """The codes of steps in each of the r rounds, as sorted in every round: r times `(z, t)`."""
    if r == 1:
        return [codes]
    t = ops.shape(codes)[1]
    by_step = ops.reshape(ops.take_along_axis(codes, back, axis=1), (-1, r, t))
    return [
        ops.take_along_axis(ops.repeat(by_step[:, i], r, axis=0), order, axis=1) for i in range(r)
    ]


def _merge(parts):
    """One softmax's result `(b, t, e)` from those over its parts, each with its log total last."""
    if parts.shape[1] == 1:
        return parts[:, 0, :, :-1]
    share = ops.softmax(parts[..., -1:], axis=1)
    return ops.sum(share * parts[..., :-1], axis=1)


def _near(q_code, k_code):
    near = ops.logical_or(q_code == k_code, q_code == k_code + 1)
    return ops.logical_and(near, k_code > 0)


def _heads_first(x, i):
    """Round i of `x (b, t, h, r)` as `(b, h, t)`."""
    return ops.transpose(x[:, :, :, i], (0, 2, 1))
