"""The transformer decoder."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from keras_cosattn.attention import Attention
from keras_cosattn.transformer import key_value_cache
from keras_cosattn.transformer.attention_config import attention_config
from keras_cosattn.transformer.block import Tensor, TransformerBlock
from keras_cosattn.transformer.decoder_attention import attend_to_encoder, attend_to_self
from keras_cosattn.transformer.decoder_checks import check_call, check_packing
from keras_cosattn.transformer.initial_caches import InitialCaches
from keras_cosattn.transformer.state_cache import hold, release

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from keras_cosattn.layer_options import signature_of
    from keras_cosattn.transformer.options import BlockOptions

CACHES = "self_attention_cache", "cross_attention_cache"


@keras.saving.register_keras_serializable("keras_cosattn")
class TransformerDecoder(InitialCaches, TransformerBlock):
    """Causal self-attention, attention to an encoder's output, and a feed-forward network.

    `(b, t, m) -> (b, t, m)`. The attention to an encoder's output is left out if the first call has
    no `encoder_sequence`. Constructor, call and order of the weights are those of
    `keras_hub.layers.TransformerDecoder`, with the attention layers as more arguments. Masked steps
    of the inputs are replaced by zeros before anything reads them.

    Inside a stream (`Streaming`) the self-attention continues from its state. The encoder's output
    is an input that `Streaming(model, constants=...)` names, whose keys and values are a constant
    part of the state; or each call gets the whole of it. The cross-attention must be one whose
    outputs do not depend on the positions of the queries or on other queries.

    Without a stream, the caches of KerasHub serve the same purpose. There are two formats:

    - A tensor `(b, 2, n, hk, d)`, the keys and values of n steps, for `SoftmaxAttention`, with
      KerasHub's rules. A `decoder_padding_mask` then covers all n slots.
    - A dict of tensors, the state of the layer's stream, for every self-attention layer that can
      stream, and in cross-attention for `LinearAttention` and `PerformerAttention` without
      `position` and `conv_size`. Its size is constant for the linear layers. Each step is read once
      and in order: the index must be the number of steps before, which is checked wherever both are
      known. In cross-attention the index 0 reads the `encoder_sequence`, and None only uses what
      was read.

    `initial_self_attention_cache` and `initial_cross_attention_cache` make both.

    Args:
        intermediate_dim: Integer, the width of the feed-forward network.
        num_heads: Integer, the number of heads of the default attention. See `TransformerEncoder`
            for this and the following arguments. Defaults to `None`.
        dropout: Float, the rate of dropout. Defaults to `0`.
        activation: String or function, of the feed-forward network. Defaults to `"relu"`.
        layer_norm_epsilon: Float, of the layer normalisations. Defaults to `1e-5`.
        kernel_initializer: String or initializer. Defaults to `"glorot_uniform"`.
        bias_initializer: String or initializer. Defaults to `"zeros"`.
        normalize_first: Boolean, whether to normalise inputs or sums. Defaults to `False`.
        attention: An attention layer of this package. Defaults to `None`, softmax attention.
        cross_attention: An attention layer of this package for the encoder's output. Defaults to
            `None`, a copy of `attention`.
        **kwargs: `normalization`, `use_gated_activation`, `use_bias` and `normalize_outputs`, as in
            `TransformerEncoder`, and the arguments of `keras.layers.Layer`, such as `dtype`.

    Call arguments:
        decoder_sequence: Tensor `(b, t, m)`.
        encoder_sequence: Tensor `(b, s, m')`, given in every call or in none.
        decoder_padding_mask: Boolean tensor `(b, t)`, True for valid steps. Defaults to Keras's
            implicit mask.
        decoder_attention_mask: Boolean tensor, `(b, 1, t)`, or `(b, t, t)` with
            `SoftmaxAttention`.
        encoder_padding_mask: Boolean tensor `(b, s)`. Defaults to Keras's implicit mask.
        encoder_attention_mask: Boolean tensor, `(b, 1, s)`, or `(b, t, s)` with
            `SoftmaxAttention`.
        self_attention_cache: A cache of the self-attention.
        self_attention_cache_update_index: Integer or scalar tensor, the number of steps before
            `decoder_sequence`.
        cross_attention_cache: A cache of the cross-attention.
        cross_attention_cache_update_index: `0` to read the `encoder_sequence` into the cache, None
            to use the cache as it is.
        use_causal_mask: Boolean, whether a step sees no later step. Defaults to `True`.
        training: Boolean, whether to apply dropout.
        segment_ids: Integer tensor `(b, t)` for packed sequences. A step sees only the steps of
            its own run of equal ids.

    Returns:
        Tensor `(b, t, m)`. With caches a tuple of it, the new cache of the self-attention and, if
        there is an `encoder_sequence`, that of the cross-attention.

    Raises:
        ValueError: If the arguments do not fit together or to the first call, or an attention
            layer cannot do what is asked of it.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn import CosFormerAttention, TransformerDecoder
    >>> block = TransformerDecoder(64, attention=CosFormerAttention(2, 8, horizon=100))
    >>> x = np.ones((3, 10, 16), "float32")
    >>> tuple(block(x).shape)
    (3, 10, 16)
    >>> cache = block.initial_self_attention_cache(batch_size=3)
    >>> for i in range(10):
    ...     y, cache = block(
    ...         x[:, i : i + 1], self_attention_cache=cache, self_attention_cache_update_index=i
    ...     )
    >>> tuple(y.shape)
    (3, 1, 16)

    Reference:

    - [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762), section 3.1
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
        cross_attention: Attention | dict | None = None,
        **kwargs: Unpack[BlockOptions],
    ):
        super().__init__(
            intermediate_dim,
            num_heads,
            dropout,
            activation,
            layer_norm_epsilon,
            kernel_initializer,
            bias_initializer,
            normalize_first,
            attention,
            **kwargs,
        )
        self._cross_attention_config = attention_config("cross_attention", cross_attention)
        self.cross_attention = None

    def build(self, decoder_sequence_shape, encoder_sequence_shape=None):
        shape = decoder_sequence_shape
        self._check_sequence("decoder_sequence", shape)
        # The order of the weights is that of KerasHub.
        self.self_attention = self._build_attention("self_attention", shape, shape)
        self.self_attention_norm = self._build_norm("self_attention_norm", shape)
        self.self_attention_dropout = self._build_dropout("self_attention_dropout")
        if encoder_sequence_shape is not None:
            self._check_sequence("encoder_sequence", encoder_sequence_shape)
            self.cross_attention = self._build_attention(
                "cross_attention", shape, encoder_sequence_shape, self._cross_attention_config
            )
            self.cross_attention.refuse("cross")
            self.cross_attention_norm = self._build_norm("cross_attention_norm", shape)
            self.cross_attention_dropout = self._build_dropout("cross_attention_dropout")
        self._build_feedforward(shape)
        self.feedforward_norm = self._build_norm("feedforward_norm", shape)
        self._build_output_norms(shape)
        self._widths = shape[-1], encoder_sequence_shape and encoder_sequence_shape[-1]

    def call(
        self,
        decoder_sequence: Tensor,
        encoder_sequence: Tensor | None = None,
        decoder_padding_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_padding_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        self_attention_cache: Tensor | dict[str, Tensor] | None = None,
        self_attention_cache_update_index: Tensor | int | None = None,
        cross_attention_cache: Tensor | dict[str, Tensor] | None = None,
        cross_attention_cache_update_index: Tensor | int | None = None,
        use_causal_mask: bool = True,
        training: bool | None = None,
        segment_ids: Tensor | None = None,
    ) -> Any:
        self_cache, cross_cache = release(self_attention_cache), release(cross_attention_cache)
        index, cross_index = self_attention_cache_update_index, cross_attention_cache_update_index
        self._check_call(encoder_sequence, self_cache, index, cross_cache, cross_index)
        check_packing(self.name, segment_ids, encoder_sequence, self_cache, encoder_attention_mask)
        x, mask = self._read_decoder_mask(decoder_sequence, decoder_padding_mask, self_cache, index)
        x, self_cache = self._residual(
            x,
            lambda x: attend_to_self(
                self.self_attention,
                x,
                self_cache,
                index,
                mask=mask,
                attention_mask=decoder_attention_mask,
                use_causal_mask=use_causal_mask,
                segment_ids=segment_ids,
                training=training,
            ),
            "self_attention",
            training,
        )
        if encoder_sequence is None:
            x = self._feedforward(x, training)
            return x if self_cache is None else (x, self_cache)
        encoded, encoder_mask = self._read_mask(
            "encoder_padding_mask", encoder_padding_mask, encoder_sequence, streamed=False
        )
        x, cross_cache = self._residual(
            x,
            lambda x: attend_to_encoder(
                self.cross_attention,
                x,
                encoded,
                cross_cache,
                cross_index,
                query_mask=mask,
                query_start=index,
                mask=encoder_mask,
                attention_mask=encoder_attention_mask,
                training=training,
            ),
            "cross_attention",
            training,
        )
        x = self._feedforward(x, training)
        return x if self_cache is None else (x, self_cache, cross_cache)

    if TYPE_CHECKING:

        @signature_of(call)
        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
    else:

        def __call__(self, *args, **kwargs):
            given = inspect.signature(self.call).bind(*args, **kwargs).arguments
            states = {n: hold(given[n]) for n in CACHES if isinstance(given.get(n), dict)}
            if states:
                args, kwargs = (), {**given, **states}
            return super().__call__(*args, **kwargs)

    def compute_output_shape(self, decoder_sequence_shape, encoder_sequence_shape=None):
        return tuple(decoder_sequence_shape)

    def compute_output_spec(self, *args, **kwargs):
        given = inspect.signature(self.call).bind(*args, **kwargs).arguments
        x, encoded = given["decoder_sequence"], given.get("encoder_sequence")
        self_cache, cross_cache = (release(given.get(name)) for name in CACHES)
        self._check_sequence("decoder_sequence", x.shape)
        self._check_call(
            encoded,
            self_cache,
            given.get("self_attention_cache_update_index"),
            cross_cache,
            given.get("cross_attention_cache_update_index"),
        )
        outputs = keras.KerasTensor(x.shape, dtype=self.compute_dtype)
        if self_cache is None:
            return outputs
        caches = (self_cache,) if encoded is None else (self_cache, cross_cache)
        return outputs, *keras.tree.map_structure(
            lambda x: keras.KerasTensor(x.shape, dtype=x.dtype), caches
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "cross_attention": self._cross_attention_config}

    @classmethod
    def from_config(cls, config):
        # The config of a KerasHub decoder has the shapes with which it was built.
        shapes = [config.get(f"{name}_sequence_shape") for name in ("decoder", "encoder")]
        layer = super().from_config(
            {k: v for k, v in config.items() if not k.endswith("_sequence_shape")}
        )
        if shapes[0] is not None:
            layer.build(*shapes)
        return layer

    def _check_call(self, encoder_sequence, *caches):
        has_encoder = self.cross_attention is not None
        check_call(self.name, has_encoder, encoder_sequence, *caches)
        if encoder_sequence is not None:
            self._check_sequence("encoder_sequence", encoder_sequence.shape)

    def _read_decoder_mask(self, x, mask, cache, index):
        """The inputs with zeros in masked steps; the mask of the steps, or of a cache's slots."""
        if mask is None or cache is None or isinstance(cache, dict):
            return self._read_mask("decoder_padding_mask", mask, x)
        slots = ops.cast(ops.convert_to_tensor(mask), "bool")
        steps = key_value_cache.step_mask(slots, index, ops.shape(x)[1])
        return self._read_mask("decoder_padding_mask", steps, x)[0], slots
