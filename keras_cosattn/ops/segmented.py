"""Attention inside segments, and to one summary of each other segment of the sequence.

Shapes: m summaries of C steps each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from keras import ops

from keras_cosattn.ops import arrays, cache, dense, timesteps
from keras_cosattn.ops.pool import pool
from keras_cosattn.ops.windows import window_attention

Tensor = Any


def summary(
    k: Tensor, v: Tensor, valid: Tensor, query: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return one key and one value `(z, hk, d or e)` of C steps, with the weights of `pool`.

    Args:
        k: `(z, C, hk, d)`.
        v: `(z, C, hk, e)`.
        valid: Boolean `(z, C)`, the valid steps.
        query: `(hk, d)`, the learned query of the weights. `None` gives plain means.
    """
    key, weights = pool(k, valid, query)
    return key, dense.mix(weights, arrays.accumulate(v))[:, 0]


def segmented_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    size: int,
    summarise: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    state: Mapping[str, Tensor] | None = None,
    mask: Tensor | None = None,
    segments: Tensor | None = None,
    causal: bool = False,
    **options: Any,
) -> tuple[Any, dict[str, Tensor] | None]:
    """`window_attention` in which a query also attends to summaries of all other segments.

    A summary is one key and one value; the score of a summary of c steps gets `+ log c`. If
    `causal`, a query attends to the summaries of finished segments of the past.

    Args:
        q, k, v, mask, segments, size, causal, **options: As `window_attention`.
        summarise: Function of keys and values `(z, C, hk, d or e)` and of the valid steps
            `(z, C)` to one key and one value `(z, hk, d or e)`, float32.
        state: The state of an earlier call, or zeros: that of `window_attention`, and
            `{"summary_key", "summary_value": (b, m, hk, d or e)}`, the first m finished segments.

    Returns:
        `(b, t, h, e)` and the new state (`None` without one).

    Example:
    >>> import numpy as np
    >>> from keras_cosattn.ops.segmented import segmented_attention, summary
    >>> q = np.ones((1, 10, 2, 4), "float32")
    >>> out, state = segmented_attention(q, q, q, size=4, summarise=summary)
    >>> tuple(out.shape)
    (1, 10, 2, 4)
    """
    k, v = arrays.zero_masked(k, mask), arrays.zero_masked(v, mask)
    if state is not None:
        summaries = _summaries_in_stream(k, v, mask, state, size, summarise)
        kept = {f"summary_{name}": summaries[name] for name in ("key", "value")}
    elif segments is not None:
        summaries = _summaries_of_packed(k, v, mask, segments, size, summarise)
    else:
        summaries = _summaries(k, v, mask, size, summarise)
    mixed, state = window_attention(
        q, k, v, size=size, mask=mask, segments=segments, causal=causal, state=state,
        summaries=summaries, **options,
    )  # fmt: skip
    return mixed, None if state is None else {**state, **kept}


def _summaries(k, v, mask, size, summarise):
    """The summaries of a whole sequence: segment j has the steps from j C on."""
    b, s = ops.shape(k)[:2]
    m = -(-s // size)
    valid = ops.ones((b, s), "bool") if mask is None else mask
    index = ops.expand_dims(ops.arange(m, dtype="int32") * size, 0) + ops.zeros((b, 1), "int32")
    parts = [arrays.fit_length(x, m * size) for x in (k, v, valid)]
    return _describe(*parts, index, index, size, summarise)


def _summaries_of_packed(k, v, mask, segments, size, summarise):
    """The summaries of the packed sequences that are longer than one segment.

    A sequence of L > C steps has less than 2 L / C segments, so there are at most 2 t / C.
    """
    b, t = ops.shape(k)[:2]
    valid = ops.ones((b, t), "bool") if mask is None else mask
    position = timesteps.positions(t, None, segments)
    step = ops.expand_dims(ops.arange(t, dtype="int32"), 0) + ops.zeros((b, 1), "int32")
    full = t + size
    segments = ops.where(valid, segments, -1)
    later = arrays.fit_length(segments + 1, full)[:, size:]  # 0 for a missing step
    longer = ops.logical_or(position >= size, ops.equal(later, segments + 1))
    begins = ops.logical_and(ops.logical_and(valid, position % size == 0), longer)
    m = -(-2 * t // size)
    first = ops.sort(ops.where(begins, step, t), axis=1)
    first = arrays.fit_length(first - t, m) + t  # t, past the end, for a missing summary
    steps = ops.reshape(ops.expand_dims(first, 2) + ops.arange(size, dtype="int32"), (b, m * size))
    k, v, valid, segments, position = (
        timesteps.take_steps(arrays.fit_length(x, full), steps)
        for x in (k, v, valid, segments, position)
    )
    of_first = ops.repeat(segments[:, ::size], size, axis=1)
    valid = ops.logical_and(valid, ops.equal(segments, of_first))
    summaries = _describe(k, v, valid, first, position[:, ::size], size, summarise)
    return {**summaries, "segment": segments[:, ::size]}


def _summaries_in_stream(k, v, mask, state, size, summarise):
    """The summaries of the finished segments in the state, and of those that end in this call."""
    b, t = ops.shape(k)[:2]
    length, m = state["key"].shape[1], state["summary_key"].shape[1]
    position = state["position"]
    count = timesteps.advance(position, t, mask)
    finished_before = ops.expand_dims(position // size, 1)
    new = (t + size - 1) // size  # the most segments that can end in this call
    ranks = finished_before + ops.arange(new, dtype="int32")
    finished = (ranks + 1) * size <= ops.expand_dims(count, 1)
    # The first step of the first of them, in the steps of the state followed by these steps.
    first = length + finished_before * size - ops.expand_dims(position, 1)
    steps = ops.minimum(first + ops.arange(new * size, dtype="int32"), length + t - 1)
    parts = [
        timesteps.take_steps(ops.concatenate([ops.cast(state[name], x.dtype), x], axis=1), steps)
        for name, x in (("key", k), ("value", v))
    ]
    parts = [ops.reshape(x, (-1, size, *x.shape[2:])) for x in parts]
    new_summaries = summarise(*parts, ops.ones((b * new, size), "bool"))
    new_summaries = [ops.reshape(x, (b, new, *x.shape[1:])) for x in new_summaries]
    key, value = (
        cache.append(state[f"summary_{name}"], x, ranks, finished)
        for name, x in zip(("key", "value"), new_summaries, strict=True)
    )
    rank = ops.expand_dims(ops.arange(m, dtype="int32"), 0)
    return {
        "key": key,
        "value": value,
        "index": rank * size - ops.expand_dims(position, 1),
        "position": rank * size + (size - 1) // 2 + ops.zeros((b, 1), "int32"),
        "valid": (rank + 1) * size <= ops.expand_dims(count, 1),
        "bias": ops.full((b, m), math.log(size), "float32"),
    }


def _describe(k, v, valid, index, position, size, summarise):
    """Summaries of steps `(b, m C, ...)`. Their first steps have `index`, `position` `(b, m)`."""
    b, m = ops.shape(index)

    def split(x):
        return ops.reshape(x, (-1, size, *x.shape[2:]))

    valid = split(valid)
    count = ops.reshape(ops.sum(ops.cast(valid, "int32"), axis=1), (-1, m))
    key, value = (
        ops.reshape(x, (b, m, *x.shape[1:])) for x in summarise(split(k), split(v), valid)
    )
    return {
        "key": key,
        "value": value,
        "index": index,
        "position": position + ops.maximum(count - 1, 0) // 2,
        "valid": count > 0,
        "bias": ops.log(ops.cast(ops.maximum(count, 1), "float32")),
    }
