"""The weights of cosFormer for all pairs of steps."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_cosattn.ops import arrays, dense, timesteps
from keras_cosattn.ops.cosine_features import cosine_angles, per_example
from keras_cosattn.ops.cosine_steps import clip_positions, longest

Tensor = Any


def cosine_weights(
    q: Tensor,
    k: Tensor,
    *,
    max_length: int | None = None,
    horizon: int | None = None,
    causal: bool = False,
    query_mask: Tensor | None = None,
    mask: Tensor | None = None,
    segment_ids: Tensor | None = None,
) -> Tensor:
    """Return the normalised weights `(b, h, t, s)` of cosFormer attention.

    This takes O(t s d) time and O(t s) memory for each head. The arguments are those of
    `causal_cosine_attention`, and `causal`.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn.ops import cosine_weights
    >>> q, k = np.ones((2, 5, 4, 3), "float32"), np.ones((2, 7, 2, 3), "float32")
    >>> tuple(cosine_weights(q, k, max_length=8).shape)
    (2, 4, 5, 7)
    """
    t, s = ops.shape(q)[1], ops.shape(k)[1]
    segments = timesteps.segment_numbers(segment_ids)
    allowed = timesteps.pair_mask(
        t, s, query_mask=query_mask, key_mask=mask, segments=segments, causal=causal
    )
    span = max_length or horizon or longest(t, s, query_mask, mask)
    span = per_example(span)
    q_position = clip_positions(max_length, timesteps.positions(t, query_mask, segments))
    k_position = clip_positions(max_length, timesteps.positions(s, mask, segments))
    q_position = ops.expand_dims(q_position, (1, 3))
    k_position = ops.expand_dims(k_position, (1, 2))
    if horizon is not None:
        halves = [ops.floor_divide(p, horizon // 2) for p in (q_position, k_position)]
        allowed = timesteps.combine(allowed, halves[0] - halves[1] <= 1)
    weights = dense.scores(ops.relu(q), ops.relu(arrays.zero_masked(k, mask)))
    weights = weights * ops.cos(cosine_angles(q_position - k_position, span, weights.dtype))
    return dense.normalise(weights, allowed)
