"""ALiBi: attention with linear biases."""

from __future__ import annotations

import math
from typing import Literal

import keras
import numpy as np
from keras import ops

from keras_cosattn.ops import arrays
from keras_cosattn.positions.base import Position, Tensor, distances


def slopes(heads: int) -> np.ndarray:
    """Return the slope of each head, `2^(-8 i / h)` for i = 1 .. h, as a NumPy array.

    If h is no power of two, these are the slopes of the largest power of two below h, followed by
    every other slope of twice that power.

    Example:
    >>> slopes(2).tolist()
    [0.0625, 0.00390625]
    """
    power = 2 ** math.floor(math.log2(heads))
    first = 2.0 ** (-8 * np.arange(1, power + 1) / power)
    between = 2.0 ** (-8 * np.arange(1, 2 * power + 1, 2) / (2 * power))
    return np.concatenate([first, between[: heads - power]])


@keras.saving.register_keras_serializable("keras_cosattn")
class ALiBi(Position):
    """A penalty that grows with the distance: `score_ts - slope_h |t - s|`.

    There are no weights: head i of h has the slope `2^(-8 i / h)` if h is a power of two. In
    attention that is not causal, the distance counts in both directions. The cost is O(t s) for
    each head.

    Args:
        **kwargs: arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Example:
    >>> import keras
    >>> from keras_cosattn import ALiBi, SoftmaxAttention
    >>> layer = SoftmaxAttention(num_heads=2, key_dim=4, position=ALiBi())
    >>> x = keras.ops.ones((1, 3, 8))
    >>> tuple(layer(x, x, use_causal_mask=True).shape)
    (1, 3, 8)

    Reference:
        - [Press et al., 2022](https://arxiv.org/abs/2108.12409), section 3
    """

    kind: Literal["bias"] = "bias"

    def bias(self, q: Tensor, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        dtype = arrays.accumulate(q).dtype
        distance = ops.abs(ops.cast(distances(q_positions, k_positions), dtype))
        slope = np.reshape(slopes(q.shape[2]), (-1, 1, 1))
        return ops.expand_dims(distance, 1) * ops.convert_to_tensor(-slope, dtype)
