"""Rotary positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import keras

from keras_cosattn.ops import arrays
from keras_cosattn.ops.rotation import apply_rotation, rotation_table
from keras_cosattn.positions.base import Position, Tensor

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from keras_cosattn.layer_options import LayerOptions


@keras.saving.register_keras_serializable("keras_cosattn")
class Rotary(Position):
    """Rotary positions: each feature pair of q_t and k_s is rotated by an angle of its position.

    The angle of the pair `(x_2i, x_2i+1)` is `t base^(-2i/d)`, so `q_t . k_s` depends on t and s
    through `t - s` only. If d is odd, the last feature does not rotate. The models of KerasHub and
    Hugging Face pair `x_i` with `x_i+d/2` (`interleaved=False`) where the paper pairs neighbours.
    In `LinearAttention` the features are rotated, in the numerator only (equation 19). The cost is
    O(t d) for each head.

    Angles have an error of at most 2e-6 up to step 2^31 - 1, where int32 positions end. In a stream
    of sums, such as that of `LinearAttention`, positions end at step 2^30 (after 18 hours at 16,000
    steps per second).

    Args:
        base: float, base of the frequencies. Defaults to `10000.0`.
        interleaved: bool, whether neighbours are paired. Otherwise the features of the first half
            are paired with those of the second. Defaults to `True`.
        scaling_factor: float, by which positions are divided (linear scaling, for a model that
            reads longer sequences than it was trained on). Defaults to `1.0`.
        rotary_dim: int, the number of features that rotate, the first ones (partial rotation).
            Defaults to `None`, all.
        frequency_adjustment: tuple of a factor, two numbers of turns and a length, as the models of
            Llama 3.1 have them: `(8.0, 1.0, 4.0, 8192)`. Pairs that make less turns in that many
            steps than the first number rotate more slowly by the factor, those that make more than
            the second as before, and others in between. Defaults to `None`.
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
        - [Chen et al., 2023](https://arxiv.org/abs/2306.15595), for `scaling_factor`
        - [Dubey et al., 2024](https://arxiv.org/abs/2407.21783), section 3.4.2, for
          `frequency_adjustment`
    """

    kind: Literal["rotation"] = "rotation"
    encodes_keys_alone = True

    def __init__(
        self,
        base: float = 10_000.0,
        *,
        interleaved: bool = True,
        scaling_factor: float = 1.0,
        rotary_dim: int | None = None,
        frequency_adjustment: tuple[float, float, float, int] | None = None,
        **kwargs: Unpack[LayerOptions],
    ) -> None:
        super().__init__(**kwargs)
        if not scaling_factor > 0:
            raise ValueError(
                "`scaling_factor` must be a number above 0. "
                f"Received: scaling_factor={scaling_factor!r}"
            )
        if rotary_dim is not None and (rotary_dim < 2 or rotary_dim % 2):
            raise ValueError(
                f"`rotary_dim` must be an even number above 0. Received: rotary_dim={rotary_dim!r}"
            )
        if frequency_adjustment is not None:
            frequency_adjustment = _checked(frequency_adjustment)
        self.frequency_adjustment = frequency_adjustment
        self.base, self.interleaved = base, interleaved
        self.scaling_factor, self.rotary_dim = scaling_factor, rotary_dim

    def prepare(self, positions: Tensor, size: int, dtype: str) -> Tensor:
        reads_positions = type(self).encode is not Rotary.encode  # a subclass
        return positions if reads_positions else self._table(positions, size, dtype)

    def encode(
        self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self._rotate(q, q_positions), self._rotate(k, k_positions)

    def _rotate(self, x, positions):
        x, is_prepared = arrays.accumulate(x), len(positions.shape) > 2
        table = positions if is_prepared else self._table(positions, x.shape[-1], x.dtype)
        return apply_rotation(x, table, interleaved=self.interleaved, rotary_dim=self.rotary_dim)

    def _table(self, positions, size, dtype):
        if self.rotary_dim is not None and self.rotary_dim > size:
            raise ValueError(
                f"{self.name}: `rotary_dim` must be at most the size of a head. Received: "
                f"rotary_dim={self.rotary_dim}, heads of {size}"
            )
        return rotation_table(
            positions,
            size,
            self.base,
            interleaved=self.interleaved,
            scaling_factor=self.scaling_factor,
            rotary_dim=self.rotary_dim,
            frequency_adjustment=self.frequency_adjustment,
            dtype=dtype,
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "base": self.base,
            "interleaved": self.interleaved,
            "scaling_factor": self.scaling_factor,
            "rotary_dim": self.rotary_dim,
            "frequency_adjustment": self.frequency_adjustment,
        }


def _checked(adjustment):
    """Return a frequency adjustment as a tuple. Raise ValueError if it cannot be one."""
    numbers = tuple(adjustment)
    if len(numbers) != 4 or not all(n > 0 for n in numbers) or not numbers[1] < numbers[2]:
        raise ValueError(
            "`frequency_adjustment` must be four numbers above 0: a factor, the turns of slow and "
            "of fast pairs, of which the second is larger, and a length. "
            f"Received: frequency_adjustment={adjustment!r}"
        )
    return numbers
