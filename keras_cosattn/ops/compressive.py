"""A memory of constant size, to which each segment is written when it is finished.

The steps are cut into chunks of C, as long as a segment. At most one segment ends in each chunk,
also where segments begin elsewhere: in a stream, and in packed sequences. So the steps of a chunk
read one of two memories: the memory at the start of the chunk, or the memory that has the segment
that ended in it, too.

Shapes: n chunks of C steps, z = b * n; f features. The values `(.., e)` end with a one, so that
the last column of the memory M is its normaliser z.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from keras import ops

from keras_cosattn.ops import arrays, chunks, timesteps
from keras_cosattn.ops.block_size import sizes
from keras_cosattn.ops.chunk_sums import segmented_cumsum
from keras_cosattn.ops.pointwise_features import elu_plus_one
from keras_cosattn.ops.recurrence import states_before_and_after
from keras_cosattn.ops.scan import block_scan

Tensor = Any


def compressive_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    size: int,
    mask: Tensor | None = None,
    segments: Tensor | None = None,
    state: Mapping[str, Tensor] | None = None,
    delta_rule: bool = False,
    means: bool = False,
) -> tuple[Tensor, dict[str, Tensor] | None]:
    """Read, for each step, a memory of all segments of C steps that were finished before it.

    `out_t = sigma(q_t) M / sigma(q_t) z`, sigma = elu + 1; zero before the first is finished. A
    segment is written by `M <- M + sigma(K)^T V`, or by the delta rule
    `M <- M + sigma(K)^T (V - sigma(K) M / sigma(K) z)`, and `z <- z + sum_s sigma(k_s)`.

    O(t d e) time and O(t d e / C) memory per head. Where all segments are written at once, not in a
    loop, packed sequences take another O((t / C)^1.5 d e) time.

    Args:
        q: `(b, t, h, d)`; h is a multiple of the key heads. Valid steps come first.
        k: `(b, s, hk, d)`.
        v: `(b, s, hk, e)`.
        size: Integer, C.
        mask: Boolean `(b, s)`, the valid keys.
        segments: Integer `(b, t)`, t = s, from `timesteps.segment_numbers`: packed sequences, each
            with its own memory.
        state: The state of an earlier call, `{"sums", "pending": (b, hk, d, e + 1)}`: the memory,
            and what the unfinished segment will write; and the state of `window_attention` with
            this size and no `look_back`.
        delta_rule: Boolean, whether to write only what the memory does not give yet.
        means: Boolean, whether the `"sums"` of the state are means over the segments so far.

    Returns:
        `(b, t, h, e)`, and the new `"sums"` and `"pending"`, `None` without a state.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn.ops.compressive import compressive_memory
    >>> q = np.ones((1, 10, 2, 4), "float32")
    >>> out, state = compressive_memory(q, q, q, size=4)
    >>> tuple(out.shape)
    (1, 10, 2, 4)

    Reference:
        - [Munkhdalai et al., 2024](https://arxiv.org/abs/2404.07143), equations 3-6
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
        new = v[..., :-1] - arrays.divide(chunks.read(k, memory))
        v = ops.concatenate([new, v[..., -1:]], axis=-1)
    return chunks.outer_sum(k, v)


def _of_aligned(q, k, v, size, group, t, delta_rule):
    """Each block is a segment."""
    b, (h, f) = ops.shape(q)[0], k.shape[2:]
    k, v = arrays.fit_length(k, t), arrays.fit_length(v, t)
    memory = ops.zeros((b, h, f, v.shape[3]), k.dtype)
    if not (delta_rule or sizes().loops_over_chunks):
        k, v = chunks.split(k, size), chunks.split(v, size)
        flags = ops.ones((b, -(-t // size), 3), k.dtype)
        memories, _ = _memories(k, v, flags, memory, None, delta_rule)
        return chunks.join(chunks.read(chunks.split(q, size * group), memories), t * group, b)

    def body(memory, block):
        steps = ops.shape(block["k"])[1]
        out = chunks.read(ops.reshape(block["q"], (b, steps * group, h, f)), memory)
        out = ops.reshape(out, (b, steps, group * h, v.shape[3]))
        return memory + _write(block["k"], block["v"], memory, delta_rule), out

    xs = {"q": ops.reshape(q, (b, t, group * h, f)), "k": k, "v": v}
    _, out = block_scan(body, memory, xs, size)
    return ops.reshape(out, (b, t * group, h, v.shape[3]))


def _of_one_step(q, k, v, size, mask, state, delta_rule, means):
    sums = state["sums"]
    pending = state["pending"] + _write(k, v, sums, delta_rule)
    ends = state["position"] % size == size - 1
    if mask is not None:
        ends = ops.logical_and(ends, mask[:, 0])
    ends = ops.reshape(ends, (-1, 1, 1, 1))
    out = chunks.read(q, sums)
    if means:
        keep, share = arrays.shares_of_mean(state["position"] // size, 1)
        sums = ops.where(ends, sums * keep + pending * share, sums)
    else:
        sums = sums + ops.where(ends, pending, 0.0)
    return out, {"sums": sums, "pending": ops.where(ends, 0.0, pending)}


def _of_any(q, k, v, size, group, mask, segments, state, delta_rule, means):
    """Segments end anywhere. The state has the first steps of the segment of the first step."""
    b, t = ops.shape(k)[:2]
    position = timesteps.positions(t, None, segments, None if state is None else state["position"])
    ends = ops.broadcast_to(position % size == size - 1, (b, t))
    end, flags, found_run, reads_found, reads_finished = _where_segments_end(
        ends, mask, segments, size
    )
    flags = ops.cast(flags, k.dtype)
    count = t if mask is None else ops.sum(ops.cast(mask, "int32"), axis=1)
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
        before = state["position"] // size
        new = (state["position"] + count) // size - before
        keep, share = arrays.shares_of_mean(before, new)
        sums, written_k = sums * keep, written_k * share
    written_k, written_v = chunks.split(written_k, size), chunks.split(written_v, size)
    memories, after = _memories(written_k, written_v, flags, sums, found_run, delta_rule)
    own = memories * _flag(flags, 1)
    finished = own + _write(written_k, written_v, own, delta_rule)
    q = chunks.split(q, size * group)
    out = chunks.read(_choose(reads_found, q, group), memories)
    out = out + chunks.read(_choose(reads_finished, q, group), finished)
    out = chunks.join(out, t * group, b)
    if state is None:
        return out, None

    unfinished = ops.expand_dims((state["position"] + count) % size, 1)
    unfinished = ops.arange(-length, 0, dtype="int32") >= -unfinished
    k, v = (timesteps.last_valid(x, mask, length) for x in (k, v))
    pending = _write(arrays.zero_masked(k, unfinished), v, after, delta_rule)
    if not isinstance(count, int):  # without new steps, not even the rounding changes
        has_steps = ops.reshape(ops.cast(count, "int32") > 0, (-1, 1, 1, 1))
        pending = ops.where(has_steps, pending, state["pending"])
    return out, {"sums": after, "pending": pending}


def _where_segments_end(ends, mask, segments, size):
    """Describe the chunks, given the steps `(b, t)` at which segments end.

    Returns:
        The last step of the segment that ends in each chunk, `(b, n)`; any step if none does.
        Flags 0 or 1, `(b, n, 3)`. The found run is the packed sequence of the last step before the
        chunk. The flags say: the chunk's last step is of the found run; the segment that ends is
        of the found run; the segment that ends and the chunk's last step are of one sequence.
        The number of the found run of each chunk, `(b, n)`; `None` if not packed.
        The steps, `(b, n, C)`, that read the memory at the start of the chunk, and those that read
        the memory with the segment that ended in it.
    """
    t = ops.shape(ends)[1]
    runs = ops.zeros_like(ends, "int32") if segments is None else segments
    runs = chunks.split_ids(runs, size)
    ends = ops.reshape(arrays.pad_end(timesteps.combine(ends, mask), -t % size), ops.shape(runs))
    last = runs[:, :, -1]
    found_run = ops.concatenate([ops.zeros_like(last[:, :1]), last[:, :-1]], axis=1)

    index = ops.reshape(ops.arange(-(-t // size) * size, dtype="int32"), (1, -1, size))
    end = ops.sum(ops.where(ends, index, 0), axis=2)
    end_run = ops.sum(ops.where(ends, runs + 1, 0), axis=2) - 1  # -1 where none ends
    pairs = (last, found_run), (end_run, found_run), (end_run, last)
    flags = ops.stack([ops.equal(*pair) for pair in pairs], axis=2)
    after_end = index > ops.expand_dims(end, 2)
    reads_finished = ops.logical_and(after_end, ops.equal(runs, ops.expand_dims(end_run, 2)))
    reads_found = ops.equal(runs, ops.expand_dims(found_run, 2))
    reads_found = ops.logical_and(reads_found, ops.logical_not(reads_finished))
    return end, flags, None if segments is None else found_run, reads_found, reads_finished


def _memories(k, v, flags, sums, found_run, delta_rule):
    """The memory before each chunk, `(z, h, f, e)`, and after the last, `(b, h, f, e)`.

    Args:
        k, v: The segments that end, `(z, C, h, f)` and `(z, C, h, e)`.
        flags, found_run: Of `_where_segments_end`.
        sums: The memory before the first chunk.
    """
    b, n = ops.shape(flags)[:2]

    def of_examples(x):
        return ops.reshape(x, (b, n, *x.shape[1:]))

    def step(inputs, memory):
        is_kept, own, is_written = (_flag(inputs["flags"], i) for i in range(3))
        new = _write(inputs["k"], inputs["v"], memory * own, delta_rule) * is_written
        return memory * is_kept + new

    if delta_rule or sizes().loops_over_chunks:
        inputs = {"k": of_examples(k), "v": of_examples(v), "flags": flags}
        memories, after = states_before_and_after(step, inputs, sums)
        return ops.reshape(memories, (b * n, *sums.shape[1:])), after
    width = math.prod(sums.shape[1:])
    new = ops.reshape(_write(k, v, None, delta_rule=False), (b, n, width)) * flags[:, :, 2:]
    memories = ops.concatenate([ops.reshape(sums, (b, 1, width)), new], axis=1)
    if found_run is None:
        memories = ops.cumsum(memories, axis=1)
    else:
        memories = segmented_cumsum(memories, arrays.pad_with_last(found_run, 1))
    before = ops.reshape(memories[:, :-1], (b * n, *sums.shape[1:]))
    return before, ops.reshape(memories[:, -1], (b, *sums.shape[1:]))


def _flag(flags, i):
    """Flag i of `(..., 3)`, for tensors of rank 4."""
    return ops.reshape(flags[..., i], (-1, 1, 1, 1))


def _choose(chosen, q, group):
    """`q (z, C g, h, f)` where `chosen (b, n, C)`, exact zeros elsewhere."""
    chosen = ops.reshape(chosen, (-1, chosen.shape[2]))
    return arrays.zero_masked(q, arrays.repeat_rows(chosen, group))
