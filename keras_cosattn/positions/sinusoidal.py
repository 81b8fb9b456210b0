"""Sinusoidal positions."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_cosattn import scope
from keras_cosattn.ops import arrays, timesteps
from keras_cosattn.ops.angles import angles, frequencies
from keras_cosattn.positions.base import Position

Tensor = Any


def sinusoid(positions: Tensor, size: int, base: float = 10_000.0) -> Tensor:
    """Return `[sin p w_0, cos p w_0, sin p w_1, ..]`, float32 `(b, t, size)`.

    `w_i = base^(-2i/size)`.
    """
    rates = np.repeat(frequencies(size, base), 2)[:size]
    quarter = np.where(np.arange(size) % 2, np.pi / 2, 0.0).astype("float32")
    return ops.sin(angles(positions, rates) + quarter)


@keras.saving.register_keras_serializable("keras_cosattn")
class Sinusoidal(Position):
    """Add sines and cosines of the position: `p_2i = sin(t w_i)`, `p_2i+1 = cos(t w_i)`.

    `w_i = base^(-2i/d)`. As a layer it adds them to its input, `out_t = x_t + p_t`, which is the
    paper's form. As the `position=` of an attention layer it adds them to queries and keys,
    `q_t + p_t` and `k_s + p_s`, and not to values. Cost: O(t m).

    Positions count the valid steps. As a layer it streams without end, with the number of steps as
    its state. The error of a sine is at most 2e-6. From position 2^30 of a stream on, positions
    repeat every 2^29 steps.

    Args:
        base: float, of the frequencies. Defaults to `10000.0`.
        **kwargs: As for `keras.layers.Layer`, such as `name` and `dtype`.

    Call arguments:
        inputs: Tensor `(b, t, m)`.
        mask: Boolean `(b, t)`, `False` for steps that do not count. Their inputs are taken as
            zeros. Defaults to `None`, Keras's implicit mask.

    Returns:
        Tensor `(b, t, m)`.

    Reference:

    - [Vaswani et al., 2017, section 3.5](https://arxiv.org/abs/1706.03762)

    Example:
    >>> layer = keras_cosattn.Sinusoidal()
    >>> y = layer(np.zeros((1, 7, 4), "float32"))
    >>> np.asarray(y)[0, 0].tolist()
    [0.0, 1.0, 0.0, 1.0]
    """

    kind = "encoding"
    encodes_keys_alone = True

    def __init__(self, base: float = 10_000.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.base = base
        self.supports_masking = True

    def encode(self, q, k, q_positions, k_positions):
        def add(x, positions):
            x = arrays.accumulate(x)
            encoding = ops.cast(sinusoid(positions, x.shape[-1], self.base), x.dtype)
            return x + ops.expand_dims(encoding, 2)

        return add(q, q_positions), add(k, k_positions)

    def call(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        inputs = ops.cast(inputs, self.compute_dtype)
        b, t, m = ops.shape(inputs)
        stream = scope.current()
        if stream is None:
            positions = timesteps.positions(t, mask)
        else:
            mask = timesteps.combine(stream.mask, mask)
            slot, state = stream.read(self, b, position=((), "int32"))
            start = state["position"]
            positions = timesteps.positions(t, mask, start=start)
            count = timesteps.advance(start, t, mask)
            stream.write(slot, {"position": timesteps.wrap(count, 2**29)})
        encoding = ops.cast(sinusoid(positions, m, self.base), inputs.dtype)
        return arrays.zero_masked(inputs, mask) + encoding

    def compute_output_shape(self, inputs_shape):
        return inputs_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "base": self.base}
