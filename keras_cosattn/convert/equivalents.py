"""Layers of Keras, KerasHub and this package as equal layers of this package.

Each function takes a built layer and returns a built layer with the same weights, whose outputs
are equal. The tables at the end name them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras.layers import Layer

from keras_cosattn.attention import Attention, SoftmaxAttention
from keras_cosattn.convert.keras_hub_decoders import gemma3_decoder, gemma_decoder, llama_decoder
from keras_cosattn.convert.weights import assign, assign_in_order, build_like, by_name
from keras_cosattn.positions import PositionEmbedding
from keras_cosattn.transformer import TransformerDecoder, TransformerEncoder


def _multi_head_attention(old: Any) -> Layer:
    return build_like(SoftmaxAttention.from_config(old.get_config()), old)


def _group_query_attention(old: Any) -> Layer:
    config = old.get_config()
    for theirs, ours in (("num_query_heads", "num_heads"), ("head_dim", "key_dim")):
        config[ours] = config.pop(theirs)
    return build_like(SoftmaxAttention.from_config(config), old, by_name(old))


def _encoder(old: Any) -> Layer:
    return build_like(TransformerEncoder.from_config(old.get_config()), old)


def _decoder(old: Any) -> Layer:
    config = old.get_config()
    shapes = [config.pop(f"{name}_sequence_shape", None) for name in ("decoder", "encoder")]
    new = TransformerDecoder.from_config(config)
    new.build(*(shape for shape in shapes if shape is not None))
    assign_in_order(new, old)
    return new


def _position_embedding(old: Any) -> Layer:
    config = {**old.get_config(), "add_to_inputs": False}
    return build_like(PositionEmbedding.from_config(config), old)


VIT = {
    "ln_1": "self_attention_norm",
    "mha": "self_attention",
    "ln_2": "feedforward_norm",
    "mlp/dense_1": "feedforward_intermediate",
    "mlp/dense_2": "feedforward_output",
}
"""The layers inside KerasHub's vision encoder block, and their names in our blocks."""


def _vision_encoder(old: Any) -> Layer:
    """All blocks of a ViT, dropout before and a norm after them, as a sequential model."""
    shape = (None, None, old.hidden_dim)
    blocks = [_vision_block(block, shape) for block in old.encoder_layers]
    norm = type(old.layer_norm).from_config(old.layer_norm.get_config())
    new = keras.Sequential(
        [keras.layers.Dropout(old.dropout_rate, dtype=old.dtype_policy), *blocks, norm],
        name=old.name,
    )
    new.build(shape)
    assign_in_order(norm, old.layer_norm)
    return new


def _vision_block(old: Any, shape: tuple[int | None, ...]) -> Layer:
    attention = SoftmaxAttention(
        old.num_heads,
        old.key_dim,
        dropout=old.attention_dropout,
        use_bias=old.use_mha_bias,
        dtype=old.dtype_policy,
    )
    new = TransformerEncoder(
        old.mlp_dim,
        attention=attention,
        dropout=old.dropout_rate,
        activation="gelu",
        layer_norm_epsilon=old.layer_norm_epsilon,
        normalize_first=True,
        use_bias=old.use_mlp_bias,
        name=old.name,
        dtype=old.dtype_policy,
    )
    new.build(shape)
    values = {}
    for name, x in by_name(old).items():
        theirs = next(key for key in VIT if name.startswith(f"{key}/"))
        values[VIT[theirs] + name.removeprefix(theirs)] = x
    assign(new, values)
    return new


def _copy(old: Layer) -> Layer:
    return build_like(type(old).from_config(old.get_config()), old)


ATTENDING: dict[tuple[str, str], Callable[[Any], Layer]] = {
    ("keras", "MultiHeadAttention"): _multi_head_attention,
    ("keras", "GroupedQueryAttention"): _group_query_attention,
    ("keras_cosattn", "TransformerEncoder"): _copy,
    ("keras_cosattn", "TransformerDecoder"): _copy,
    ("keras_hub", "TransformerEncoder"): _encoder,
    ("keras_hub", "ViTEncoder"): _vision_encoder,
}
"""Package and class of an attention layer or a block, to the function that returns its equal."""

DECODERS: dict[tuple[str, str], Callable[[Any], Layer]] = {
    ("keras_hub", "TransformerDecoder"): _decoder,
    ("keras_hub", "LlamaTransformerDecoder"): llama_decoder,
    ("keras_hub", "MistralTransformerDecoder"): llama_decoder,
    ("keras_hub", "QwenTransformerDecoder"): llama_decoder,
    ("keras_hub", "Qwen3TransformerDecoder"): llama_decoder,
    ("keras_hub", "GemmaDecoderBlock"): gemma_decoder,
    ("keras_hub", "Gemma3DecoderBlock"): gemma3_decoder,
}
"""The same for the blocks of causal models. All of a model's are replaced, so that it streams."""

EMBEDDINGS: dict[tuple[str, str], Callable[[Any], Layer]] = {
    ("keras_hub", "PositionEmbedding"): _position_embedding,
}
"""The same for the other layers of causal models that depend on positions."""


def equivalent_of(layer: Layer) -> Callable[[Any], Layer] | None:
    """Return the function for a layer that attends; `None` for another layer."""
    if isinstance(layer, Attention):
        return _copy
    return {**ATTENDING, **DECODERS}.get(class_of(layer))


def class_of(layer: Layer) -> tuple[str, str]:
    """Return the package and the class of a layer, as the tables have them."""
    return type(layer).__module__.split(".")[0], type(layer).__name__
