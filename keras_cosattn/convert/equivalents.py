"""Layers of Keras, KerasHub and this package as equal layers of this package.

Each function takes a built layer and returns a built layer with the same weights, whose outputs
are equal. The tables at the end name them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras.layers import Layer

from keras_cosattn.attention import Attention, SoftmaxAttention
from keras_cosattn.convert.weights import arrays_of, assign
from keras_cosattn.positions import PositionEmbedding, Rotary
from keras_cosattn.transformer import TransformerDecoder, TransformerEncoder


class CannotConvertError(ValueError):
    """The reason why a layer has no equal in this package."""


def _build_like(new: Layer, old: Layer, values: Mapping[str, np.ndarray] | None = None) -> Layer:
    """Build a layer for the inputs of another one, and give it weights: its own, in their order."""
    config = old.get_build_config()
    shapes = config.get("shapes_dict") or {"input_shape": config["input_shape"]}
    with_shapes = [shape for shape in shapes.values() if shape is not None]
    new.build(*map(tuple, with_shapes))
    if values is None:
        new.set_weights(old.get_weights())
    else:
        assign(new, values)
    return new


def _multi_head_attention(old: Any) -> Layer:
    return _build_like(SoftmaxAttention.from_config(old.get_config()), old)


def _group_query_attention(old: Any) -> Layer:
    config = old.get_config()
    for theirs, ours in (("num_query_heads", "num_heads"), ("head_dim", "key_dim")):
        config[ours] = config.pop(theirs)
    return _build_like(SoftmaxAttention.from_config(config), old, arrays_of(old))


def _encoder(old: Any) -> Layer:
    return _build_like(TransformerEncoder.from_config(old.get_config()), old)


def _decoder(old: Any) -> Layer:
    config = old.get_config()
    shapes = [config.pop(f"{name}_sequence_shape", None) for name in ("decoder", "encoder")]
    new = TransformerDecoder.from_config(config)
    new.build(*(shape for shape in shapes if shape is not None))
    new.set_weights(old.get_weights())
    return new


def _position_embedding(old: Any) -> Layer:
    config = {**old.get_config(), "add_to_inputs": False}
    return _build_like(PositionEmbedding.from_config(config), old)


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
    norm.set_weights(old.layer_norm.get_weights())
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
    for name, x in arrays_of(old).items():
        theirs = next(key for key in VIT if name.startswith(f"{key}/"))
        values[VIT[theirs] + name.removeprefix(theirs)] = x
    assign(new, values)
    return new


LLAMA = {
    "self_attention_layernorm/scale": "self_attention_norm/scale",
    "feedforward_layernorm/scale": "feedforward_norm/scale",
    "feedforward_intermediate_dense/kernel": "feedforward_intermediate/kernel",
    "feedforward_gate_dense/kernel": "feedforward_gate/kernel",
    "feedforward_output_dense/kernel": "feedforward_output/kernel",
}
"""The weights of KerasHub's Llama, Mistral and Qwen decoders, and their names in our blocks."""


def _llama_decoder(old: Any) -> Layer:
    """Llama 1 to 3, Mistral and Qwen: positions rotate halves, heads are grouped, a gate."""
    values = {LLAMA.get(name, name): x for name, x in arrays_of(old).items()}
    _, heads, size = values["self_attention/query/kernel"].shape
    biased = "self_attention/query/bias" in values  # Qwen has biases but for the output
    # The Llama of KerasHub 0.32 reads its `rope_position_scaling_factor` nowhere.
    scaling = getattr(old, "rope_scaling_factor", 1.0)
    adjustment = None
    if getattr(old, "rope_frequency_adjustment_factor", None) is not None:
        adjustment = (
            old.rope_frequency_adjustment_factor,
            old.rope_low_freq_factor,
            old.rope_high_freq_factor,
            old.rope_pretraining_sequence_length,
        )
    window = getattr(old, "sliding_window", None)
    if getattr(old, "use_sliding_window_attention", False):
        window = old.sliding_window_size
    attention = SoftmaxAttention(
        heads,
        size,
        num_key_value_heads=old.num_key_value_heads,
        use_bias=biased,
        sliding_window=window,
        position=Rotary(
            old.rope_max_wavelength,
            interleaved=False,
            scaling_factor=scaling,
            frequency_adjustment=adjustment,
        ),
        dropout=old.dropout,
        dtype=old.dtype_policy,
    )
    if biased:
        values["self_attention/attention_output/bias"] = np.zeros(
            values["self_attention/attention_output/kernel"].shape[-1], "float32"
        )
    return _build_like(_gated_decoder(old, attention, old.intermediate_dim), old, values)


GEMMA = {
    "pre_attention_norm/scale": "self_attention_norm/scale",
    "pre_ffw_norm/scale": "feedforward_norm/scale",
    "ffw_gating/kernel": "feedforward_gate/kernel",
    "ffw_gating_2/kernel": "feedforward_intermediate/kernel",
    "ffw_linear/kernel": "feedforward_output/kernel",
}
"""The weights of KerasHub's Gemma decoder, and their names in our blocks."""


def _gemma_decoder(old: Any) -> Layer:
    """Gemma 1: as Llama, with a GELU gate, and scales that are stored less one."""
    for option in ("logit_soft_cap", "use_post_ffw_norm", "use_post_attention_norm"):
        if getattr(old, option):
            raise CannotConvertError(f"it has `{option}`, which no block of this package has")
    attention = SoftmaxAttention(
        old.num_query_heads,
        old.head_dim,
        num_key_value_heads=old.num_key_value_heads,
        use_bias=False,
        sliding_window=old.sliding_window_size if old.use_sliding_window_attention else None,
        position=Rotary(interleaved=False),
        dropout=old.dropout,
        dtype=old.dtype_policy,
    )
    values = {}
    for name, x in arrays_of(old).items():
        name = GEMMA.get(name, name).replace("attention/", "self_attention/", 1)
        if name.endswith("norm/scale"):
            x = x + 1
        elif name.startswith("self_attention/") and "attention_output" not in name:
            x = x.transpose(1, 0, 2)  # (heads, width, size) to (width, heads, size)
        values[name] = x
    block = _gated_decoder(old, attention, old.intermediate_dim // 2, _gelu_approximate)
    return _build_like(block, old, values)


def _gated_decoder(old, attention, intermediate_dim, activation=None):
    return TransformerDecoder(
        intermediate_dim,
        attention=attention,
        dropout=old.dropout,
        activation=activation or old.activation,
        layer_norm_epsilon=old.layer_norm_epsilon,
        normalize_first=True,
        normalization="rms",
        use_gated_activation=True,
        use_bias=False,
        name=old.name,
        trainable=old.trainable,
        dtype=old.dtype_policy,
    )


@keras.saving.register_keras_serializable("keras_cosattn", "gelu_approximate")
def _gelu_approximate(x: Any) -> Any:
    return keras.activations.gelu(x, approximate=True)


def _copy(old: Layer) -> Layer:
    return _build_like(type(old).from_config(old.get_config()), old)


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
    ("keras_hub", "LlamaTransformerDecoder"): _llama_decoder,
    ("keras_hub", "MistralTransformerDecoder"): _llama_decoder,
    ("keras_hub", "QwenTransformerDecoder"): _llama_decoder,
    ("keras_hub", "GemmaDecoderBlock"): _gemma_decoder,
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
