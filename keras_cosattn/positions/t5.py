"""T5's relative bias, one number for each bucket of distances and head."""

import math

import keras
import numpy as np
from keras import ops

from keras_cosattn.positions.base import Position, distances


def buckets(num_buckets, max_distance, bidirectional):
    """The bucket of each `s - t` from -max_distance to max_distance, in NumPy.

    Half of the buckets are exact, the others grow logarithmically up to `max_distance`. If
    `bidirectional` the two signs have half of all buckets each, else s > t is bucket 0.
    """
    steps = np.arange(-max_distance, max_distance + 1)
    if bidirectional:
        num_buckets //= 2
        offset, steps = np.where(steps > 0, num_buckets, 0), np.abs(steps)
    else:
        offset, steps = 0, np.maximum(-steps, 0)
    exact = num_buckets // 2
    growth = np.log(np.maximum(steps, 1) / exact) / math.log(max_distance / exact)
    # Rounded: a logarithm a hair below a whole number belongs to that number.
    large = exact + np.floor(np.round(growth * (num_buckets - exact), 9)).astype(int)
    return offset + np.where(steps < exact, steps, np.minimum(large, num_buckets - 1))


@keras.saving.register_keras_serializable("keras_cosattn")
class T5Bias(Position):
    """A learned number for each head and bucket of distances: `score_ts + b_h[bucket(s - t)]`.

    O(t s) for each head. Raffel et al., 2020, section 2.1, and its code's buckets. (There scores
    are not divided by sqrt(d); here they are.)

    Args:
        num_buckets: in all.
        max_distance: in steps; all beyond share the last bucket.
        bidirectional: steps ahead have buckets of their own; False is for causal attention.
        initializer: of the numbers.
    """

    kind = "bias"

    def __init__(
        self,
        num_buckets=32,
        max_distance=128,
        bidirectional=True,
        initializer="random_normal",
        **kwargs,
    ):
        super().__init__(**kwargs)
        smallest = 4 if bidirectional else 2
        if num_buckets < smallest or max_distance <= num_buckets // smallest:
            raise ValueError(
                f"`num_buckets` must be at least {smallest} and `max_distance` more than the exact "
                f"buckets. Received: num_buckets={num_buckets}, max_distance={max_distance}"
            )
        self.num_buckets, self.max_distance = num_buckets, max_distance
        self.bidirectional = bidirectional
        self.initializer = keras.initializers.get(initializer)

    def build(self, query_shape):
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.num_buckets, query_shape[2]),
            initializer=self.initializer,
        )

    def bias(self, q, q_positions, k_positions):
        bucket = buckets(self.num_buckets, self.max_distance, self.bidirectional)
        by_distance = ops.take(self.embeddings, bucket.astype("int32"), axis=0)  # s - t + max
        ahead = ops.negative(distances(q_positions, k_positions))
        ahead = ops.clip(ahead, -self.max_distance, self.max_distance) + self.max_distance
        return ops.transpose(ops.take(by_distance, ahead, axis=0), (0, 3, 1, 2))

    def get_config(self):
        return {
            **super().get_config(),
            "num_buckets": self.num_buckets,
            "max_distance": self.max_distance,
            "bidirectional": self.bidirectional,
            "initializer": keras.initializers.serialize(self.initializer),
        }
