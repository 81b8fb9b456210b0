"""Rotary positions, and their extrapolating form."""

import keras
import numpy as np
from keras import ops

from keras_cosattn.ops.angles import angles, frequencies
from keras_cosattn.positions.base import Position


def _quarter_turn(d):
    """The matrix of `(x_0, x_1, ...) -> (-x_1, x_0, ...)`; of odd d the last becomes zero."""
    matrix = np.zeros((d, d), "float32")
    for i in range(0, d - 1, 2):
        matrix[i + 1, i], matrix[i, i + 1] = -1, 1
    return matrix


def _rotate(x, positions, base):
    """Each pair `(x_2i, x_2i+1)` turned by `position base^(-2i/d)`, float32."""
    d = x.shape[-1]
    rates = np.repeat(frequencies(d - d % 2, base), 2) if d > 1 else np.zeros(0)
    rates = np.concatenate([rates, np.zeros(d % 2)])
    turned = ops.expand_dims(angles(positions, rates), 2)  # (b, t, 1, d)
    x = ops.cast(x, "float32")
    return x * ops.cos(turned) + ops.matmul(x, _quarter_turn(d)) * ops.sin(turned)


@keras.saving.register_keras_serializable("keras_cosattn")
class Rotary(Position):
    """Rotary positions: the pair `(x_2i, x_2i+1)` of q_t and of k_s is turned by its angle.

    The angle is `t base^(-2i/d)`, so `q_t . k_s` depends on t and s through `t - s` only. Of an
    odd d the last feature does not turn. O(t d^2) for each head; in `LinearAttention` the features
    turn, in the numerator only. Su et al., 2021 (RoFormer), eq. 14-16 and 34; linear: eq. 19.

    Args:
        base: of the frequencies.
    """

    kind = "rotation"

    def __init__(self, base=10_000.0, **kwargs):
        super().__init__(**kwargs)
        self.base = base

    def encode(self, q, k, q_positions, k_positions):
        return _rotate(q, q_positions, self.base), _rotate(k, k_positions, self.base)

    def get_config(self):
        return {**super().get_config(), "base": self.base}


LARGEST_EXPONENT = 80.0  # of e, in float32


@keras.saving.register_keras_serializable("keras_cosattn")
class XPos(Position):
    """Rotary positions whose pairs also fade with distance, for causal attention.

    `q_t` is turned and multiplied by `z_i^(t / scale_base)`, `k_s` by `z_i^(-s / scale_base)`,
    with `z_i = (2i / d + gamma) / (1 + gamma)`: the product has `z_i^((t - s) / scale_base)`. Both
    powers are taken from the middle of the queries, so they stay in float32's range for spans of
    up to 60,000 steps. Looking ahead they would grow. O(t d^2) for each head.
    Sun et al., 2022 (A Length-Extrapolatable Transformer), algorithm 1; `scale_base` is from its
    code.

    Args:
        base: of the frequencies.
        scale_base: in steps; the larger, the slower the pairs fade.
        gamma: the larger, the less the fastest pair fades.
    """

    kind = "encoding"

    def __init__(self, base=10_000.0, scale_base=512.0, gamma=0.4, **kwargs):
        super().__init__(**kwargs)
        self.base, self.scale_base, self.gamma = base, scale_base, gamma

    def encode(self, q, k, q_positions, k_positions):
        middle = (q_positions[:, :1] + q_positions[:, -1:]) // 2
        q = _rotate(q, q_positions, self.base)
        k = _rotate(k, k_positions, self.base)
        return q * self._fade(q, q_positions - middle), k * self._fade(k, middle - k_positions)

    def _fade(self, x, steps):
        d = x.shape[-1]
        pair = np.arange(d) // 2 * 2 / d
        rate = np.log((pair + self.gamma) / (1 + self.gamma)) / self.scale_base
        exponent = ops.cast(ops.expand_dims(steps, -1), "float32") * rate.astype("float32")
        return ops.expand_dims(ops.exp(ops.minimum(exponent, LARGEST_EXPONENT)), 2)

    def get_config(self):
        own = {"base": self.base, "scale_base": self.scale_base, "gamma": self.gamma}
        return {**super().get_config(), **own}
