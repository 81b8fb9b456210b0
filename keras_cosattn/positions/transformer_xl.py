"""Transformer-XL's relative positions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import keras
from keras import ops

from keras_cosattn.ops import arrays
from keras_cosattn.ops.angles import angles, frequencies
from keras_cosattn.positions.base import LearnedPosition, Shape, Tensor

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from keras_cosattn.layer_options import LayerOptions


@keras.saving.register_keras_serializable("keras_cosattn")
class TransformerXL(LearnedPosition):
    """`((q_t + u) . k_s + (q_t + v) . W r_(t-s)) / sqrt(d)`, with r the sinusoid of the distance.

    u and v of shape `(h, d)` and W of shape `(h, d, d)`, `(h, d, d + 1)` for an odd d, are learned;
    `r_n = [sin n w_i, cos n w_i]` with `w_i = base^(-2i/d)`. The sine of a difference is a sum of
    products of sines and cosines, so the second term is an inner product of one vector for each
    query and one for each key. The cost is O(t s d) for each head, without a vector for each pair.

    Args:
        base: float, base of the frequencies. Defaults to `10000.0`.
        initializer: initializer of u, v and W. Defaults to `"glorot_uniform"`.
        **kwargs: arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Example:
    >>> import keras
    >>> from keras_cosattn import SoftmaxAttention, TransformerXL
    >>> layer = SoftmaxAttention(num_heads=2, key_dim=4, position=TransformerXL())
    >>> x = keras.ops.ones((1, 3, 8))
    >>> tuple(layer(x, x, use_causal_mask=True).shape)
    (1, 3, 8)

    Reference:
        - [Dai et al., 2019](https://arxiv.org/abs/1901.02860), section 3.3, terms (a)-(d)
    """

    kind: Literal["bias"] = "bias"

    def __init__(
        self,
        base: float = 10_000.0,
        initializer: Any = "glorot_uniform",
        **kwargs: Unpack[LayerOptions],
    ) -> None:
        super().__init__(initializer, **kwargs)
        self.base = base

    def build(self, query_shape: Shape) -> None:
        h, d = query_shape[2:]
        size = 2 * len(frequencies(d))
        self.content = self._add("content", (h, d))
        self.distance = self._add("distance", (h, d))
        self.kernel = self._add("kernel", (h, d, size))

    def _add(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self.add_weight(name=name, shape=shape, initializer=self.initializer)

    def encode(
        self, q: Tensor, k: Tensor, q_positions: Tensor, k_positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        q = arrays.accumulate(q)
        return q + ops.cast(self.content, q.dtype), k

    def bias(self, q: Tensor, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        q = arrays.accumulate(q)
        distance, kernel = (ops.cast(w, q.dtype) for w in (self.distance, self.kernel))
        rates = frequencies(q.shape[-1], self.base)
        q_angle, k_angle = (angles(p, rates, q.dtype) for p in (q_positions, k_positions))
        # The weights of sin and cos of the distance, and the weights of sin and cos of s.
        sines, cosines = ops.split(ops.einsum("bthd,hdf->bthf", q + distance, kernel), 2, axis=-1)
        sin, cos = (ops.expand_dims(f(q_angle), 2) for f in (ops.sin, ops.cos))
        of_query = ops.concatenate(
            [sines * sin + cosines * cos, cosines * sin - sines * cos], axis=-1
        )
        of_key = ops.concatenate([ops.cos(k_angle), ops.sin(k_angle)], axis=-1)
        of_key = ops.expand_dims(ops.transpose(of_key, (0, 2, 1)), 1)  # (b, 1, f, s)
        of_query = ops.transpose(of_query, (0, 2, 1, 3))
        return ops.matmul(of_query, of_key) / math.sqrt(q.shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "base": self.base}
