"""How a decoder attends: to its own steps and to an encoder's output, with and without caches."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_cosattn import scope
from keras_cosattn.attention import Attention
from keras_cosattn.attention.constant_values import check_queries_are_independent
from keras_cosattn.transformer import key_value_cache, state_cache
from keras_cosattn.transformer.decoder_checks import check_memory_call, check_state_call


def attend_to_self(
    layer: Attention,
    x: Any,
    cache: Any,
    index: Any,
    *,
    mask: Any,
    attention_mask: Any,
    use_causal_mask: bool,
    segment_ids: Any,
    training: bool | None,
) -> tuple[Any, Any]:
    """Return the outputs of self-attention `(b, t, m)` and the new cache, or None without one.

    Args:
        layer: A built attention layer.
        x: Tensor `(b, t, m)`.
        cache: None, a tensor of keys and values, or a dict, the state of a stream.
        index: Integer or scalar tensor, the number of steps before `x`, or None.
        mask: Boolean tensor `(b, t)`, or `(b, n)` with a cache of keys and values.
        attention_mask, use_causal_mask, segment_ids, training: As in a call of the decoder.
    """
    if isinstance(cache, dict):
        check_state_call(layer, index, attention_mask, use_causal_mask)
        return state_cache.attend(layer, x, cache, index, mask, training)
    if cache is not None:
        start = 0 if index is None else index
        allowed = key_value_cache.allowed_pairs(
            layer, ops.shape(x)[1], cache, mask, attention_mask, start if use_causal_mask else None
        )
        return key_value_cache.attend(layer, x, x, cache, index, allowed, start, training)
    outputs = layer(
        x,
        x,
        query_mask=None if use_causal_mask else mask,  # a causal call takes one mask for both
        value_mask=mask,
        attention_mask=attention_mask,
        use_causal_mask=use_causal_mask,
        segment_ids=segment_ids,
        training=training,
    )
    return outputs, None


def attend_to_encoder(
    layer: Attention,
    x: Any,
    encoded: Any,
    cache: Any,
    index: Any,
    *,
    query_mask: Any,
    query_start: Any,
    mask: Any,
    attention_mask: Any,
    training: bool | None,
) -> tuple[Any, Any]:
    """Return the outputs of cross-attention `(b, t, m)` and the new cache, or None without one.

    Args:
        layer: A built attention layer.
        x: Tensor `(b, t, m)`.
        encoded: Tensor `(b, s, m')`, the encoder's output.
        cache: None, a tensor of keys and values, or a dict, the state of a stream.
        index: Integer or scalar tensor, where `encoded` is read into the cache. None leaves it.
        query_mask: Boolean tensor `(b, t)` or None. Read without a cache only.
        query_start: Integer or scalar tensor, the position of the first query. None is 0.
        mask: Boolean tensor `(b, s)` or None.
        attention_mask, training: As in a call of the decoder.
    """
    if isinstance(cache, dict):
        check_memory_call(layer, index, attention_mask)
        if index is not None:
            cache = state_cache.read_memory(layer, x.shape[-1], encoded, mask)
        return state_cache.attend_to_memory(layer, x, cache, training), cache
    if cache is not None:
        start = 0 if query_start is None else query_start
        allowed = key_value_cache.allowed_pairs(layer, ops.shape(x)[1], cache, mask, attention_mask)
        return key_value_cache.attend(layer, x, encoded, cache, index, allowed, start, training)
    stream = scope.current()
    if stream is not None and stream.constants is None:  # each call gets the whole `encoded`
        check_queries_are_independent(layer)
        stream = None
    with scope.opened(stream):
        outputs = layer(
            x,
            encoded,
            query_mask=query_mask,
            value_mask=mask,
            attention_mask=attention_mask,
            training=training,
        )
    return outputs, None
