"""T5's relative bias: one number for each head and bucket of distances."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np
from keras import ops

from keras_cosattn.ops import arrays
from keras_cosattn.ops.arguments import integer
from keras_cosattn.positions.base import LearnedPosition, Shape, Tensor, distances

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from keras_cosattn.layer_options import LayerOptions


def buckets(num_buckets: int, max_distance: int, bidirectional: bool) -> np.ndarray:
    """Return the bucket of each `s - t` from -max_distance to max_distance, as a NumPy array.

    Half of the buckets hold one distance each, the others grow logarithmically up to
    `max_distance`. If `bidirectional`, each of the two signs has half of all buckets; otherwise
    all s > t are in bucket 0.

    Example:
    >>> buckets(num_buckets=4, max_distance=4, bidirectional=False).tolist()
    [3, 3, 2, 1, 0, 0, 0, 0, 0]
    """
    steps = np.arange(-max_distance, max_distance + 1)
    if bidirectional:
        num_buckets //= 2
        offset, steps = np.where(steps > 0, num_buckets, 0), np.abs(steps)
    else:
        offset, steps = np.zeros_like(steps), np.maximum(-steps, 0)
    exact = num_buckets // 2
    growth = np.log(np.maximum(steps, 1) / exact) / math.log(max_distance / exact)
    # Rounding first: a logarithm just below an integer belongs to that integer.
    large = exact + np.floor(np.round(growth * (num_buckets - exact), 9)).astype(int)
    return offset + np.where(steps < exact, steps, np.minimum(large, num_buckets - 1))


@keras.saving.register_keras_serializable("keras_cosattn")
class T5Bias(LearnedPosition):
    """A learned number for each head and bucket of distances: `score_ts + b_h[bucket(s - t)]`.

    The cost is O(t s) for each head. The buckets are those of the paper's code. Difference from
    the paper: scores are divided by sqrt(d), as in all layers of this package.

    Args:
        num_buckets: int, number of buckets. Defaults to `32`.
        max_distance: int, in steps: larger distances share the last bucket. Defaults to `128`.
        bidirectional: bool: whether keys after the query have buckets of their own. Pass False for
            causal attention. Defaults to `True`.
        initializer: initializer of the numbers. Defaults to `"random_normal"`.
        **kwargs: arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Example:
    >>> import keras
    >>> from keras_cosattn import SoftmaxAttention, T5Bias
    >>> layer = SoftmaxAttention(num_heads=2, key_dim=4, position=T5Bias())
    >>> x = keras.ops.ones((1, 3, 8))
    >>> tuple(layer(x, x).shape)
    (1, 3, 8)

    Reference:
        - [Raffel et al., 2020](https://arxiv.org/abs/1910.10683), section 2.1
    """

    kind: Literal["bias"] = "bias"

    def __init__(
        self,
        num_buckets: int = 32,
        max_distance: int = 128,
        bidirectional: bool = True,
        initializer: Any = "random_normal",
        **kwargs: Unpack[LayerOptions],
    ) -> None:
        super().__init__(initializer, **kwargs)
        smallest = 4 if bidirectional else 2
        self.num_buckets = integer("num_buckets", num_buckets, smallest)
        self.max_distance = integer("max_distance", max_distance)
        self.bidirectional = bidirectional
        exact = self.num_buckets // smallest
        if self.max_distance <= exact:
            raise ValueError(
                f"`max_distance` must be larger than {exact}, the number of buckets that hold one "
                f"distance each. Received: max_distance={max_distance}, num_buckets={num_buckets}"
            )

    def build(self, query_shape: Shape) -> None:
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.num_buckets, query_shape[2]),
            initializer=self.initializer,
        )

    def bias(self, q: Tensor, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        bucket = buckets(self.num_buckets, self.max_distance, self.bidirectional)
        embeddings = ops.cast(self.embeddings, arrays.accumulate(q).dtype)
        by_distance = ops.take(embeddings, bucket.astype("int32"), axis=0)  # of s - t + max
        ahead = ops.negative(distances(q_positions, k_positions))
        ahead = ops.clip(ahead, -self.max_distance, self.max_distance) + self.max_distance
        return ops.transpose(ops.take(by_distance, ahead, axis=0), (0, 3, 1, 2))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_buckets": self.num_buckets,
            "max_distance": self.max_distance,
            "bidirectional": self.bidirectional,
        }
