"""An attention mask as factors: padding of the keys, or a mask for each pair."""

from __future__ import annotations

from typing import Any

from keras import ops


def factor(layer: Any, mask: Any, query_shape: Any, value_shape: Any) -> tuple[Any, Any]:
    """Return an attention mask as `(rest, padding)`, of which at least one is None.

    Args:
        layer: The `Attention` that is called.
        mask: Boolean or integer, broadcastable to `(b, h, t, s)`; of rank 3 it is `(b, t, s)`.
        query_shape: `(b, t, m)`.
        value_shape: `(b, s, m')`.

    Returns:
        The boolean mask, and the boolean padding `(b or 1, s)` that is the same for all queries.

    Raises:
        ValueError: If the shape does not fit, or the layer takes no mask that differs from query
            to query.
    """
    if mask is None:
        return None, None
    mask = ops.cast(ops.convert_to_tensor(mask), "bool")
    t, s = query_shape[1], value_shape[1]
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
    if shape[1] == 1 and shape[2] == 1:
        return None, ops.reshape(mask, (-1, mask.shape[-1]))
    if not layer.accepts_attention_mask:
        raise ValueError(
            f"{layer.name}: a linear layer cannot take an `attention_mask` that differs from "
            f"query to query. Received: attention_mask.shape={tuple(mask.shape)}. Use (b, 1, s) "
            "for padding, `use_causal_mask=True`, or `segment_ids`; or SoftmaxAttention, "
            "which takes any mask."
        )
    return mask, None
