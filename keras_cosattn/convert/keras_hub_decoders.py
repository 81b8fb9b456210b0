"""KerasHub's decoders with rotary positions as equal blocks of this package.

Each function takes a built decoder and returns a built block with the same weights, whose outputs
are equal.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import ops
from keras.layers import Layer

from keras_cosattn.attention import SoftmaxAttention
from keras_cosattn.convert.weights import build_like, by_name, freeze_like
from keras_cosattn.positions import Rotary
from keras_cosattn.transformer import TransformerDecoder
from keras_cosattn.transformer.activations import gelu_approximate


class CannotConvertError(ValueError):
    """The reason why a layer has no equal in this package."""


LLAMA = {
    "self_attention/query_dense_layernorm/scale": "self_attention/query_norm/scale",
    "self_attention/key_dense_layernorm/scale": "self_attention/key_norm/scale",
    "self_attention_layernorm/scale": "self_attention_norm/scale",
    "feedforward_layernorm/scale": "feedforward_norm/scale",
    "feedforward_intermediate_dense/kernel": "feedforward_intermediate/kernel",
    "feedforward_gate_dense/kernel": "feedforward_gate/kernel",
    "feedforward_output_dense/kernel": "feedforward_output/kernel",
}
"""The weights of KerasHub's Llama, Mistral and Qwen decoders, and their names in our blocks."""


def llama_decoder(old: Any) -> Layer:
    """Llama 1 to 3, Mistral, Qwen 2 and 3: positions rotate halves, heads are grouped, a gate."""
    values = {LLAMA.get(name, name): x for name, x in by_name(old).items()}
    _, heads, size = values["self_attention/query/kernel"].shape
    biased = "self_attention/query/bias" in values  # Qwen 2 has biases but for the output
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
    window = getattr(old, "sliding_window", None) or getattr(old, "sliding_window_size", None)
    if not getattr(old, "use_sliding_window_attention", True):
        window = None
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
        use_query_key_norm="self_attention/query_norm/scale" in values,  # Qwen 3 has them
        query_key_norm_epsilon=getattr(old._self_attention_layer, "layer_norm_epsilon", 1e-6),
        dropout=old.dropout,
        dtype=old.dtype_policy,
    )
    if biased:
        values["self_attention/attention_output/bias"] = np.zeros(
            values["self_attention/attention_output/kernel"].shape[-1], "float32"
        )
    return build_like(_gated_decoder(old, attention, old.intermediate_dim), old, values)


GEMMA = {
    "pre_attention_norm/scale": "self_attention_norm/scale",
    "post_attention_norm/scale": "self_attention_output_norm/scale",
    "pre_ffw_norm/scale": "feedforward_norm/scale",
    "post_ffw_norm/scale": "feedforward_output_norm/scale",
    "ffw_gating/kernel": "feedforward_gate/kernel",
    "ffw_gating_2/kernel": "feedforward_intermediate/kernel",
    "ffw_linear/kernel": "feedforward_output/kernel",
}
"""The weights of KerasHub's Gemma decoders, and their names in our blocks."""


def gemma_decoder(old: Any) -> Layer:
    """Gemma 1 and 2: as Llama, with a GELU gate, and scales that are stored less one."""
    return _gemma_block(old, Rotary(interleaved=False), old.intermediate_dim // 2)


def gemma3_decoder(old: Any) -> Layer:
    """Gemma 3: as Gemma 2, with norms of queries and keys, and a wavelength for each layer."""
    calls = (node.arguments.kwargs for node in old._inbound_nodes)
    if old.use_bidirectional_attention or any(x.get("vision_mask") is not None for x in calls):
        raise CannotConvertError(
            "it attends to later steps, of a text (`use_bidirectional_attention`) or an image "
            "(`vision_mask`), and the decoder of this package would not"
        )
    if old.compute_dtype == "float16":
        raise CannotConvertError(
            "in float16 it cuts off numbers beyond the range, which no block of this package does. "
            "Use bfloat16"
        )
    position = Rotary(
        old.rope_wavelength, interleaved=False, scaling_factor=old.rope_scaling_factor
    )
    return _gemma_block(
        old,
        position,
        old.intermediate_dim // old.gate_dim_reduction,
        use_query_key_norm=old.use_query_key_norm,
        query_key_norm_epsilon=old.attention.layer_norm_epsilon,
    )


def _gemma_block(old, position, intermediate_dim, **options):
    if old.use_post_ffw_norm != old.use_post_attention_norm:
        raise CannotConvertError(
            "it normalises the output of one of its parts and not of the other: "
            f"use_post_attention_norm={old.use_post_attention_norm}, "
            f"use_post_ffw_norm={old.use_post_ffw_norm}"
        )
    attention = SoftmaxAttention(
        old.num_query_heads,
        old.head_dim,
        num_key_value_heads=old.num_key_value_heads,
        use_bias=False,
        sliding_window=old.sliding_window_size if old.use_sliding_window_attention else None,
        logit_soft_cap=old.logit_soft_cap,
        position=position,
        dropout=old.dropout,
        dtype=old.dtype_policy,
        **options,
    )
    weights = {
        GEMMA.get(name, name).replace("attention/", "self_attention/", 1): x
        for name, x in by_name(old).items()
    }
    values = {name: _gemma_value(name, ops.convert_to_numpy(x)) for name, x in weights.items()}
    if not old.attention.query_head_dim_normalize:
        # Its scores are divided by another root than that of the head size.
        divisor = old.hidden_dim // old.num_query_heads
        last = "query_norm/scale" if attention.use_query_key_norm else "query/kernel"
        name = f"self_attention/{last}"
        values[name] = values[name] * math.sqrt(old.head_dim / divisor)
    block = _gated_decoder(
        old, attention, intermediate_dim, gelu_approximate, old.use_post_ffw_norm
    )
    build_like(block, old, values)
    freeze_like(block, weights)
    return block


def _gemma_value(name, x):
    """A weight of KerasHub's Gemma as our blocks have it."""
    if name.endswith("norm/scale"):
        return x + 1
    if name.startswith("self_attention/") and "attention_output" not in name:
        return x.transpose(1, 0, 2)  # (heads, width, size) to (width, heads, size)
    return x


def _gated_decoder(old, attention, intermediate_dim, activation=None, normalize_outputs=False):
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
        normalize_outputs=normalize_outputs,
        name=old.name,
        trainable=old.trainable,
        dtype=old.dtype_policy,
    )
