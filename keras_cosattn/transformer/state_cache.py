"""The state of a layer's stream as the cache of a block.

A cache is a dict of tensors whose first axis is the batch, so samplers can carry, repeat and
reorder it. In self-attention it also counts the steps that were read.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
from keras import ops

from keras_cosattn import limits, scope
from keras_cosattn.attention import (
    Attention,
    LinearAttention,
    PerformerAttention,
)

STEPS = "steps"
"""The name of the count of steps, int32 `(b,)`."""


@dataclasses.dataclass(frozen=True)
class HeldCache:
    """A cache that Keras passes to `call` as it is. It would cast tensors to the compute dtype."""

    tensors: dict[str, Any]


def hold(cache: Any) -> Any:
    """Return a `HeldCache` of a dict of tensors; a symbolic dict and anything else as it is."""
    if not isinstance(cache, dict):
        return cache
    if any(isinstance(x, keras.KerasTensor) for x in cache.values()):
        return cache
    return HeldCache(cache)


def release(cache: Any) -> Any:
    """Return what `hold` was given."""
    return cache.tensors if isinstance(cache, HeldCache) else cache


def initial_cache(layer: Attention, batch_size: Any, width: int) -> dict[str, Any]:
    """Return the cache of a self-attention layer before its first step.

    Args:
        layer: A built attention layer that can stream.
        batch_size: b.
        width: m, the width of the layer's inputs.
    """
    x = ops.zeros((batch_size, 1, width), layer.compute_dtype)
    with scope.opened(scope.Stream()) as stream:
        layer(x, x, use_causal_mask=True)
    state = {name: ops.zeros_like(x) for name, x in stream.next_state.items()}
    return {**state, STEPS: ops.zeros((batch_size,), "int32")}


def attend(
    layer: Attention, x: Any, cache: dict[str, Any], index: Any, mask: Any, training: bool | None
) -> tuple[Any, dict[str, Any]]:
    """Attend from the next steps to themselves and to all steps before them.

    Args:
        layer: A built attention layer that can stream.
        x: Tensor `(b, t, m)`, the next steps.
        cache: What `initial_cache` or the last call returned.
        index: Integer or scalar tensor, the number of steps before `x`.
        mask: Boolean tensor `(b, t)`, True for valid steps, or None.
        training: Boolean, whether to apply dropout.

    Returns:
        The outputs `(b, t, m)` and the new cache.

    Raises:
        ValueError: If the cache is of another layer, or if it is known that `index` is not the
            number of steps that it has read, or that it is full.
    """
    steps = _steps_read(layer, cache)
    _check_index(layer, index, steps)
    with scope.opened(scope.Stream(cache)) as stream:
        outputs = layer(x, x, value_mask=mask, use_causal_mask=True, training=training)
    outputs, state = limits.check_end(outputs, stream.next_state, stream.limits, layer.path)
    return outputs, {**state, STEPS: steps + ops.cast(ops.shape(x)[1], "int32")}


def initial_memory(
    layer: Attention, batch_size: Any, width: int, value_width: int
) -> dict[str, Any]:
    """Return the cache of a cross-attention layer before it has read an encoder's output."""
    encoded = ops.zeros((batch_size, 1, value_width), layer.compute_dtype)
    return {name: ops.zeros_like(x) for name, x in read_memory(layer, width, encoded, None).items()}


def read_memory(layer: Attention, width: int, encoded: Any, mask: Any) -> dict[str, Any]:
    """Return the cache of a cross-attention layer that has read an encoder's output.

    Args:
        layer: A built attention layer.
        width: m, the width of the layer's queries.
        encoded: Tensor `(b, s, m')`, the encoder's output.
        mask: Boolean tensor `(b, s)`, True for valid steps, or None.
    """
    keeps_sums = isinstance(layer, LinearAttention | PerformerAttention)
    if not keeps_sums or layer.position is not None or layer.conv_size is not None:
        raise ValueError(
            f"{layer.path} ({type(layer).__name__}) has no state that could be the cache of "
            "cross-attention. Use SoftmaxAttention, or LinearAttention or PerformerAttention "
            "without `position` and `conv_size`, as `cross_attention`; or call the block without "
            "caches."
        )
    queries = ops.zeros((*ops.shape(encoded)[:2], width), encoded.dtype)
    with scope.opened(scope.Stream()) as stream:
        layer(queries, encoded, value_mask=mask, use_causal_mask=True)
    return stream.next_state


def attend_to_memory(
    layer: Attention, query: Any, memory: dict[str, Any], training: bool | None
) -> Any:
    """Attend to what `read_memory` returned, `(b, t, m)`, without a change of it."""
    return layer.attend_to_state(query, scope.Stream(memory), training)


def _steps_read(layer, cache):
    if STEPS not in cache:
        raise ValueError(
            f"{layer.path} ({type(layer).__name__}): `self_attention_cache` must have '{STEPS}', "
            "the number of steps that it has read. Start with `initial_self_attention_cache`. "
            f"Received: self_attention_cache with {list(cache)}"
        )
    return cache[STEPS]


def _check_index(layer, index, steps):
    known = limits.known_value(index), limits.known_value(steps)
    if any(value is None for value in known):
        return
    index, steps = known
    if (steps != index).any():
        raise ValueError(
            f"{layer.path} ({type(layer).__name__}): its state reads each step once and in order. "
            f"Received: a cache that has read {steps.max()} steps, with "
            f"self_attention_cache_update_index={index}"
        )
