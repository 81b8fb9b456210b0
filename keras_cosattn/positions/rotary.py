"""Rotary positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import keras

from keras_cosattn.ops.rotation import apply_rotation
from keras_cosattn.positions.base import Position, Tensor

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from keras_cosattn.layer_options import LayerOptions


@keras.saving.register_keras_serializable("keras_cosattn")
class Rotary(Position):
    """Rotary positions: each feature pair of q_t and k_s is rotated by an angle of its position.

    The angle of the pair `(x_2i, x_2i+1)` is `t base^(-2i/d)`, so `q_t . k_s` depends on t and s
    through `t - s` only. If d is odd, the last feature does not rotate. In `LinearAttention` the
    features are rotated, in the numerator only (equation 19). The cost is O(t d) for each head.

    Angles have an error of at most 2e-6 up to step 2^31 - 1, where int32 positions end (after 37
    hours at 16,000 steps per second).

    Args:
        base: float, base of the frequencies. Defaults to `10000.0`.
        **kwargs: arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Example:
    >>> import keras
    >>> from keras_cosattn import LinearAttention, Rotary
    >>> layer = LinearAttention(num_heads=2, key_dim=4, position=Rotary())
    >>> x = keras.ops.ones((1, 3, 8))
    >>> tuple(layer(x, x, use_causal_mask=True).shape)
    (1, 3, 8)

    Reference:
        - [Su et al., 2021 (RoFormer)](https://arxiv.org/abs/2104.09864), equations 14-16, 19, 34
    """

    kind: Literal["rotation"] = "rotation"
    encodes_keys_alone = True

    def __init__(self, base: float = 10_000.0, **kwargs: Unpack[LayerOptions]) -> None:
        super().__init__(**kwargs)
        self.base = base

    def encode(
        self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        q = apply_rotation(q, q_positions, self.base)
        return q, apply_rotation(k, k_positions, self.base)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "base": self.base}
