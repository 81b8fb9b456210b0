"""cosFormer: relu features, and a cosine that falls with the distance of two steps.

`cos(a - b) = cos a cos b + sin a sin b` splits the weight of a pair into features of its two
positions, so the sums stay linear in time. Inside a chunk the scores use d features and a table of
cosines. Only the sums over chunks use the 2 d features `[x cos, x sin]`.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from keras import ops

from keras_cosattn.ops import arrays, dense, timesteps
from keras_cosattn.ops.block_size import pairs_are_cheaper, sizes
from keras_cosattn.ops.causal_scan import both_ways, causal_scan
from keras_cosattn.ops.chunked import causal_sums
from keras_cosattn.ops.cosine_features import (
    cos_and_sin_by_series,
    cosine_angles,
    cosine_features,
    cosine_of_difference,
    half_a_horizon_later,
    per_example,
    waves,
)
from keras_cosattn.ops.cosine_steps import (
    check_length,
    clip_positions,
    half_runs,
    in_half,
    longest,
    steps_of_half,
)
from keras_cosattn.ops.cosine_weights import cosine_weights
from keras_cosattn.ops.full_sums import read_sums, sum_steps

Tensor = Any
State = dict[str, Any]


def cosine_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    max_length: int | None = None,
    query_mask: Tensor | None = None,
    mask: Tensor | None = None,
    segment_ids: Tensor | None = None,
    lengths: tuple[Any, Any] | None = None,
    chunk_size: int | None = None,
    block_size: int | None = None,
) -> Tensor:
    """CosFormer attention in both directions: `out_t = sum_s w_ts v_s / sum_s w_ts`.

    `w_ts = relu(q_t) . relu(k_s) cos(pi/2 (t - s) / M)`. A row with weights that sum to zero is
    zero. M is `max_length`. Without it, M is the larger of each example's numbers of valid queries
    and keys, as in the paper's code.

    At distances beyond M the cosine is negative. So more than `max_length` steps raise ValueError
    if their number is known (a static shape, no mask). Otherwise all steps from `max_length` on
    share the position `max_length - 1`.

    It takes O((t + s) d e) time for each head. Where this is cheaper, as with a few queries, the
    weights of all pairs are computed, in O(t s (d + e)) time.

    Args:
        q: tensor `(b, t, h, d)`; h is a multiple of hk.
        k: tensor `(b, s, hk, d)`.
        v: tensor `(b, s, hk, e)`.
        max_length: int, M, in steps.
        query_mask: bool tensor `(b, t)`, the valid queries. Positions count valid steps only.
        mask: bool tensor `(b, s)`, the valid keys.
        segment_ids: integer tensor `(b, t)`, t = s. A step attends to its own run of equal ids,
            whose positions start from 0. `query_mask` and `mask` are then the same.
        lengths: pair (t, s), if these numbers were already read earlier in the graph.
        chunk_size: int, the number of steps that one matrix product covers, used with segments
            only. Defaults to 128 on CPUs and to 64 elsewhere.
        block_size: int, the number of steps that one iteration of the loop over the sequence takes.
            Defaults to one chunk on CPUs and to 8,192 steps elsewhere.

    Returns:
        Tensor `(b, t, h, e)`.

    Raises:
        ValueError: If there are known to be more than `max_length` steps, or for `segment_ids`
            without `max_length`.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn.ops import cosine_attention
    >>> q, k = np.ones((2, 5, 4, 3), "float32"), np.ones((2, 7, 2, 3), "float32")
    >>> tuple(cosine_attention(q, k, k, max_length=8).shape)
    (2, 5, 4, 3)

    Reference:
        - [Qin et al., 2022](https://arxiv.org/abs/2202.08791), section "cos-based re-weighting"
    """
    arrays.group_size(q, k)
    t, s = lengths or (ops.shape(q)[1], ops.shape(k)[1])
    segments = timesteps.segment_numbers(segment_ids)
    check_length(max_length, segments, (t, query_mask), (s, mask))
    if segments is not None and max_length is None:
        raise ValueError("Packed sequences (`segment_ids`) need `max_length`: M may not depend on "
                         "the other segments. Received: max_length=None")  # fmt: skip
    d = q.shape[3]
    if segments is None and pairs_are_cheaper(t, s, d, v.shape[3], 2 * d):
        weights = cosine_weights(q, k, max_length=max_length, query_mask=query_mask, mask=mask)
        return dense.mix(weights, arrays.zero_masked(arrays.accumulate(v), mask))
    span = longest(t, s, query_mask, mask) if max_length is None else max_length
    q_offset = clip_positions(max_length, timesteps.positions(t, query_mask, segments))
    k_offset = clip_positions(max_length, timesteps.positions(s, mask, segments))
    steps = sizes(chunk_size, block_size)
    dtype = arrays.sum_dtype(q)
    if segments is not None:
        xs = {"q": q, "k": k, "v": v, "mask": mask, "offset": waves(q_offset, span, dtype)}
        xs = arrays.without_none(xs if query_mask is None else {**xs, "position": xs["offset"]})
        step = functools.partial(_causal_step, span=span, chunk_size=steps.chunk_of_block)
        return both_ways(step, xs, _zero_state(q, k, v), segments, steps.block)[0]

    def read(block):
        return {"sums": _features(block["q"], block["offset"])}

    q_offset = _waves_by_series(q_offset, span, dtype)
    sums = _sums_of_all(q, k, v, mask, k_offset, span, steps.block)
    return read_sums(read, {"q": q, "offset": q_offset}, sums, steps.block)


def causal_cosine_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    max_length: int | None = None,
    horizon: int | None = None,
    query_mask: Tensor | None = None,
    mask: Tensor | None = None,
    segment_ids: Tensor | None = None,
    state: State | None = None,
    lengths: tuple[Any, Any] | None = None,
    chunk_size: int | None = None,
    block_size: int | None = None,
) -> tuple[Tensor, State]:
    """CosFormer attention over the steps s <= t, continuing from a state.

    Query t and key t have the same position, that of query t. With `horizon` H the input has no
    end: t attends to its own and the previous half-horizon of H / 2 steps, and M = H. Each distance
    is then below M and no weight is negative, however long the input is.

    With `max_length`, steps from `max_length` on share a position, as in `cosine_attention`.
    Without either, M is that of the paper's code. A state then has no meaning, as M changes with
    every call.

    It takes O(t d e) time for each head. The state has O(d e) numbers.

    Args:
        q, k, v, query_mask, mask, segment_ids: as in `cosine_attention`.
        max_length: int, M, in steps.
        horizon: even int, M, in steps. At most one of `max_length` and `horizon` can be given.
        state: state that an earlier call returned. It belongs to the first segment.
        chunk_size, block_size: as in `cosine_attention`.

    Returns:
        The output `(b, t, h, e)` and the new state: `"sums" (b, hk, 2 d, e + 1)`, an int32
        `"position" (b,)`, and with a horizon also `"previous"`, of the shape of the sums; in
        float32, or in float64 for float64 inputs.

    Raises:
        ValueError: If there are known to be more than `max_length` steps, and no state.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn.ops import causal_cosine_attention
    >>> q = np.ones((2, 5, 4, 3), "float32")
    >>> output, state = causal_cosine_attention(q, q, q, horizon=4)
    >>> tuple(output.shape), tuple(state["sums"].shape)
    ((2, 5, 4, 3), (2, 4, 6, 4))

    Reference:
        - [Qin et al., 2022](https://arxiv.org/abs/2202.08791), section "cos-based re-weighting".
          The horizon is not in the paper.
    """
    arrays.group_size(q, k)
    t, s = lengths or (ops.shape(q)[1], ops.shape(k)[1])
    segments = timesteps.segment_numbers(segment_ids)
    if state is None:
        check_length(max_length, segments, (t, query_mask))
    span = max_length or horizon or longest(t, s, query_mask, mask)
    start = None if state is None else state["position"]
    count = timesteps.count_valid(t, query_mask, segments, start)
    position = clip_positions(max_length, ops.maximum(count - 1, 0))

    steps, runs, offset, aligned = sizes(chunk_size, block_size), segments, position, False
    if horizon is not None:
        half = ops.floor_divide(position, horizon // 2)
        runs = half_runs(half, segments, ops.shape(k)[0])
        offset = position - half * (horizon // 2)
        if state is None and query_mask is None and segments is None:
            steps, aligned = steps_of_half(steps, horizon // 2)
    d, is_plain = q.shape[3], state is None and horizon is None and segments is None
    is_plain = is_plain and query_mask is None and mask is None
    if is_plain and pairs_are_cheaper(t, s, d, v.shape[3], 2 * d) and t == s:
        weights = cosine_weights(q, k, max_length=max_length, causal=True)
        state = _sums_of_all(q, k, v, None, position, span, steps.block)
        position = ops.full((ops.shape(k)[0],), t, "int32")
        return dense.mix(weights, arrays.accumulate(v)), {**state, "position": position}
    k, v, mask = arrays.align_keys(k, v, mask, t, s)
    dtype = arrays.sum_dtype(q)
    xs = arrays.without_none({"q": q, "k": k, "v": v, "mask": mask})
    xs["offset"] = waves(offset, span, dtype)
    if query_mask is not None or not isinstance(span, int):  # else differences are those of steps
        xs["position"] = waves(position, span, dtype)
    sums = _zero_state(q, k, v, horizon)
    if state is not None:
        sums = {name: state[name] for name in sums}
    elif steps.takes_all(t):
        sums = {}  # one block without a past has nothing to read
    step = functools.partial(
        _causal_step, span=span, horizon=horizon, chunk_size=steps.chunk_of_block, aligned=aligned
    )
    out, state = causal_scan(step, xs, sums, runs, steps.block)
    if segments is None:
        start = ops.zeros((ops.shape(k)[0],), "int32") if start is None else start
        count_read = timesteps.wrap(timesteps.advance(start, t, query_mask), 1)
    else:
        count_read = count[:, -1]
    position = count_read if horizon is None else in_half(count_read, horizon // 2)
    return out, {**state, "position": position}


def _causal_step(
    state, block, runs, *, span, chunk_size, horizon=None, aligned=False, strict=False, divide=True
):
    """Attention among the steps of a block and to its past, a step of `causal_scan`."""
    mask = block.get("mask")
    q = ops.relu(arrays.accumulate(block["q"]))
    k = arrays.zero_masked(ops.relu(arrays.accumulate(block["k"])), mask)
    v = arrays.append_ones(arrays.zero_masked(arrays.accumulate(block["v"]), mask))

    def cosine_of_steps(rows, columns):
        if isinstance(columns, np.ndarray):
            return np.cos(math.pi / 2 * ((rows - columns) % (4 * span)) / span)
        return ops.cos(cosine_angles(rows - columns, span, q.dtype))

    options: dict[str, Any] = {"kernel": cosine_of_steps}
    if "position" in block:
        options["kernel"] = cosine_of_difference
        options["positions"] = [ops.stop_gradient(x) for x in block["position"]]
    out, state = causal_sums(
        q, k, v, state or None,
        expand=cosine_features,
        offsets=[ops.stop_gradient(x) for x in block["offset"]],
        move_on=None if horizon is None else half_a_horizon_later,
        runs=runs, aligned=aligned, strict=strict, chunk_size=chunk_size, **options,
    )  # fmt: skip
    return arrays.divide(out) if divide else out, state


def _features(x, offset):
    x = ops.relu(arrays.accumulate(x))
    return cosine_features(x, *map(ops.stop_gradient, offset))


def _waves_by_series(offset, span, dtype):
    """Return the waves `(b or 1, t, 1, 1)`. To expand them later would cut a TFLite graph."""
    offset = ops.expand_dims(offset, (2, 3))
    return waves(offset, per_example(span), dtype, cos_and_sin_by_series)


def _sums_of_all(q, k, v, mask, offset, span, block_size):
    """Return the sums over all keys."""

    def write(block):
        valid = block.get("mask")
        k = arrays.zero_masked(_features(block["k"], block["offset"]), valid)
        v = arrays.zero_masked(arrays.accumulate(block["v"]), valid)
        return {"sums": arrays.sums_and_totals(k, v)}

    offset = _waves_by_series(offset, span, arrays.sum_dtype(q))
    keys = arrays.without_none({"k": k, "v": v, "mask": mask, "offset": offset})
    return sum_steps(write, keys, _zero_state(q, k, v), block_size)


def _zero_state(q, k, v, horizon=None):
    """Return the sums before the first step."""
    h, d = k.shape[2:]
    zeros = ops.zeros((ops.shape(k)[0], h, 2 * d, v.shape[3] + 1), arrays.sum_dtype(q))
    return {"sums": zeros} if horizon is None else {"sums": zeros, "previous": zeros}
