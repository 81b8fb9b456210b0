"""Transformer blocks with KerasHub's signatures and one more argument: the attention layer."""

import keras

from keras_cosattn.attention import Attention, SoftmaxAttention


class TransformerBlock(keras.layers.Layer):
    """Base of the blocks: arguments, feed-forward network, residuals and norms.

    Args:
        intermediate_dim: width of the feed-forward network.
        num_heads: heads of the default softmax attention; not needed with `attention`.
        dropout: rate, after the attention and the feed-forward network.
        activation: of the feed-forward network.
        layer_norm_epsilon: of the layer norms.
        kernel_initializer, bias_initializer: of the dense layers.
        normalize_first: norm before each part (else after its residual).
        attention: an attention layer of this package. The block makes its own copy from the
            layer's config, so one object may be given to many blocks. None is
            `SoftmaxAttention(num_heads, m // num_heads)`, as in KerasHub.
    """

    def __init__(
        self,
        intermediate_dim,
        num_heads=None,
        dropout=0,
        activation="relu",
        layer_norm_epsilon=1e-05,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        normalize_first=False,
        attention=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self._attention_config = _attention_config("attention", attention)
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
        self.intermediate_dim = intermediate_dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.activation = keras.activations.get(activation)
        self.layer_norm_epsilon = layer_norm_epsilon
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.normalize_first = normalize_first
        self.supports_masking = True

    def get_config(self):
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
        }

    def _build_attention(self, name, query_shape, value_shape, config=None):
        config = config or self._attention_config
        if config is None:
            if query_shape[-1] % self.num_heads:
                raise ValueError(
                    f"{self.name}: `num_heads` must divide the width of the input. Received: "
                    f"num_heads={self.num_heads}, input shape {tuple(query_shape)}"
                )
            layer = SoftmaxAttention(
                self.num_heads,
                query_shape[-1] // self.num_heads,
                dropout=self.dropout,
                kernel_initializer=self.kernel_initializer,
                bias_initializer=self.bias_initializer,
            )
        else:
            layer = keras.saving.deserialize_keras_object(config)
        config = {**layer.get_config(), "name": name, "dtype": self.dtype_policy}
        layer = type(layer).from_config(config)
        layer.build(query_shape, value_shape)
        return layer

    def _build_norm(self, name, shape):
        norm = keras.layers.LayerNormalization(
            epsilon=self.layer_norm_epsilon, name=name, dtype=self.dtype_policy
        )
        norm.build(shape)
        return norm

    def _build_feedforward(self, shape):
        self.feedforward_norm = self._build_norm("feedforward_norm", shape)
        self.feedforward_intermediate = self._dense(
            "feedforward_intermediate", shape, self.intermediate_dim, self.activation
        )
        inner = (*shape[:-1], self.intermediate_dim)
        self.feedforward_output = self._dense("feedforward_output", inner, shape[-1], None)
        self.dropout_layer = keras.layers.Dropout(self.dropout, dtype=self.dtype_policy)
        # A layer, for a plain sum of tensors would drop Keras's implicit mask.
        self.add = keras.layers.Add(dtype=self.dtype_policy)

    def _dense(self, name, shape, units, activation):
        dense = keras.layers.EinsumDense(  # `Dense` cuts a TFLite graph of any length into parts
            "btm,mf->btf",
            output_shape=(None, units),
            bias_axes="f",
            activation=activation,
            kernel_initializer=_copy(self.kernel_initializer),
            bias_initializer=_copy(self.bias_initializer),
            name=name,
            dtype=self.dtype_policy,
        )
        dense.supports_masking = True
        dense.build(shape)
        return dense

    def _feedforward(self, x):
        return self.feedforward_output(self.feedforward_intermediate(x))

    def _residual(self, x, part, norm, training):
        """`x + part(norm(x))`, or `norm(x + part(x))`."""
        y = part(norm(x) if self.normalize_first else x)
        x = self.add([x, self.dropout_layer(y, training=training)])
        return x if self.normalize_first else norm(x)


@keras.saving.register_keras_serializable("keras_cosattn")
class TransformerEncoder(TransformerBlock):
    """Self-attention and a feed-forward network, both directions: `(b, t, m) -> (b, t, m)`.

    Constructor and call are KerasHub's, with `attention` added; see `TransformerBlock`. A padding
    mask stays `(b, t)`: with a linear attention no `(b, t, t)` tensor is made.
    Vaswani et al., 2017, section 3.1.

    Call arguments:
        inputs: `(b, t, m)`.
        padding_mask: `(b, t)`, True where a step is real; None is Keras's implicit mask.
        attention_mask: `(b, 1, t)`, or for `SoftmaxAttention` `(b, t, t)`.
        training: apply dropout.
        return_attention_scores: also return the weights `(b, h, t, t)`.
    """

    def build(self, inputs_shape):
        self.self_attention = self._build_attention("self_attention", inputs_shape, inputs_shape)
        self.self_attention_norm = self._build_norm("self_attention_norm", inputs_shape)
        self._build_feedforward(inputs_shape)

    def call(
        self,
        inputs,
        padding_mask=None,
        attention_mask=None,
        training=None,
        return_attention_scores=False,
    ):
        weights = []

        def attend(x):
            x = self.self_attention(
                x,
                x,
                query_mask=padding_mask,
                value_mask=padding_mask,
                attention_mask=attention_mask,
                return_attention_scores=return_attention_scores,
                training=training,
            )
            if return_attention_scores:
                x, scores = x
                weights.append(scores)
            return x

        x = self._residual(inputs, attend, self.self_attention_norm, training)
        x = self._residual(x, self._feedforward, self.feedforward_norm, training)
        return (x, *weights) if return_attention_scores else x

    def compute_output_spec(
        self,
        inputs,
        padding_mask=None,
        attention_mask=None,
        training=None,
        return_attention_scores=False,
    ):
        outputs = keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)
        if not return_attention_scores:
            return outputs
        return self.self_attention.compute_output_spec(inputs, inputs, return_attention_scores=True)


@keras.saving.register_keras_serializable("keras_cosattn")
class TransformerDecoder(TransformerBlock):
    """Causal self-attention, attention to an encoder's output if there is one, and feed-forward.

    `(b, t, m) -> (b, t, m)`. Constructor and call are KerasHub's, with `attention` added and
    without the caches: a decoder without encoder is stepped by `Streaming`. Vaswani et al.,
    2017, section 3.1.

    Args:
        **arguments: as `TransformerBlock`.
        cross_attention: the layer for the encoder's output; None is a copy of `attention`.

    Call arguments:
        decoder_sequence: `(b, t, m)`.
        encoder_sequence: `(b, s, m')` or None.
        decoder_padding_mask, encoder_padding_mask: `(b, t)`, `(b, s)`, True where a step is real;
            None is Keras's implicit mask.
        decoder_attention_mask, encoder_attention_mask: `(b, 1, t)`, `(b, 1, s)`, or for
            `SoftmaxAttention` `(b, t, t)`, `(b, t, s)`.
        use_causal_mask: step t sees steps up to t only.
        training: apply dropout.
    """

    def __init__(self, intermediate_dim, num_heads=None, *args, cross_attention=None, **kwargs):
        super().__init__(intermediate_dim, num_heads, *args, **kwargs)
        self._cross_attention_config = _attention_config("cross_attention", cross_attention)

    def build(self, decoder_sequence_shape, encoder_sequence_shape=None):
        shape = decoder_sequence_shape
        self.self_attention = self._build_attention("self_attention", shape, shape)
        self.self_attention_norm = self._build_norm("self_attention_norm", shape)
        if encoder_sequence_shape is not None:
            self.cross_attention = self._build_attention(
                "cross_attention", shape, encoder_sequence_shape, self._cross_attention_config
            )
            self.cross_attention_norm = self._build_norm("cross_attention_norm", shape)
        self._build_feedforward(shape)

    def call(
        self,
        decoder_sequence,
        encoder_sequence=None,
        decoder_padding_mask=None,
        decoder_attention_mask=None,
        encoder_padding_mask=None,
        encoder_attention_mask=None,
        use_causal_mask=True,
        training=None,
    ):
        def attend(x):
            return self.self_attention(
                x,
                x,
                query_mask=decoder_padding_mask,
                value_mask=decoder_padding_mask,
                attention_mask=decoder_attention_mask,
                use_causal_mask=use_causal_mask,
                training=training,
            )

        def attend_to_encoder(x):
            return self.cross_attention(
                x,
                encoder_sequence,
                query_mask=decoder_padding_mask,
                value_mask=encoder_padding_mask,
                attention_mask=encoder_attention_mask,
                training=training,
            )

        x = self._residual(decoder_sequence, attend, self.self_attention_norm, training)
        if encoder_sequence is not None:
            self._check_cross()
            x = self._residual(x, attend_to_encoder, self.cross_attention_norm, training)
        return self._residual(x, self._feedforward, self.feedforward_norm, training)

    def compute_output_spec(self, decoder_sequence, *args, **kwargs):
        return keras.KerasTensor(decoder_sequence.shape, dtype=self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "cross_attention": self._cross_attention_config}

    def _check_cross(self):
        if not hasattr(self, "cross_attention"):
            raise ValueError(
                f"{self.name} was built without an `encoder_sequence`, so it has no "
                "cross-attention. Give the encoder's output in the first call."
            )


def _attention_config(name, attention):
    """The config of an attention layer, given as a layer or as its config."""
    if isinstance(attention, dict):
        attention = keras.saving.deserialize_keras_object(attention)
    if attention is not None and not isinstance(attention, Attention):
        raise ValueError(
            f"`{name}` must be an attention layer of keras_cosattn, such as "
            f"CosFormerAttention(4, 64). Received: {name}={attention!r}"
        )
    return attention and keras.saving.serialize_keras_object(attention)


def _copy(initializer):
    return type(initializer).from_config(initializer.get_config())
