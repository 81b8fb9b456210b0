"""What a streaming model needs beside attention: causal convolutions and a mean over time."""

import keras
from keras import ops

from keras_cosattn import scope
from keras_cosattn.ops import arrays, timesteps


def over_history(layer, convolve, inputs, mask):
    """`convolve` applied to `inputs (b, t, m)` behind the steps that its kernel reaches back to.

    Those are zeros, or the stream's. Masked steps do not exist: they are taken out, and what
    stands at their places in the output is not meant to be read.
    """
    length = (layer.kernel_size[0] - 1) * layer.dilation_rate[0]
    stream = scope.current()
    mask = mask if stream is None else timesteps.combine(stream.mask, mask)
    restore = None
    if mask is not None:
        order, restore = timesteps.valid_first(mask)
        inputs = timesteps.take_steps(arrays.zero_masked(inputs, mask), order)
        mask = timesteps.take_steps(mask, order)
    if stream is None:
        history = arrays.zeros_in_time(inputs, length)
    else:
        slot, state = stream.read(
            layer, ops.shape(inputs)[0], inputs=((length, inputs.shape[2]), "float32")
        )
        history = ops.cast(state["inputs"], inputs.dtype)
    joined = ops.concatenate([history, inputs], axis=1)
    if stream is not None:
        stream.write(
            slot, {"inputs": ops.cast(timesteps.last_valid(joined, mask, length), "float32")}
        )
    outputs = convolve(joined)
    return outputs if restore is None else timesteps.take_steps(outputs, restore)


@keras.saving.register_keras_serializable("keras_cosattn")
class CausalConv1D(keras.layers.Conv1D):
    """Convolution over the past: `out_t = sum_(j < k) x_(t - (k - 1 - j) r) W_j + b`.

    `(b, t, m) -> (b, t, filters)`, the same length. As `keras.layers.Conv1D(padding="causal")`,
    with masks, and in a stream with the last (k - 1) r inputs as its state, float32; k taps, r
    the dilation rate. O(t k m filters).

    Args:
        filters, kernel_size, dilation_rate, **kwargs: as `keras.layers.Conv1D`, without strides,
            padding and data_format.
    """

    def __init__(self, filters, kernel_size, dilation_rate=1, **kwargs):
        super().__init__(filters, kernel_size, dilation_rate=dilation_rate, **kwargs)
        self.supports_masking = True

    def call(self, inputs, mask=None):
        return over_history(self, super().call, inputs, mask)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.filters)

    def get_config(self):
        return _without_fixed(super().get_config())


@keras.saving.register_keras_serializable("keras_cosattn")
class CausalDepthwiseConv1D(keras.layers.DepthwiseConv1D):
    """Each channel convolved alone over the step itself and the k - 1 before it.

    `(b, t, m) -> (b, t, m depth_multiplier)`, the same length; state in a stream as
    `CausalConv1D`. O(t k m depth_multiplier).

    Args:
        kernel_size, depth_multiplier, dilation_rate, **kwargs: as
            `keras.layers.DepthwiseConv1D`, without strides, padding and data_format.
    """

    def __init__(self, kernel_size, depth_multiplier=1, dilation_rate=1, **kwargs):
        super().__init__(
            kernel_size, depth_multiplier=depth_multiplier, dilation_rate=dilation_rate, **kwargs
        )
        self.supports_masking = True

    def call(self, inputs, mask=None):
        return over_history(self, super().call, inputs, mask)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], input_shape[-1] * self.depth_multiplier)

    def get_config(self):
        return _without_fixed(super().get_config())


def _without_fixed(config):
    return {k: v for k, v in config.items() if k not in ("strides", "padding", "data_format")}


@keras.saving.register_keras_serializable("keras_cosattn")
class RunningMean(keras.layers.Layer):
    """The mean of all steps so far: `out_t = (sum_(s <= t) x_s) / (t + 1)`.

    `(b, t, m) -> (b, t, m)`. The causal counterpart of `GlobalAveragePooling1D`: its last step is
    that mean. Masked steps do not count; before the first real step the mean is zero. In a stream
    the state is the mean so far, float32, and the number of steps. O(t m).
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs, mask=None):
        b, t, m = ops.shape(inputs)
        stream = scope.current()
        if stream is not None:
            mask = timesteps.combine(stream.mask, mask)
            slot, state = stream.read(self, b, mean=((m,), "float32"), position=((), "int32"))
        x = arrays.zero_masked(arrays.accumulate(inputs), mask)
        start = None if stream is None else state["position"]
        count = timesteps.count_valid(t, mask, start=start)
        steps = ops.expand_dims(ops.cast(ops.maximum(count, 1), x.dtype), -1)
        total = ops.cumsum(x, axis=1)
        if stream is None:
            return ops.cast(total / steps, inputs.dtype)
        new = ops.expand_dims(ops.cast(count - ops.expand_dims(start, -1), x.dtype), -1)
        # Not `start / steps`: in float16 both are infinite after 65,504 steps.
        mean = ops.expand_dims(state["mean"], 1) * (1.0 - new / steps) + total / steps
        stream.write(slot, {"mean": mean[:, -1], "position": count[:, -1]})
        return ops.cast(mean, inputs.dtype)

    def compute_output_shape(self, inputs_shape):
        return inputs_shape
