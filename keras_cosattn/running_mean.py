"""The mean over time, which streams."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_cosattn import scope
from keras_cosattn.keras3_only import Keras3Only
from keras_cosattn.ops import arrays, timesteps

Tensor = Any

EXACT_STEPS = 2**24
"""The largest number up to which float32 holds every integer."""


@keras.saving.register_keras_serializable("keras_cosattn")
class RunningMean(Keras3Only, keras.layers.Layer):
    """Compute the mean of all steps so far: `out_t = (sum_(s <= t) x_s) / (t + 1)`.

    It is the causal counterpart of `keras.layers.GlobalAveragePooling1D`, whose output is its last
    step. Masked steps do not count, and before the first valid step the mean is zero. Cost:
    O(t m).

    In a stream the state is the mean and the number of steps. The number stops at 2^24
    (16,777,216), the largest up to which float32 holds every integer. From there on the mean is an
    exponential average, in which each new step has the weight 2^-24.

    Args:
        **kwargs: As for `keras.layers.Layer`, such as `name` and `dtype`.

    Call arguments:
        inputs: Tensor `(b, t, m)`.
        mask: Boolean `(b, t)`, `False` for steps that do not count. Defaults to `None`, Keras's
            implicit mask.

    Returns:
        Tensor `(b, t, m)`.

    Example:
    >>> layer = keras_cosattn.RunningMean()
    >>> np.asarray(layer(np.array([[[1.0], [2.0], [6.0]]]))).tolist()
    [[[1.0], [1.5], [3.0]]]
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.input_spec = keras.layers.InputSpec(ndim=3)
        self.supports_masking = True

    def call(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        inputs = ops.cast(inputs, self.compute_dtype)
        b, t, m = ops.shape(inputs)
        stream = scope.current()
        if stream is not None:
            mask = timesteps.combine(stream.mask, mask)
        x = arrays.accumulate(arrays.zero_masked(inputs, mask))
        total, count = ops.cumsum(x, axis=1), timesteps.count_valid(t, mask)
        if stream is None:
            mean = total / _as_divisor(count, x.dtype)
            return ops.cast(mean, inputs.dtype)
        slot, state = stream.read(self, b, mean=((m,), "float32"), position=((), "int32"))
        start, mean, new = state["position"], state["mean"], timesteps.advance(0, t, mask)
        stream.write(
            slot,
            {
                "mean": _updated(mean, ops.sum(x, axis=1), start, new),
                "position": ops.minimum(start + new, EXACT_STEPS),
            },
        )
        mean = _updated(ops.expand_dims(mean, 1), total, ops.expand_dims(start, 1), count)
        return ops.cast(mean, inputs.dtype)

    def compute_output_shape(self, inputs_shape):
        return inputs_shape


def _updated(mean, total, start, count):
    """Return the mean of `start` steps after `count` more, whose sum is `total`."""
    # A mean plus a change, not a sum of two shares: in float32 `1 - count / steps` rounds to 1.
    new = ops.expand_dims(ops.cast(count, total.dtype), -1)
    return mean + (total - new * mean) / _as_divisor(start + count, total.dtype)


def _as_divisor(count, dtype):
    return ops.expand_dims(ops.cast(ops.maximum(count, 1), dtype), -1)
