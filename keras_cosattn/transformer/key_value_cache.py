"""Softmax attention with a cache of keys and values, in the format of KerasHub.

A cache is a tensor `(b, 2, n, hk, d)`: the keys and the values of n steps.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_cosattn.attention import Attention, SoftmaxAttention
from keras_cosattn.ops import timesteps


def initial_cache(layer: SoftmaxAttention, batch_size: Any, steps: int) -> Any:
    """Return an empty cache of `steps` steps, zeros of shape `(b, 2, steps, hk, d)`."""
    _check_layer(layer)
    shape = (batch_size, 2, steps, layer.num_key_value_heads, layer.key_dim)
    return ops.zeros(shape, layer.compute_dtype)


def attend(
    layer: Attention,
    query: Any,
    value: Any,
    cache: Any,
    index: Any,
    allowed: Any,
    query_start: Any,
    training: bool | None,
) -> tuple[Any, Any]:
    """Attend to the steps in a cache.

    Args:
        layer: A built `SoftmaxAttention`.
        query: Tensor `(b, t, m)`.
        value: Tensor `(b, s, m')`, whose keys and values are written to the cache. It is not read
            if `index` is None.
        cache: Tensor `(b, 2, n, hk, d)`.
        index: Integer or scalar tensor, the slot for the first step of `value`. None leaves the
            cache as it is.
        allowed: Boolean tensor, broadcastable to `(b, h, t, n)`, or None.
        query_start: Integer or scalar tensor, the position of the first query.
        training: Boolean, whether to apply dropout.

    Returns:
        The outputs `(b, t, m)` and the new cache.
    """
    layer = _check_layer(layer)
    q = layer._queries(query)
    keys, values = cache[:, 0], cache[:, 1]
    if index is not None:
        keys = _write(keys, layer._keys(value), index)
        values = _write(values, layer.value_dense(value), index)
        cache = ops.stack((keys, values), axis=1)
    positions = query_start + ops.arange(ops.shape(query)[1], dtype="int32")
    slots = ops.arange(ops.shape(keys)[1], dtype="int32")
    positions, slots = ops.expand_dims(positions, 0), ops.expand_dims(slots, 0)
    q, k, bias = layer._encode_positions(q, keys, positions, slots)
    allowed = layer._within_window(allowed, positions, slots)
    mixed = layer._mix_pairs(q, k, values, allowed, bias, training)
    return layer._project_back(query, mixed), cache


def allowed_pairs(
    layer: Attention,
    queries: Any,
    cache: Any,
    padding_mask: Any = None,
    attention_mask: Any = None,
    causal_from: Any = None,
) -> Any:
    """Return which slots of a cache each query sees, broadcastable to `(b, h, t, n)`, or None.

    Args:
        layer: The layer, for the error.
        queries: t.
        cache: Tensor `(b, 2, n, hk, d)`.
        padding_mask: Boolean `(b, n)`, True for slots with valid steps, or `(b, 1)` for all slots.
        attention_mask: Boolean `(b, t, n)`.
        causal_from: Integer or scalar tensor, the slot of the first query. If it is given, a query
            sees no slot after its own.
    """
    n = cache.shape[2]
    allowed = None
    if padding_mask is not None:
        if None not in (n, padding_mask.shape[1]) and padding_mask.shape[1] not in (1, n):
            raise ValueError(
                f"{layer.path}: with a cache of keys and values, a padding mask must cover all its "
                f"slots, (batch, {n}). Received: a mask of shape {tuple(padding_mask.shape)}"
            )
        allowed = ops.expand_dims(padding_mask, (1, 2))
    if attention_mask is not None:
        attention_mask = ops.cast(ops.convert_to_tensor(attention_mask), "bool")
        allowed = timesteps.combine(allowed, ops.expand_dims(attention_mask, 1))
    if causal_from is not None:
        rows = ops.expand_dims(causal_from + ops.arange(queries, dtype="int32"), 1)
        past = rows >= ops.arange(ops.shape(cache)[2], dtype="int32")
        allowed = timesteps.combine(allowed, ops.expand_dims(past, (0, 1)))
    return allowed


def step_mask(mask: Any, index: Any, steps: Any) -> Any:
    """Return the mask of `steps` steps from the slot `index`, of a mask `(b, n)` of all slots.

    A mask `(b, 1)` is returned as it is. Without an index the steps have no slots: None.
    """
    if index is None:
        return None
    if mask.shape[1] == 1:
        return mask
    return ops.slice(mask, (0, index), (ops.shape(mask)[0], steps))


def _write(cache, new, index):
    return ops.slice_update(cache, (0, index, 0, 0), ops.cast(new, cache.dtype))


def _check_layer(layer: Attention) -> SoftmaxAttention:
    if not isinstance(layer, SoftmaxAttention):
        raise ValueError(
            f"{layer.path} ({type(layer).__name__}) has no cache of keys and values. Its cache is "
            "the state of its stream, a dict: start with the block's `initial_self_attention_cache`"
            " or `initial_cross_attention_cache`."
        )
    if layer.value_dim != layer.key_dim:
        raise ValueError(
            f"{layer.path}: keys and values can share one cache only if they have the same size. "
            f"Received: key_dim={layer.key_dim}, value_dim={layer.value_dim}"
        )
    return layer
