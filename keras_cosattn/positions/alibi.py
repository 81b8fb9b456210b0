"""ALiBi: attention with linear biases."""

import math

import keras
import numpy as np
from keras import ops

from keras_cosattn.positions.base import Position, distances


def slopes(heads):
    """`2^(-8 i / h)`, i = 1 .. h, in NumPy.

    Where h is no power of two: those of the largest below it, then every other one of its double.
    """
    power = 2 ** math.floor(math.log2(heads))
    first = 2.0 ** (-8 * np.arange(1, power + 1) / power)
    between = 2.0 ** (-8 * np.arange(1, 2 * power + 1, 2) / (2 * power))
    return np.concatenate([first, between[: heads - power]])


@keras.saving.register_keras_serializable("keras_cosattn")
class ALiBi(Position):
    """A penalty that grows with the distance: `score_ts - slope_h |t - s|`.

    No weights: head i of h has the slope `2^(-8 i / h)`. Looking both ways the distance counts in
    both. O(t s) for each head. Press et al., 2022, section 3.
    """

    kind = "bias"

    def bias(self, q, q_positions, k_positions):
        distance = ops.abs(ops.cast(distances(q_positions, k_positions), "float32"))
        slope = np.reshape(slopes(q.shape[2]), (-1, 1, 1)).astype("float32")
        return ops.expand_dims(distance, 1) * -slope
