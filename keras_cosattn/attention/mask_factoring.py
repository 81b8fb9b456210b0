"""An attention mask as factors: padding, causality, or a mask for each pair."""

from __future__ import annotations

import dataclasses
from typing import Any

from keras import ops

from keras_cosattn import limits
from keras_cosattn.attention.axes import Folding
from keras_cosattn.attention.known_masks import known_factors


@dataclasses.dataclass(frozen=True)
class Factors:
    """The factors of an attention mask. None stands for all True.

    Args:
        query_mask: Boolean `(b or 1, t)`.
        key_mask: Boolean `(b or 1, s)`.
        causal: Boolean, whether query i sees keys j <= i only.
        attention_mask: Boolean, broadcastable to `(b, h, t, s)`.
    """

    query_mask: Any = None
    key_mask: Any = None
    causal: bool = False
    attention_mask: Any = None


def factor(
    layer: Any, mask: Any, query_shape: Any, value_shape: Any, folding: Folding | None = None
) -> Factors:
    """Return the factors of an attention mask.

    A mask `(b, 1, s)` is padding of the keys. A layer that takes no mask for each pair takes one
    whose numbers are known if they are those of padding, or of padding times a lower triangle.

    Args:
        layer: The `Attention` that is called.
        mask: Boolean or integer, broadcastable to `(b, h, t, s)`; of rank 3 it is `(b, t, s)`.
        query_shape: `(b, t, m)`.
        value_shape: `(b, s, m')`.
        folding: How the inputs were folded to these shapes, and the mask has to be.

    Raises:
        ValueError: If the shape does not fit, or the layer takes no mask that differs from query
            to query.
    """
    if mask is None:
        return Factors()
    mask = ops.convert_to_tensor(mask)
    if folding is not None:
        mask = folding.fold_attention_mask(mask)
    shape = _check_shape(layer, mask, query_shape[1], value_shape[1])
    if shape[1] == 1 and shape[2] == 1:
        return Factors(key_mask=_as_bool(ops.reshape(mask, (-1, ops.shape(mask)[-1]))))
    if layer.accepts_attention_mask:
        return Factors(attention_mask=_as_bool(mask))
    known = limits.known_value(mask)
    found = None if known is None else known_factors(known)
    if found is None:
        raise ValueError(
            f"{layer.name}: a linear layer cannot take an `attention_mask` that differs from "
            f"query to query. Received: attention_mask.shape={tuple(mask.shape)}. Use (b, 1, s) "
            "for padding, `use_causal_mask=True`, or `segment_ids`; or SoftmaxAttention, "
            "which takes any mask. Padding times a lower triangle is taken where its numbers are "
            "known, which those of a tensor in a graph are not."
        )
    return Factors(found.query_mask, found.key_mask, found.causal)


def _check_shape(layer, mask, t, s):
    """The shape of the mask as `(b, h, t, s)`. Raises ValueError if it does not fit."""
    shape = (1,) * (4 - len(mask.shape)) + tuple(mask.shape)
    if len(mask.shape) == 3:
        shape = (shape[1], 1, *shape[2:])
    full = (layer.num_heads, t, s)
    if len(shape) > 4 or any(
        None not in (n, size) and n not in (1, size)
        for n, size in zip(shape[1:], full, strict=True)
    ):
        raise ValueError(
            f"{layer.name}: `attention_mask` must broadcast to (b, h, t, s) = "
            f"(b, {layer.num_heads}, {t}, {s}), a mask of rank 3 being (b, t, s). "
            f"Received: attention_mask.shape={tuple(mask.shape)}"
        )
    return shape


def _as_bool(mask):
    return ops.cast(mask, "bool")
