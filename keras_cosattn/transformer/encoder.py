"""The transformer encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras

from keras_cosattn.transformer.block import Tensor, TransformerBlock

if TYPE_CHECKING:
    from keras_cosattn.layer_options import signature_of


@keras.saving.register_keras_serializable("keras_cosattn")
class TransformerEncoder(TransformerBlock):
    """Self-attention in both directions and a feed-forward network, `(b, t, m) -> (b, t, m)`.

    Constructor, call and order of the weights are those of `keras_hub.layers.TransformerEncoder`,
    with the attention layer as one more argument. A padding mask stays `(b, t)`: with linear
    attention no `(b, t, t)` tensor is made. Masked steps of the input are replaced by zeros before
    anything reads them.

    Args:
        intermediate_dim: Integer, the width of the feed-forward network.
        num_heads: Integer, the number of heads of the default attention,
            `SoftmaxAttention(num_heads, m // num_heads, dropout=dropout)`. It is not needed with
            `attention`. Defaults to `None`.
        dropout: Float, the rate of dropout after the attention and after the feed-forward network.
            Defaults to `0`.
        activation: String or function, the activation of the feed-forward network. Defaults to
            `"relu"`.
        layer_norm_epsilon: Float, the epsilon of the layer normalisations. Defaults to `1e-5`.
        kernel_initializer: String or initializer of the kernels of the feed-forward network and of
            the default attention. Defaults to `"glorot_uniform"`.
        bias_initializer: String or initializer of their biases. Defaults to `"zeros"`.
        normalize_first: Boolean. If True, the inputs of both parts are normalised, otherwise the
            sums of their inputs and outputs. Defaults to `False`.
        attention: An attention layer of this package. The block makes its own copy from the
            layer's config, so one object may be given to many blocks. A copy keeps its dtype
            policy if that differs from the global one, `keras.config.dtype_policy()`; otherwise it
            takes that of the block. Defaults to `None`, the default attention.
        normalization: String, `"layer"` for layer normalisation or `"rms"` for root mean square
            normalisation, which subtracts no mean and adds no bias. Defaults to `"layer"`.
        use_gated_activation: Boolean, whether the feed-forward network is
            `(activation(x W) * (x V)) W2` in place of `activation(x V) W2`. With
            `activation="silu"` it is SwiGLU, with `"gelu"` GEGLU. Defaults to `False`.
        use_bias: Boolean, whether the feed-forward network and the default attention have biases.
            A given `attention` has a `use_bias` of its own. Defaults to `True`.
        normalize_outputs: Boolean, whether the outputs of both parts are normalised, too, before
            they are added to the inputs, as in Gemma 2. Defaults to `False`.
        **kwargs: `name`, `trainable`, `dtype` and the other arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor `(b, t, m)`.
        padding_mask: Boolean tensor `(b, t)`, True for valid steps. Defaults to Keras's implicit
            mask.
        attention_mask: Boolean tensor, `(b, 1, t)`, or `(b, t, t)` with `SoftmaxAttention`, True
            where a step sees another.
        training: Boolean, whether to apply dropout.
        return_attention_scores: Boolean, whether to return the attention's weights too.
        segment_ids: Integer tensor `(b, t)` for packed sequences. A step sees only the steps of
            its own run of equal ids.

    Returns:
        Tensor `(b, t, m)`. With `return_attention_scores` a tuple of it and the weights
        `(b, h, t, t)`.

    Raises:
        ValueError: If `normalization` is none of its choices, the shapes of the arguments do not
            fit together, or the attention layer cannot do what is asked of it.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn import CosFormerAttention, TransformerEncoder
    >>> block = TransformerEncoder(64, attention=CosFormerAttention(2, 8, max_length=100))
    >>> tuple(block(np.ones((3, 10, 16))).shape)
    (3, 10, 16)

    Reference:

    - [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762), section 3.1
    - [Zhang and Sennrich, 2019](https://arxiv.org/abs/1910.07467), equation 4, for `"rms"`
    - [Shazeer, 2020](https://arxiv.org/abs/2002.05202), equations 5-6, for the gate
    - [Gemma Team, 2024](https://arxiv.org/abs/2408.00118), section 2, for `normalize_outputs`
    """

    def build(self, inputs_shape):
        self._check_sequence("inputs", inputs_shape)
        # The order of the weights is that of KerasHub.
        self.self_attention = self._build_attention("self_attention", inputs_shape, inputs_shape)
        self.self_attention_norm = self._build_norm("self_attention_norm", inputs_shape)
        self.self_attention_dropout = self._build_dropout("self_attention_dropout")
        self.feedforward_norm = self._build_norm("feedforward_norm", inputs_shape)
        self._build_feedforward(inputs_shape)
        self._build_output_norms(inputs_shape)

    def call(
        self,
        inputs: Tensor,
        padding_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        training: bool | None = None,
        return_attention_scores: bool = False,
        segment_ids: Tensor | None = None,
    ) -> Tensor:
        x, padding_mask = self._read_mask("padding_mask", padding_mask, inputs)

        def attend(x):
            found = self.self_attention(
                x,
                x,
                query_mask=padding_mask,
                value_mask=padding_mask,
                attention_mask=attention_mask,
                return_attention_scores=return_attention_scores,
                segment_ids=segment_ids,
                training=training,
            )
            return found if return_attention_scores else (found, None)

        x, weights = self._residual(x, attend, "self_attention", training)
        x = self._feedforward(x, training)
        return (x, weights) if return_attention_scores else x

    if TYPE_CHECKING:

        @signature_of(call)
        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def compute_output_shape(self, inputs_shape):
        return tuple(inputs_shape)

    def compute_output_spec(self, inputs, *args, return_attention_scores=False, **kwargs):
        self._check_sequence("inputs", inputs.shape)
        outputs = keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)
        if not return_attention_scores:
            return outputs
        _, weights = self.self_attention.compute_output_spec(
            inputs, inputs, return_attention_scores=True
        )
        return outputs, weights
