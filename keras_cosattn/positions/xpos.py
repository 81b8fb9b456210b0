"""XPos: rotary positions that fade with the distance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np
from keras import ops

from keras_cosattn.ops import arrays
from keras_cosattn.ops.rotation import apply_rotation, rotation_table
from keras_cosattn.positions.base import Position, Tensor

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from keras_cosattn.layer_options import LayerOptions

LARGEST_EXPONENT = 80.0  # e^80 is below the largest float32 number, about e^88
LARGEST_POSITION = 2**31 - 1


@keras.saving.register_keras_serializable("keras_cosattn")
class XPos(Position):
    """Rotary positions whose feature pairs also fade with the distance, for causal attention.

    `q_t` is rotated and multiplied by `z_i^(t / scale_base)`, `k_s` by `z_i^(-s / scale_base)`,
    with `z_i = (2i / d + gamma) / (1 + gamma)`. So the product has the factor
    `z_i^((t - s) / scale_base)`, which would grow in attention that is not causal. Both powers are
    counted from the middle of the queries of a call, so they stay in the range of float32 if the
    queries and keys of a call span up to 60,000 steps. The cost is O(t d) for each head.

    As with `Rotary`, results are accurate up to step 2^31 - 1, where int32 positions end.

    Args:
        base: float, base of the frequencies. Defaults to `10000.0`.
        scale_base: float, in steps: the larger it is, the slower the pairs fade. Defaults to
            `512.0`.
        gamma: float: the larger it is, the less the fastest pair fades. Defaults to `0.4`.
        **kwargs: arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Example:
    >>> import keras
    >>> from keras_cosattn import SoftmaxAttention, XPos
    >>> layer = SoftmaxAttention(num_heads=2, key_dim=4, position=XPos())
    >>> x = keras.ops.ones((1, 3, 8))
    >>> tuple(layer(x, x, use_causal_mask=True).shape)
    (1, 3, 8)

    Reference:
        - [Sun et al., 2022 (A Length-Extrapolatable Transformer)](
          https://arxiv.org/abs/2212.10554), algorithm 1; `scale_base` is from its code
    """

    kind: Literal["encoding"] = "encoding"

    def __init__(
        self,
        base: float = 10_000.0,
        scale_base: float = 512.0,
        gamma: float = 0.4,
        **kwargs: Unpack[LayerOptions],
    ) -> None:
        super().__init__(**kwargs)
        self.base, self.scale_base, self.gamma = base, scale_base, gamma

    def encode(
        self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        middle = _middle(q_positions)
        q, k = self._rotate(q, q_positions), self._rotate(k, k_positions)
        return q * self._fade(q, q_positions - middle), k * self._fade(k, middle - k_positions)

    def _rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        x = arrays.accumulate(x)
        table = rotation_table(positions, x.shape[-1], self.base, dtype=x.dtype)
        return apply_rotation(x, table)

    def _fade(self, x: Tensor, steps: Tensor) -> Tensor:
        """Return `z_i^(steps / scale_base)`, of shape `(b or 1, t, 1, d)`."""
        d = x.shape[-1]
        pair = np.arange(d) // 2 * 2 / d
        rate = np.log((pair + self.gamma) / (1 + self.gamma)) / self.scale_base
        steps = ops.cast(ops.expand_dims(steps, (2, 3)), x.dtype)
        exponent = steps * ops.convert_to_tensor(rate, x.dtype)
        return ops.exp(ops.minimum(exponent, LARGEST_EXPONENT))

    def get_config(self) -> dict[str, Any]:
        own = {"base": self.base, "scale_base": self.scale_base, "gamma": self.gamma}
        return {**super().get_config(), **own}


def _middle(positions: Tensor) -> Tensor:
    """Return the middle between the first and the last position, `(b or 1, 1)`.

    The initial values are for calls without steps. A sum of two positions could overflow.
    """
    first = ops.min(positions, axis=1, keepdims=True, initial=LARGEST_POSITION)
    last = ops.max(positions, axis=1, keepdims=True, initial=0)
    return first + (last - first) // 2
