"""A memory of constant size, to which each segment is written when it is finished.

The steps are cut into chunks of C, as long as a segment. At most one segment ends in each chunk,
also where segments begin elsewhere: in a stream, in packed sequences. So the steps of a chunk read
one of two memories: that which the chunk found, or that with the segment that ended in it.

Shapes: n chunks of C steps, z = b * n; f features; the values `(.., e)` end with a one, so that
the memory M has its normaliser z as a last column.
"""

import math

from keras import ops

from keras_cosattn.ops import arrays, timesteps
from keras_cosattn.ops.chunked import segmented_cumsum
from keras_cosattn.ops.pointwise_features import elu_plus_one
from keras_cosattn.ops.recurrence import states_before


def compressive_memory(
    q, k, v, *, size, mask=None, segments=None, state=None, delta_rule=False, means=False
):
    """What a memory of all segments of C steps that were finished before it gives to each step.

    `out_t = sigma(q_t) M / sigma(q_t) z`, sigma = elu + 1; zero before the first is finished. A
    segment is written by `M <- M + sigma(K)^T V`, or by the delta rule
    `M <- M + sigma(K)^T (V - sigma(K) M / sigma(K) z)`, and `z <- z + sum_s sigma(k_s)`.

    Args:
        q: `(b, t, h, d)`; h a multiple of the key heads. Real steps come first.
        k, v: `(b, s, hk, d)` and `(b, s, hk, e)`.
        size: C.
        mask: `(b, s)`, the real keys.
        segments: `(b, t)`, t = s, from `timesteps.segment_numbers`: packed sequences, each with a
            memory of its own.
        state: what an earlier call returned, `{"sums", "pending": (b, hk, d, e + 1)}`: the memory,
            and what the unfinished segment will write; beside the state of `window_attention` with
            this size and no look back.
        delta_rule: write what the memory does not give yet.
        means: the "sums" of the state are means over the segments so far.

    Returns `(b, t, h, e)` and the new "sums" and "pending", None without a state.
    O(t d e) time, packed another O((t / C)^1.5 d e), and O(t d e / C) memory per head.
    Munkhdalai et al., 2024, eq. 3-6.
    """
    group, t = arrays.group_size(q, k), ops.shape(q)[1]
    q = arrays.fold_groups(elu_plus_one(arrays.accumulate(q)), group)
    k = arrays.zero_masked(elu_plus_one(arrays.accumulate(k)), mask)
    v = arrays.append_ones(arrays.zero_masked(arrays.accumulate(v), mask))
    if state is None and segments is None:
        out, after = _of_aligned(q, k, v, size, group, t, delta_rule), None
    elif state is not None and k.shape[1] == 1:
        out, after = _of_one_step(q, k, v, size, mask, state, delta_rule, means)
    else:
        out, after = _of_any(q, k, v, size, group, mask, segments, state, delta_rule, means)
    return arrays.unfold_groups(arrays.divide(out), group), after


def _write(k, v, memory, delta_rule):
    """What `k (z, C, h, f)` and `v (z, C, h, e)` add to `memory (z, h, f, e)`."""
    if delta_rule:
        new = v[..., :-1] - arrays.divide(_read(k, memory))
        v = ops.concatenate([new, v[..., -1:]], axis=-1)
    return ops.einsum("zjhf,zjhe->zhfe", k, v)


def _read(q, memory):
    return ops.einsum("zihf,zhfe->zihe", q, memory)


def _of_aligned(q, k, v, size, group, t, delta_rule):
    """Each chunk is a segment."""
    k, v = (_chunks(arrays.fit_length(x, t), size) for x in (k, v))
    b = ops.shape(q)[0]
    sums = ops.zeros((b, k.shape[2], k.shape[3], v.shape[3]), k.dtype)
    flags = ops.ones((b, -(-t // size), 3), k.dtype)
    found, _ = _memories(k, v, flags, sums, None, delta_rule)
    return _steps(_read(_chunks(q, size * group), found), b, t * group)


def _of_one_step(q, k, v, size, mask, state, delta_rule, means):
    sums = state["sums"]
    pending = state["pending"] + _write(k, v, sums, delta_rule)
    ends = state["position"] % size == size - 1
    if mask is not None:
        ends = ops.logical_and(ends, mask[:, 0])
    ends = ops.reshape(ends, (-1, 1, 1, 1))
    out = _read(q, sums)
    if means:
        keep, share = arrays.shares_of_mean(state["position"] // size, 1)
        sums = ops.where(ends, sums * keep + pending * share, sums)
    else:
        sums = sums + ops.where(ends, pending, 0.0)
    return out, {"sums": sums, "pending": ops.where(ends, 0.0, pending)}


def _of_any(q, k, v, size, group, mask, segments, state, delta_rule, means):
    """Segments end anywhere; the steps before the first tell what its segment began with."""
    b, t = ops.shape(k)[:2]
    position = timesteps.positions(t, None, segments, None if state is None else state["position"])
    ends = ops.broadcast_to(position % size == size - 1, (b, t))
    end, flags, came, in_front, behind = _where_segments_end(ends, mask, segments, size)
    flags = ops.cast(flags, k.dtype)
    real = t if mask is None else ops.sum(ops.cast(mask, "int32"), axis=1)
    length = 0
    if state is None:
        sums = ops.zeros((b, k.shape[2], k.shape[3], v.shape[3]), k.dtype)
    else:
        sums, length = state["sums"], state["key"].shape[1]
        past_v = arrays.append_ones(ops.cast(state["value"], v.dtype))
        k = ops.concatenate([elu_plus_one(ops.cast(state["key"], k.dtype)), k], axis=1)
        v = ops.concatenate([past_v, v], axis=1)

    index = ops.arange(size, dtype="int32")
    steps = ops.expand_dims(end, 2) + index + (length + 1 - size)
    steps = ops.reshape(ops.maximum(steps, 0), (b, ops.shape(end)[1] * size))
    written_k, written_v = (timesteps.take_steps(x, steps) for x in (k, v))
    if means:
        finished = state["position"] // size
        new = (state["position"] + real) // size - finished
        keep, share = arrays.shares_of_mean(finished, new)
        sums, written_k = sums * keep, written_k * share
    written_k, written_v = _chunks(written_k, size), _chunks(written_v, size)
    found, after = _memories(written_k, written_v, flags, sums, came, delta_rule)
    own = found * _flag(flags, 1)
    with_it = own + _write(written_k, written_v, own, delta_rule)
    q = _chunks(q, size * group)
    out = _read(_choose(in_front, q, group), found) + _read(_choose(behind, q, group), with_it)
    out = _steps(out, b, t * group)
    if state is None:
        return out, None

    unfinished = ops.expand_dims((state["position"] + real) % size, 1)
    unfinished = ops.arange(-length, 0, dtype="int32") >= -unfinished
    k, v = (timesteps.last_valid(x, mask, length) for x in (k, v))
    return out, {
        "sums": after,
        "pending": _write(arrays.zero_masked(k, unfinished), v, after, delta_rule),
    }


def _where_segments_end(ends, mask, segments, size):
    """What the chunks hold, given the steps `(b, t)` at which segments end.

    Returns:
        The last step of the segment that ends in each chunk, `(b, n)`, any step if none does.
        Flags 0 or 1, `(b, n, 3)`: the chunk's last step is of the packed sequence that the chunk
        found; so is the segment that ends; that segment and the last step are of one sequence.
        The number of the sequence that each chunk found, `(b, n)`, None if not packed.
        The steps, `(b, n, C)`, that read what the chunk found, and those behind the segment.
    """
    t = ops.shape(ends)[1]
    runs = ops.zeros_like(ends, "int32") if segments is None else segments
    runs = ops.reshape(arrays.hold_end(runs, -t % size), (-1, -(-t // size), size))
    ends = ops.reshape(arrays.pad_end(timesteps.combine(ends, mask), -t % size), ops.shape(runs))
    last = runs[:, :, -1]
    came = ops.concatenate([ops.zeros_like(last[:, :1]), last[:, :-1]], axis=1)

    index = ops.reshape(ops.arange(-(-t // size) * size, dtype="int32"), (1, -1, size))
    end = ops.sum(ops.where(ends, index, 0), axis=2)
    end_run = ops.sum(ops.where(ends, runs + 1, 0), axis=2) - 1  # -1 where none ends
    flags = ops.stack([last == came, end_run == came, end_run == last], axis=2)
    behind = ops.logical_and(index > ops.expand_dims(end, 2), runs == ops.expand_dims(end_run, 2))
    in_front = ops.logical_and(runs == ops.expand_dims(came, 2), ops.logical_not(behind))
    return end, flags, None if segments is None else came, in_front, behind


def _memories(k, v, flags, sums, came, delta_rule):
    """The memory that each chunk finds, `(z, h, f, e)`, and what the last leaves, `(b, h, f, e)`.

    Args:
        k, v: the segments that end, `(z, C, h, f)` and `(z, C, h, e)`.
        flags, came: of `_where_segments_end`.
        sums: what the first chunk finds.
    """
    b, n = ops.shape(flags)[:2]

    def flat(x):
        return ops.reshape(x, (b, n, math.prod(x.shape[1:])))

    def step(inputs, found):
        of_k, of_v = math.prod(k.shape[1:]), math.prod(v.shape[1:])
        new_k = ops.reshape(inputs[:, :of_k], (-1, *k.shape[1:]))
        new_v = ops.reshape(inputs[:, of_k : of_k + of_v], (-1, *v.shape[1:]))
        goes_on, own, kept = (_flag(inputs, i - 3) for i in range(3))
        found = ops.reshape(found, (-1, *sums.shape[1:]))
        new = _write(new_k, new_v, found * own, delta_rule) * kept
        return ops.reshape(found * goes_on + new, (b, math.prod(sums.shape[1:])))

    start = ops.reshape(sums, (b, math.prod(sums.shape[1:])))
    inputs = ops.concatenate([flat(k), flat(v), flags], axis=2)
    if delta_rule:
        found = states_before(step, inputs, start)
    else:
        new = flat(_write(k, v, None, False)) * flags[:, :, 2:]
        found = ops.concatenate([ops.expand_dims(start, 1), new[:, :-1]], axis=1)
        found = ops.cumsum(found, axis=1) if came is None else segmented_cumsum(found, came)
    after = step(inputs[:, -1], found[:, -1])
    return tuple(ops.reshape(x, (-1, *sums.shape[1:])) for x in (found, after))


def _flag(flags, i):
    """Flag i of `(..., 3)`, for tensors of rank 4."""
    return ops.reshape(flags[..., i], (-1, 1, 1, 1))


def _choose(chosen, q, group):
    """`q (z, C g, h, f)` where `chosen (b, n, C)`, exact zeros elsewhere."""
    chosen = ops.reshape(chosen, (-1, chosen.shape[2]))
    return arrays.zero_masked(q, arrays.each_row(chosen, group))


def _chunks(x, size):
    """`(b, t, ...) -> (z, size, ...)`, with zeros after the end."""
    x = arrays.pad_end(x, -ops.shape(x)[1] % size)
    return ops.reshape(x, (-1, size, *x.shape[2:]))


def _steps(x, b, length):
    """The inverse of `_chunks`."""
    padded = -(-length // x.shape[1]) * x.shape[1]
    return ops.reshape(x, (b, padded, *x.shape[2:]))[:, :length]
