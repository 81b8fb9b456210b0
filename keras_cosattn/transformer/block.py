"""What the encoder and the decoder share: arguments, feed-forward network, residuals, norms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from keras_cosattn import scope
from keras_cosattn.attention import Attention, SoftmaxAttention
from keras_cosattn.keras3_only import Keras3Only
from keras_cosattn.transformer.attention_config import attention_config, build_attention
from keras_cosattn.transformer.masked_inputs import MaskedInputs

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from keras_cosattn.layer_options import LayerOptions
    from keras_cosattn.transformer.options import Normalization

Tensor = Any

NORMALIZATIONS = {
    "layer": keras.layers.LayerNormalization,
    "rms": keras.layers.RMSNormalization,
}

PARTS = "self_attention", "cross_attention", "feedforward"


class TransformerBlock(Keras3Only, keras.layers.Layer):
    """Base of the transformer blocks.

    Args: as `TransformerEncoder`.
    """

    def __init__(
        self,
        intermediate_dim: int,
        num_heads: int | None = None,
        dropout: float = 0,
        activation: Any = "relu",
        layer_norm_epsilon: float = 1e-05,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        normalize_first: bool = False,
        attention: Attention | dict | None = None,
        *,
        normalization: Normalization = "layer",
        use_gated_activation: bool = False,
        use_bias: bool = True,
        normalize_outputs: bool = False,
        **kwargs: Unpack[LayerOptions],
    ):
        super().__init__(**kwargs)
        self._attention_config = attention_config("attention", attention)
        heads = self._attention_config and self._attention_config["config"]["num_heads"]
        if heads is None and num_heads is None:
            raise ValueError(
                f"{self.name}: give `attention`, a layer, or `num_heads` for softmax attention."
            )
        if None not in (heads, num_heads) and heads != num_heads:
            raise ValueError(
                f"{self.name}: `num_heads` and `attention` disagree. Received: "
                f"num_heads={num_heads}, attention.num_heads={heads}"
            )
        if normalization not in NORMALIZATIONS:
            raise ValueError(
                f"{self.name}: `normalization` must be one of {tuple(NORMALIZATIONS)}. "
                f"Received: normalization={normalization!r}"
            )
        self.intermediate_dim = intermediate_dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.activation = keras.activations.get(activation)
        self.layer_norm_epsilon = layer_norm_epsilon
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.normalize_first = normalize_first
        self.normalization = normalization
        self.use_gated_activation = use_gated_activation
        self.use_bias = use_bias
        self.normalize_outputs = normalize_outputs
        self.supports_masking = True

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "intermediate_dim": self.intermediate_dim,
            "num_heads": self.num_heads,
            "dropout": self.dropout,
            "activation": keras.activations.serialize(self.activation),
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "normalize_first": self.normalize_first,
            "attention": self._attention_config,
            "normalization": self.normalization,
            "use_gated_activation": self.use_gated_activation,
            "use_bias": self.use_bias,
            "normalize_outputs": self.normalize_outputs,
        }

    def _build_attention(self, name, query_shape, value_shape, config=None):
        config = config or self._attention_config or self._softmax_config(query_shape)
        return build_attention(config, name, self.dtype_policy, query_shape, value_shape)

    def _softmax_config(self, shape):
        """The saved form of the default attention, which is that of KerasHub."""
        if shape[-1] % self.num_heads:
            raise ValueError(
                f"{self.name}: `num_heads` must divide the width of the input. Received: "
                f"num_heads={self.num_heads}, input shape {tuple(shape)}"
            )
        layer = SoftmaxAttention(
            self.num_heads,
            shape[-1] // self.num_heads,
            dropout=self.dropout,
            use_bias=self.use_bias,
            kernel_initializer=self.kernel_initializer,
            bias_initializer=self.bias_initializer,
            dtype=self.dtype_policy,
        )
        return keras.saving.serialize_keras_object(layer)

    def _build_norm(self, name, shape):
        norm = NORMALIZATIONS[self.normalization](
            epsilon=self.layer_norm_epsilon, name=name, dtype=self.dtype_policy
        )
        norm.supports_masking = True
        norm.build(shape)
        return norm

    def _build_output_norms(self, shape):
        """Build a norm of the output of each part that is built."""
        for part in PARTS if self.normalize_outputs else ():
            if hasattr(self, f"{part}_norm"):
                name = f"{part}_output_norm"
                setattr(self, name, self._build_norm(name, shape))

    def _build_dropout(self, name):
        return keras.layers.Dropout(self.dropout, name=name, dtype=self.dtype_policy)

    def _build_dense(self, name, shape, units, activation=None):
        dense = keras.layers.EinsumDense(  # `Dense` cuts a TFLite graph of any length into parts
            "btm,mf->btf",
            output_shape=(None, units),
            bias_axes="f" if self.use_bias else None,
            activation=activation,
            kernel_initializer=self.kernel_initializer.clone(),
            bias_initializer=self.bias_initializer.clone(),
            name=name,
            dtype=self.dtype_policy,
        )
        dense.supports_masking = True
        dense.build(shape)
        return dense

    def _build_feedforward(self, shape):
        # The gate takes the activation, so weights fit KerasHub's Llama by their names.
        gated, inner = self.use_gated_activation, self.intermediate_dim
        self.feedforward_intermediate = self._build_dense(
            "feedforward_intermediate", shape, inner, None if gated else self.activation
        )
        if gated:
            self.feedforward_gate = self._build_dense(
                "feedforward_gate", shape, inner, self.activation
            )
        self.feedforward_output = self._build_dense(
            "feedforward_output", (*shape[:-1], inner), shape[-1]
        )
        self.feedforward_dropout = self._build_dropout("feedforward_dropout")
        self.masked_inputs = MaskedInputs(name="masked_inputs", dtype=self.dtype_policy)

    def _feedforward(self, x, training):
        return self._residual(x, lambda x: (self._feed(x), None), "feedforward", training)[0]

    def _feed(self, x):
        inner = self.feedforward_intermediate(x)
        if self.use_gated_activation:
            inner = ops.multiply(self.feedforward_gate(x), inner)
        return self.feedforward_output(inner)

    def _residual(self, x, part, name, training):
        """Return `x + part(norm(x))`, or `norm(x + part(x))`, and what else `part` returns.

        `name` is that of the part, one of `PARTS`, which its norms and its dropout have, too.
        """
        norm, dropout = getattr(self, f"{name}_norm"), getattr(self, f"{name}_dropout")
        y, more = part(norm(x) if self.normalize_first else x)
        if self.normalize_outputs:
            y = getattr(self, f"{name}_output_norm")(y)
        x = x + dropout(y, training=training)
        return x if self.normalize_first else norm(x), more

    def _read_mask(self, name, mask, x, streamed=True):
        """Return `x` with zeros in masked steps, and the mask `(b, t)` or None.

        Args:
            name: String, the name of the call argument `mask`, for the error.
            mask: The value of this argument, or None for the implicit mask of `x`.
            x: Tensor `(b, t, m)`.
            streamed: Boolean. Whether `x` are steps of the open stream, if there is one.
        """
        if mask is not None:
            mask = ops.cast(ops.convert_to_tensor(mask), "bool")
            if len(mask.shape) != 2 or not all(map(_compatible, mask.shape, x.shape)):
                raise ValueError(
                    f"{self.name}: `{name}` must have shape (batch, steps) = "
                    f"{tuple(x.shape[:2])}. Received: {name}.shape={tuple(mask.shape)}"
                )
        with scope.opened(scope.current() if streamed else None):
            return self.masked_inputs(x, mask=mask)

    def _check_sequence(self, name, shape):
        if len(shape) != 3:
            raise ValueError(
                f"{self.name}: `{name}` must have shape (batch, steps, features). "
                f"Received: {name}.shape={tuple(shape)}"
            )


def _compatible(n, other):
    return None in (n, other) or n == other
