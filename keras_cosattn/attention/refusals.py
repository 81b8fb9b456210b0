"""Errors for what an attention layer cannot do, each with its reason."""

from __future__ import annotations

from typing import Any

from keras_cosattn import scope
from keras_cosattn.attention.constant_values import attends_to_constants
from keras_cosattn.layout import CallLayout

USES = {
    "both ways": "look both ways (without `use_causal_mask=True`)",
    "causal": "be causal (`use_causal_mask=True`)",
    "cross": "attend from queries to other values",
    "packed": "pack sequences (`segment_ids`)",
    "stream": "stream",
}


def refuse(layer: Any, use: str) -> None:
    """Raise ValueError with the reason if `layer.cannot` has the use."""
    if use in layer.cannot:
        raise ValueError(
            f"{layer.path or layer.name} ({type(layer).__name__}) cannot {USES[use]}: "
            f"{layer.cannot[use]}"
        )


def check_use(layer: Any, layout: CallLayout, return_attention_scores: bool) -> None:
    """Raise ValueError if the layer cannot be called in this way."""
    refuse(layer, "causal" if layout.causal else "both ways")
    if layout.segments is not None:
        refuse(layer, "packed")
    stream = scope.current()
    if stream is None:
        return
    reads_constants = attends_to_constants(stream, layout.causal)
    reasons = {
        "it looks ahead: it is called without `use_causal_mask=True`. (If it attends to an "
        "encoder, name the encoder's inputs in `Streaming(model, constants=...)`)": (
            not layout.causal and not reads_constants
        ),
        "`attention_mask` would have to cover the past": layout.attention_mask is not None,
        "`segment_ids` are not needed: reset the stream instead": layout.segments is not None,
        "`return_attention_scores` would need the whole past": return_attention_scores,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"{layer.path} ({type(layer).__name__}) cannot stream: {reason}.")
    if not reads_constants:
        refuse(layer, "stream")


def check_query_key_norm(layer: Any) -> None:
    """Raise ValueError if the layer has `use_query_key_norm` and cannot have it."""
    if layer.use_query_key_norm and not layer.accepts_query_key_norm:
        raise ValueError(
            f"{type(layer).__name__}: `use_query_key_norm` needs one projection that makes all "
            "queries and another one that makes all keys. This layer has one for both, or some for "
            "each of its levels. Use SoftmaxAttention or LinearAttention. "
            f"Received: use_query_key_norm={layer.use_query_key_norm!r}"
        )


def check_position(layer: Any, position: Any) -> None:
    """Raise ValueError unless the layer can use the position object, or there is none."""
    if position is None or getattr(position, "kind", None) in layer.accepts_positions:
        return
    if not layer.accepts_positions:
        can = "None: this layer has no scores or features that it could change"
    else:
        can = f"an object of keras_cosattn.positions of kind {layer.accepts_positions}"
    raise ValueError(
        f"{type(layer).__name__}: `position` must be {can}. Received: position={position!r}"
    )
