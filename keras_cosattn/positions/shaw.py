"""Shaw's relative positions, S_rel."""

import math

import keras
from keras import ops

from keras_cosattn.positions.base import Position, distances


@keras.saving.register_keras_serializable("keras_cosattn")
class Shaw(Position):
    """A learned vector for each clipped distance: `q_t . (k_s + a_(clip(s - t))) / sqrt(d)`.

    The vectors are shared by the heads. O(t s + t max_distance d) time for each head: the query
    meets each vector once, and its score is looked up for each key (S_rel).
    Shaw et al., 2018, eq. 2 and 4. Where we leave the paper: there are no vectors for the values
    (eq. 3); its section 4.3 found those for the keys to be enough in translation.

    Args:
        max_distance: the clipping distance in steps; the paper's k.
        initializer: of the vectors.
    """

    kind = "bias"

    def __init__(self, max_distance=16, initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        if max_distance < 1:
            raise ValueError(
                f"`max_distance` must be at least 1. Received: max_distance={max_distance}"
            )
        self.max_distance = max_distance
        self.initializer = keras.initializers.get(initializer)

    def build(self, query_shape):
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(2 * self.max_distance + 1, query_shape[3]),
            initializer=self.initializer,
        )

    def bias(self, q, q_positions, k_positions):
        q = ops.transpose(ops.cast(q, "float32"), (0, 2, 1, 3))
        each = ops.matmul(q, ops.transpose(self.embeddings)) / math.sqrt(q.shape[-1])
        ahead = ops.negative(distances(q_positions, k_positions))
        ahead = ops.clip(ahead, -self.max_distance, self.max_distance) + self.max_distance
        b, h, t = ops.shape(each)[:3]
        index = ops.broadcast_to(ops.expand_dims(ahead, 1), (b, h, t, ops.shape(ahead)[2]))
        return ops.take_along_axis(each, index, axis=3)

    def get_config(self):
        return {
            **super().get_config(),
            "max_distance": self.max_distance,
            "initializer": keras.initializers.serialize(self.initializer),
        }
