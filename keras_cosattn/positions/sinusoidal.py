"""Sinusoidal positions."""

import keras
import numpy as np
from keras import ops

from keras_cosattn import scope
from keras_cosattn.ops import timesteps
from keras_cosattn.ops.angles import angles, frequencies
from keras_cosattn.positions.base import Position


def sinusoid(positions, size, base=10_000.0):
    """`[sin p w_0, cos p w_0, sin p w_1, ..]`, `w_i = base^(-2i/size)`: float32 `(b, t, size)`."""
    rates = np.repeat(frequencies(size, base), 2)[:size]
    quarter = np.where(np.arange(size) % 2, np.pi / 2, 0.0).astype("float32")
    return ops.sin(angles(positions, rates) + quarter)


@keras.saving.register_keras_serializable("keras_cosattn")
class Sinusoidal(Position):
    """Sines and cosines of the position: `p_2i = sin(t w_i)`, `p_2i+1 = cos(t w_i)`.

    `w_i = base^(-2i/d)`. As a layer it is added to its input, `out_t = x_t + p_t`,
    `(b, t, m) -> (b, t, m)`, which is the paper's form; it streams without end. As the `position=`
    of an attention layer it is added to its queries and keys, `q_t + p_t` and `k_s + p_s`, and not
    to the values. O(t m). Vaswani et al., 2017, section 3.5.

    Args:
        base: of the frequencies.
    """

    kind = "encoding"

    def __init__(self, base=10_000.0, **kwargs):
        super().__init__(**kwargs)
        self.base = base
        self.supports_masking = True

    def encode(self, q, k, q_positions, k_positions):
        def add(x, positions):
            return ops.cast(x, "float32") + ops.expand_dims(
                sinusoid(positions, x.shape[-1], self.base), 2
            )

        return add(q, q_positions), add(k, k_positions)

    def call(self, inputs, mask=None):
        b, t, m = ops.shape(inputs)
        stream = scope.current()
        if stream is None:
            positions = timesteps.positions(t, mask)
        else:
            mask = timesteps.combine(stream.mask, mask)
            slot, state = stream.read(self, b, position=((), "int32"))
            count = timesteps.count_valid(t, mask, start=state["position"])
            stream.write(slot, {"position": count[:, -1]})
            positions = ops.maximum(count - 1, 0)
        return inputs + ops.cast(sinusoid(positions, m, self.base), inputs.dtype)

    def compute_output_shape(self, inputs_shape):
        return inputs_shape

    def get_config(self):
        return {**super().get_config(), "base": self.base}
