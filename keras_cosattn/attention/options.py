"""The types of the arguments that all attention layers share, for type checkers."""

from __future__ import annotations

from typing import Any

from keras_cosattn.layer_options import LayerOptions


class AttentionOptions(LayerOptions, total=False):
    """The keyword arguments of `Attention` beside `num_heads` and `key_dim`."""

    value_dim: int | None
    dropout: float
    use_bias: bool
    output_shape: int | tuple[int, ...] | None
    attention_axes: int | tuple[int, ...] | None
    sliding_window: int | None
    flash_attention: bool | None
    kernel_initializer: Any
    bias_initializer: Any
    kernel_regularizer: Any
    bias_regularizer: Any
    kernel_constraint: Any
    bias_constraint: Any
    use_gate: bool
    seed: int | None
    num_key_value_heads: int | None
    position: Any
    use_query_key_norm: bool
    query_key_norm_epsilon: float


class SumsOptions(AttentionOptions, total=False):
    """The same for the linear layers."""

    conv_size: int | None


class DecayedOptions(AttentionOptions, total=False):
    """The same for the layers whose sums fade."""

    norm_epsilon: float
    chunk_size: int | None
