"""Softmax attention in a sliding window, and linear attention to all steps before the window.

At step t the key of step t - w leaves the window of w steps. So the linear part is a causal sum of
delayed keys, and a stream keeps the keys of one window and the sums.

Shapes: n chunks of C steps, z = b * n; f features.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from keras_cosattn.ops import arrays, chunks, dense, timesteps
from keras_cosattn.ops.block_size import sizes_behind_window
from keras_cosattn.ops.causal_scan import causal_scan
from keras_cosattn.ops.chunked import causal_sums

Tensor = Any
State = dict[str, Any]


def windowed_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int,
    features: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    positions: Tensor,
    mask: Tensor | None = None,
    segments: Tensor | None = None,
    state: State | None = None,
    means: bool = False,
    block_size: int | None = None,
) -> tuple[Tensor, State]:
    """Mix the values of the past: by softmax in the last w steps, by features before them.

    `out_t = sum_s a_ts v_s / sum_s a_ts`, with `a_ts = exp(q_t . k_s / sqrt(d) - c_t)` for
    `t - w < s <= t`, and `a_ts = phi(q_t) . phi(k_s)` for `s <= t - w`. `c_t` is the largest
    score in the window of t.

    It takes O(t (w (d + e) + f e)) time for each head, and one step O(w (d + e) + f e). The state
    has as many numbers.

    Args:
        q: tensor `(b, t, h, d)`; h is a multiple of hk. Valid steps come first.
        k: tensor `(b, t, hk, d)`, finite.
        v: tensor `(b, t, hk, e)`, finite.
        window: int, w.
        features: function of queries `(b, n, h, d)` and keys `(b, n, hk, d)`, which maps each step
            by itself. It returns tensors `(b, n, h, f)` and `(b, n, hk, f)`.
        positions: int32 tensor `(b or 1, t)`, the number of valid steps before each step, in its
            packed sequence and in the stream.
        mask: bool tensor `(b, t)`, the valid steps. None means that all are valid.
        segments: int32 tensor `(b, t)`, of `timesteps.segment_numbers`: a step attends to its own
            packed sequence only.
        state: state that an earlier call returned, with a `"position"`.
        means: bool. If True, the `"sums"` of the state are means over the steps that have left the
            window. Defaults to `False`.
        block_size: int, the number of steps that one iteration of the loop over the sequence takes.
            Defaults to the size of the device.

    Returns:
        The output `(b, t, h, e)` in float32, or in float64 for float64 inputs; and the new state,
        `{"key": (b, w, hk, d), "value": (b, w, hk, e), "sums": (b, hk, f, e + 1)}` and, if `state`
        has it, `"position" (b,)`, the number of steps so far.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn.ops.windowed_linear import windowed_linear_attention
    >>> q, v = np.ones((2, 9, 4, 3), "float32"), np.ones((2, 9, 4, 6), "float32")
    >>> output, state = windowed_linear_attention(
    ...     q, q, v, window=4, features=lambda q, k: (q, k), positions=np.arange(9)[None]
    ... )
    >>> tuple(output.shape), tuple(state["key"].shape), tuple(state["sums"].shape)
    ((2, 9, 4, 6), (2, 4, 4, 3), (2, 4, 3, 7))

    Reference:
        - [Zhang et al., 2024 (LoLCATs)](https://arxiv.org/abs/2410.10254), equation 7
    """
    arrays.group_size(q, k)
    steps = sizes_behind_window(window, block_size)
    counters, share = {}, None
    if state is None:
        past = _nothing(q, k, v, window, features)
        if steps.takes_all(ops.shape(q)[1]):
            del past["sums"]  # one block without a past has nothing to read
    else:
        past = {name: state[name] for name in ("key", "value", "sums")}
        before = state["position"]
        after = timesteps.advance(before, ops.shape(q)[1], mask)
        counters = {"position": after}
        if means:
            before, after = (ops.maximum(count - window, 0) for count in (before, after))
            keep, share = arrays.shares_of_mean(before, after - before)
            past["sums"] = past["sums"] * keep
    xs = arrays.without_none({"q": q, "k": k, "v": v, "positions": positions, "mask": mask})
    step = functools.partial(
        _step, window=window, features=features, share=share, chunk_size=steps.chunk_of_block
    )
    out, past = causal_scan(step, xs, past, segments, steps.block)
    return out, {**past, **counters}


def _nothing(q, k, v, window, features):
    """Return the state before the first step. One step tells the number of features."""
    b = ops.shape(k)[0]
    k_features = arrays.accumulate(features(q[:, :1], k[:, :1])[1])
    return {
        "key": ops.zeros((b, window, *k.shape[2:]), k.dtype),
        "value": ops.zeros((b, window, *v.shape[2:]), v.dtype),
        "sums": ops.zeros((b, *k_features.shape[2:], v.shape[3] + 1), k_features.dtype),
    }


def _step(state, block, runs, *, window, features, share, chunk_size):
    """Attention of the steps of a block to their past, a step of `causal_scan`.

    The largest softmax weight of a row is `exp(0)` over the sum of `exp(score - c_t)`. So the row,
    divided by that sum, is the softmax attention, and the largest weight times the linear part.
    """
    q, positions, mask = block["q"], block["positions"], block.get("mask")
    n = ops.shape(q)[1]
    keys, values = (
        ops.concatenate([state[name], ops.cast(x, state[name].dtype)], axis=1)
        for name, x in (("key", block["k"]), ("value", block["v"]))
    )
    mixed, largest = _attend_in_window(q, keys, values, positions, window, chunk_size)
    mixed = arrays.append_ones(mixed)
    q_features, k_features = map(arrays.accumulate, features(q, keys[:, :n]))
    leaves = timesteps.combine(positions >= window, mask)  # whether a step leaves the window
    leaves = ops.expand_dims(ops.cast(leaves, k_features.dtype), (2, 3))
    if share is not None:
        mixed, leaves = mixed * share, leaves * share
    linear, after = causal_sums(
        q_features,
        k_features * leaves,
        arrays.append_ones(arrays.accumulate(values[:, :n])),
        {"sums": state["sums"]} if "sums" in state else None,
        runs=runs,
        chunk_size=chunk_size,
    )
    return arrays.divide(mixed + largest * linear), {
        "key": timesteps.last_valid(keys, mask, window),
        "value": timesteps.last_valid(values, mask, window),
        "sums": after["sums"],
    }


def _attend_in_window(q, keys, values, positions, window, chunk_size):
    """Return the softmax attention of each query in its window, and its largest weight.

    Args:
        q: tensor `(b, t, h, d)`.
        keys: tensor `(b, w + t, hk, d)`: that of query i is key w + i.
        values: tensor `(b, w + t, hk, e)`.
        positions: int32 tensor `(b or 1, t)`, the number of earlier steps of the query's sequence.
        chunk_size: int, C, at least w. None means that all steps are one chunk.

    Returns:
        Tensors `(b, t, h, e)` and `(b, t, h, 1)`.
    """
    b, t = ops.shape(q)[:2]
    one_chunk = chunk_size is None or (isinstance(t, int) and t <= chunk_size)
    size, before = (t, window) if one_chunk else (chunk_size, chunk_size)
    if not one_chunk:
        q = chunks.split(q, size)
        positions = chunks.split(ops.broadcast_to(positions, (b, t)), size)
        keys, values = (_of_two_chunks(x, t, size, window) for x in (keys, values))
    reach = ops.expand_dims(ops.minimum(positions, window - 1), (1, 3))
    allowed = ops.greater_equal(reach, _distances(size, before, window))  # (b or z, 1, C, S)
    mixed, weights = dense.attend(q, keys, values, allowed)
    # With an initial value Keras also takes the maximum of a tensor without rows.
    largest = ops.max(weights, axis=-1, keepdims=True, initial=0.0)
    largest = arrays.heads_first(largest)
    if one_chunk:
        return mixed, largest
    return chunks.join(mixed, t, b), chunks.join(largest, t, b)


def _of_two_chunks(x, t, size, window):
    """Return `x (b, w + t, ...)` as the steps of each chunk and of that before, `(z, 2 C, ...)`."""
    x = arrays.pad_end(arrays.pad_start(x, size - window), -t % size)
    parts = [chunks.split(part, size) for part in (x[:, : ops.shape(x)[1] - size], x[:, size:])]
    return ops.concatenate(parts, axis=1)


def _distances(size, before, window):
    """Return how far each key is behind each query, `(C, before + C)`; w for later keys."""
    if isinstance(size, int):
        distance = before + np.arange(size)[:, None] - np.arange(before + size)
        return np.where(distance < 0, window, distance).astype("int32")
    row, column = (ops.arange(n, dtype="int32") for n in (size, before + size))
    distance = before + ops.expand_dims(row, 1) - column
    return ops.where(distance < 0, window, distance)
