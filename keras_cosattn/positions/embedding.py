"""Where in the sequence a step stands, added to what it is."""

import keras
from keras import ops

from keras_cosattn import scope
from keras_cosattn.ops import timesteps


@keras.saving.register_keras_serializable("keras_cosattn")
class PositionEmbedding(keras.layers.Layer):
    """A learned vector for each position: `out_t = x_t + e_t`, `(b, t, m) -> (b, t, m)`.

    Positions count the real steps, so padding in front does not move them. More than
    `sequence_length` steps raise ValueError; where the length is not known beforehand (a dynamic
    shape, a stream) steps beyond it give NaN. O(t m). Gehring et al., 2017, section 3.1.

    Args:
        sequence_length: how many positions there are.
        initializer: of the vectors.
    """

    def __init__(self, sequence_length, initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        if sequence_length < 1:
            raise ValueError(
                f"`sequence_length` must be at least 1. Received: sequence_length={sequence_length}"
            )
        self.sequence_length = sequence_length
        self.initializer = keras.initializers.get(initializer)
        self.supports_masking = True

    def build(self, inputs_shape):
        shape = (self.sequence_length, inputs_shape[-1])
        self.embeddings = self.add_weight(
            name="embeddings", shape=shape, initializer=self.initializer
        )

    def call(self, inputs, mask=None):
        b, t = ops.shape(inputs)[:2]
        stream = scope.current()
        if stream is None:
            if isinstance(t, int) and t > self.sequence_length:
                raise ValueError(
                    f"{self.name}: the input has {t} steps, but sequence_length="
                    f"{self.sequence_length}. Cut the input or build a longer embedding."
                )
            return inputs + self._at(timesteps.positions(t, mask))
        mask = timesteps.combine(stream.mask, mask)
        slot, state = stream.read(self, b, limit=self.sequence_length, position=((), "int32"))
        count = timesteps.count_valid(t, mask, start=state["position"])
        stream.write(slot, {"position": count[:, -1]})
        return inputs + self._at(ops.maximum(count - 1, 0))

    def _at(self, position):
        embeddings = ops.convert_to_tensor(self.embeddings)
        vectors = ops.take(embeddings, ops.minimum(position, self.sequence_length - 1), axis=0)
        beyond = ops.expand_dims(position >= self.sequence_length, -1)
        return ops.where(beyond, ops.full((), float("nan"), vectors.dtype), vectors)

    def compute_output_shape(self, inputs_shape):
        return inputs_shape

    def get_config(self):
        return {
            **super().get_config(),
            "sequence_length": self.sequence_length,
            "initializer": keras.initializers.serialize(self.initializer),
        }
