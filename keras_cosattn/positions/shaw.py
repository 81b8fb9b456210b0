"""Shaw's relative positions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import keras
from keras import ops

from keras_cosattn.ops import arrays
from keras_cosattn.ops.arguments import integer
from keras_cosattn.positions.base import LearnedPosition, Shape, Tensor, distances

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from keras_cosattn.layer_options import LayerOptions


@keras.saving.register_keras_serializable("keras_cosattn")
class Shaw(LearnedPosition):
    """A learned vector for each clipped distance: `q_t . (k_s + a_(clip(s - t))) / sqrt(d)`.

    The vectors are shared by the heads. Each query is multiplied with each vector once, and the
    result is looked up for each key, so the cost is O(t s + t max_distance d) for each head.

    Difference from the paper: there are no vectors for the values (equation 3). Its section 4.3
    found the vectors for the keys to be enough in translation.

    Args:
        max_distance: int, in steps: larger distances share the vector of this one. The paper's k.
            Defaults to `16`.
        initializer: initializer of the vectors. Defaults to `"glorot_uniform"`.
        **kwargs: arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Example:
    >>> import keras
    >>> from keras_cosattn import Shaw, SoftmaxAttention
    >>> layer = SoftmaxAttention(num_heads=2, key_dim=4, position=Shaw(max_distance=5))
    >>> x = keras.ops.ones((1, 3, 8))
    >>> tuple(layer(x, x).shape)
    (1, 3, 8)

    Reference:
        - [Shaw et al., 2018](https://arxiv.org/abs/1803.02155), equations 2 and 4
    """

    kind: Literal["bias"] = "bias"

    def __init__(
        self,
        max_distance: int = 16,
        initializer: Any = "glorot_uniform",
        **kwargs: Unpack[LayerOptions],
    ) -> None:
        super().__init__(initializer, **kwargs)
        self.max_distance = integer("max_distance", max_distance)

    def build(self, query_shape: Shape) -> None:
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(2 * self.max_distance + 1, query_shape[3]),
            initializer=self.initializer,
        )

    def bias(self, q: Tensor, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        q = ops.transpose(arrays.accumulate(q), (0, 2, 1, 3))
        vectors = ops.transpose(ops.cast(self.embeddings, q.dtype))
        by_distance = ops.matmul(q, vectors) / math.sqrt(q.shape[-1])
        ahead = ops.negative(distances(q_positions, k_positions))
        ahead = ops.clip(ahead, -self.max_distance, self.max_distance) + self.max_distance
        # Indices into all scores: `take_along_axis` fails where there are no steps.
        b, h, t, width = ops.shape(by_distance)
        row = ops.reshape(ops.arange(b * h * t, dtype="int32"), (b, h, t, 1))
        index = row * width + ops.expand_dims(ahead, 1)
        return ops.take(ops.reshape(by_distance, (-1,)), index, axis=0)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "max_distance": self.max_distance}
