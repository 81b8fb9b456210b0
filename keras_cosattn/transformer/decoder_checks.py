"""Errors for calls of a decoder whose arguments do not fit together."""

from __future__ import annotations

from typing import Any

from keras_cosattn import scope
from keras_cosattn.attention import Attention

WITHOUT_ENCODER = (
    "was built without an `encoder_sequence`, so it has no cross-attention. Give the encoder's "
    "output in the first call."
)


def check_call(
    name: str,
    has_encoder: bool,
    encoder_sequence: Any,
    self_cache: Any,
    self_index: Any,
    cross_cache: Any,
    cross_index: Any,
) -> None:
    """Check that the encoder's output and the caches are those that the decoder was built for."""
    if encoder_sequence is not None and not has_encoder:
        raise ValueError(f"{name} {WITHOUT_ENCODER}")
    if encoder_sequence is None and has_encoder:
        raise ValueError(
            f"{name} was built with an `encoder_sequence`, so its cross-attention needs one in "
            "every call. Received: encoder_sequence=None"
        )
    for part, cache, index in (
        ("self_attention", self_cache, self_index),
        ("cross_attention", cross_cache, cross_index),
    ):
        if cache is None and index is not None:
            raise ValueError(
                f"{name}: `{part}_cache_update_index` is for a call with `{part}_cache`. "
                f"Received: {part}_cache=None, {part}_cache_update_index={index}"
            )
    if (cross_cache is not None) != (has_encoder and self_cache is not None):
        raise ValueError(
            f"{name}: a decoder with an encoder takes `self_attention_cache` and "
            "`cross_attention_cache`, or none of them. One without an encoder takes only the "
            f"first. Received: self_attention_cache={self_cache}, "
            f"cross_attention_cache={cross_cache}"
        )
    if self_cache is not None and scope.current() is not None:
        raise ValueError(
            f"{name}: inside a stream the state is that of the stream. Leave out "
            "`self_attention_cache` and `cross_attention_cache`."
        )


def check_packing(
    name: str, segment_ids: Any, encoder_sequence: Any, cache: Any, encoder_attention_mask: Any
) -> None:
    """Check that packed sequences have a meaning in this call."""
    if segment_ids is None:
        return
    if cache is not None:
        raise ValueError(
            f"{name}: `segment_ids` have no meaning with a cache, which is of one sequence. Begin "
            "the next sequence with a new cache."
        )
    if encoder_sequence is not None and encoder_attention_mask is None:
        raise ValueError(
            f"{name}: `segment_ids` do not say which part of the encoder's output belongs to "
            "which packed sequence. Give an `encoder_attention_mask` (batch, decoder steps, "
            "encoder steps), with SoftmaxAttention as `cross_attention`."
        )


def check_state_call(
    layer: Attention, index: Any, attention_mask: Any, use_causal_mask: bool
) -> None:
    """Check that a self-attention layer can go on from the state of a stream."""
    reasons = {
        "needs `self_attention_cache_update_index`, the number of steps before": index is None,
        "is of the past: leave `use_causal_mask` True": not use_causal_mask,
        "keeps no single steps for a `decoder_attention_mask`": attention_mask is not None,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(
                f"{layer.path} ({type(layer).__name__}): a `self_attention_cache` that is the "
                f"state of a stream {reason}."
            )


def check_memory_call(layer: Attention, index: Any, attention_mask: Any) -> None:
    """Check that a cross-attention layer can go on from what it has read."""
    if attention_mask is not None:
        raise ValueError(
            f"{layer.path} ({type(layer).__name__}): a `cross_attention_cache` that is the state "
            "of a stream keeps no single steps for an `encoder_attention_mask`. Use "
            "`encoder_padding_mask`."
        )
    if isinstance(index, int) and index != 0:
        raise ValueError(
            f"{layer.path} ({type(layer).__name__}): `cross_attention_cache_update_index` must be "
            "0, to read the whole encoder's output, or None, to use the cache as it is. "
            f"Received: cross_attention_cache_update_index={index}"
        )
