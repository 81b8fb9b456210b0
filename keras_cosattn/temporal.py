"""Causal convolutions, which stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import keras
from keras import ops

from keras_cosattn import scope
from keras_cosattn.keras3_only import Keras3Only
from keras_cosattn.ops import arrays, timesteps

Tensor = Any


def convolve_with_history(
    layer: Any, convolve: Callable[[Tensor], Tensor], inputs: Tensor, mask: Tensor | None
) -> Tensor:
    """Convolve `inputs (b, t, m)` after the earlier steps that the kernel covers.

    The earlier steps are zeros, or in a stream its last inputs. Masked steps are taken out before
    the convolution, and their outputs have no meaning.
    """
    inputs = ops.cast(inputs, layer.compute_dtype)
    length = (layer.kernel_size[0] - 1) * layer.dilation_rate[0]
    b, t = ops.shape(inputs)[:2]
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
        slot, state = stream.read(layer, b, inputs=((length, inputs.shape[2]), "float32"))
        history = ops.cast(state["inputs"], inputs.dtype)
    joined = ops.concatenate([history, inputs], axis=1)
    if stream is not None:
        stream.write(slot, {"inputs": timesteps.last_valid(joined, mask, length)})
    # TensorFlow's convolutions return their input in place of an empty output.
    not_empty = _with_a_step(joined, b, t)
    outputs = convolve(not_empty)
    if not_empty is not joined:
        outputs = outputs[:b, :t]
    return outputs if restore is None else timesteps.take_steps(outputs, restore)


def _with_a_step(x, b, t):
    """Return `x (b, n + t, m)`, with one more example if b is 0, and one more step if t is 0."""
    x = arrays.pad_end(x, _one_if_zero(t))
    missing = _one_if_zero(b)
    if isinstance(missing, int) and missing == 0:
        return x
    return ops.concatenate([x, ops.zeros((missing, *ops.shape(x)[1:]), x.dtype)], axis=0)


def _one_if_zero(n):
    return int(n == 0) if isinstance(n, int) else 1 - ops.minimum(n, 1)


@keras.saving.register_keras_serializable("keras_cosattn")
class CausalConv1D(Keras3Only, keras.layers.Conv1D):
    """Convolve over the past: `out_t = sum_(j < k) x_(t - (k - 1 - j) r) W_j + b`.

    k is the kernel size and r the dilation rate. The same as
    `keras.layers.Conv1D(padding="causal")`, and it takes masks and streams. In a stream the state
    is the last `(k - 1) r` inputs. Cost: O(t k m filters).

    Args:
        filters: int, the size of the output's last axis.
        kernel_size: int, or tuple of one.
        strides: Must be 1: there is one output for each step.
        padding: Must be `"causal"`.
        data_format: Must be `"channels_last"`.
        dilation_rate: int, or tuple of one. Defaults to 1.
        groups, activation, use_bias, kernel_initializer, bias_initializer, kernel_regularizer,
        bias_regularizer, activity_regularizer, kernel_constraint, bias_constraint, lora_rank,
        lora_alpha, name, dtype, trainable: As for `keras.layers.Conv1D`.

    Call arguments:
        inputs: Tensor `(b, t, m)`.
        mask: Boolean `(b, t)`, `False` for steps that are left out. Defaults to `None`, Keras's
            implicit mask.

    Returns:
        Tensor `(b, t, filters)`. The outputs of masked steps have no meaning.

    Raises:
        ValueError: For other `strides`, `padding` or `data_format`.

    Reference:

    - [van den Oord et al., 2016, section 2.1](https://arxiv.org/abs/1609.03499)

    Example:
    >>> layer = keras_cosattn.CausalConv1D(8, 3, dilation_rate=2)
    >>> tuple(layer(np.ones((2, 7, 4), "float32")).shape)
    (2, 7, 8)
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int],
        strides: Literal[1] = 1,
        padding: Literal["causal"] = "causal",
        data_format: Literal["channels_last"] | None = "channels_last",
        dilation_rate: int | tuple[int] = 1,
        groups: int = 1,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        *,
        lora_rank: int | None = None,
        lora_alpha: float | None = None,
        name: str | None = None,
        dtype: Any = None,
        trainable: bool = True,
    ) -> None:
        _check_fixed(type(self).__name__, strides, padding, data_format)
        super().__init__(
            filters,
            kernel_size,
            data_format="channels_last",
            dilation_rate=dilation_rate,
            groups=groups,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            name=name,
            dtype=dtype,
            trainable=trainable,
        )
        self.supports_masking = True

    def call(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        return convolve_with_history(self, super().call, inputs, mask)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.filters)

    def get_config(self) -> dict[str, Any]:
        return _without_fixed(super().get_config())


@keras.saving.register_keras_serializable("keras_cosattn")
class CausalDepthwiseConv1D(Keras3Only, keras.layers.DepthwiseConv1D):
    """Convolve each channel over the past: `out_t = sum_(j < k) x_(t - (k - 1 - j) r) w_j + b`.

    k is the kernel size and r the dilation rate. With `depth_multiplier` each channel has that
    many kernels. Masks and streams as `CausalConv1D`. Cost: O(t k m depth_multiplier).

    Args:
        kernel_size: int, or tuple of one.
        strides: Must be 1: there is one output for each step.
        padding: Must be `"causal"`.
        depth_multiplier: int, the number of outputs for each channel. Defaults to 1.
        data_format: Must be `"channels_last"`.
        dilation_rate: int, or tuple of one. Defaults to 1.
        activation, use_bias, depthwise_initializer, bias_initializer, depthwise_regularizer,
        bias_regularizer, activity_regularizer, depthwise_constraint, bias_constraint, name, dtype,
        trainable: As for `keras.layers.DepthwiseConv1D`.

    Call arguments:
        inputs: Tensor `(b, t, m)`.
        mask: Boolean `(b, t)`, `False` for steps that are left out. Defaults to `None`, Keras's
            implicit mask.

    Returns:
        Tensor `(b, t, m depth_multiplier)`. The outputs of masked steps have no meaning.

    Raises:
        ValueError: For other `strides`, `padding` or `data_format`.

    Reference:

    - [Chollet, 2017](https://arxiv.org/abs/1610.02357)

    Example:
    >>> layer = keras_cosattn.CausalDepthwiseConv1D(3, depth_multiplier=2)
    >>> tuple(layer(np.ones((2, 7, 4), "float32")).shape)
    (2, 7, 8)
    """

    def __init__(
        self,
        kernel_size: int | tuple[int],
        strides: Literal[1] = 1,
        padding: Literal["causal"] = "causal",
        depth_multiplier: int = 1,
        data_format: Literal["channels_last"] | None = "channels_last",
        dilation_rate: int | tuple[int] = 1,
        activation: Any = None,
        use_bias: bool = True,
        depthwise_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        depthwise_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        depthwise_constraint: Any = None,
        bias_constraint: Any = None,
        *,
        name: str | None = None,
        dtype: Any = None,
        trainable: bool = True,
    ) -> None:
        _check_fixed(type(self).__name__, strides, padding, data_format)
        super().__init__(
            kernel_size,
            depth_multiplier=depth_multiplier,
            data_format="channels_last",
            dilation_rate=dilation_rate,
            activation=activation,
            use_bias=use_bias,
            depthwise_initializer=depthwise_initializer,
            bias_initializer=bias_initializer,
            depthwise_regularizer=depthwise_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            depthwise_constraint=depthwise_constraint,
            bias_constraint=bias_constraint,
            name=name,
            dtype=dtype,
            trainable=trainable,
        )
        self.supports_masking = True

    def call(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        return convolve_with_history(self, super().call, inputs, mask)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], input_shape[-1] * self.depth_multiplier)

    def get_config(self) -> dict[str, Any]:
        return _without_fixed(super().get_config())


def _check_fixed(layer: str, strides: Any, padding: Any, data_format: Any) -> None:
    """Raise ValueError for arguments of Keras's convolutions that a causal one does not have."""
    given = {"strides": strides, "padding": padding, "data_format": data_format}
    possible = {
        "strides": (1, (1,), [1]),
        "padding": ("causal",),
        "data_format": ("channels_last", None),
    }
    for name, value in given.items():
        if value not in possible[name]:
            raise ValueError(
                f"{layer}: `{name}` must be {possible[name][0]!r}, because there is one output "
                f"for each step, computed from this step and earlier ones. Received: "
                f"{name}={value!r}"
            )


def _without_fixed(config):
    return {k: v for k, v in config.items() if k not in ("strides", "padding", "data_format")}
