"""Cross-attention in a stream, to values that are the same at every step."""

from __future__ import annotations

import dataclasses
from typing import Any

from keras import ops

from keras_cosattn.scope import Stream


def attends_to_constants(stream: Stream | None, use_causal_mask: bool) -> bool:
    """Whether a call attends to the constant values of a stream, such as an encoder's outputs.

    In a stream every call that is not causal does.
    """
    return stream is not None and stream.constants is not None and not use_causal_mask


def check_queries_are_independent(layer: Any) -> None:
    """Raise ValueError if the output at one query depends on its position or on other queries."""
    by_position = layer.position is not None or layer.sliding_window is not None
    if by_position or not layer.queries_are_independent:
        raise ValueError(
            f"{layer.path} ({type(layer).__name__}) cannot stream in cross-attention: its outputs "
            "depend on the positions of the queries or on other queries. Use SoftmaxAttention, "
            "LinearAttention or PerformerAttention, without `position`, `sliding_window` and "
            "`conv_size`, as `cross_attention`."
        )


def attend_to_constants(layer: Any, inputs: Any, stream: Stream, training: bool | None) -> Any:
    """Return what each query gets of the constant values, `(b, t, h, e)`.

    The state holds their keys `(b, s, hk, d)`, their values `(b, s, hk, e)` and their mask. A
    stream that writes constants computes it from the call's values; one that reads them ignores
    the call's values.

    Raises:
        ValueError: If the output of the layer at one query depends on its position, or on others.
    """
    check_queries_are_independent(layer)
    layout = inputs.layout
    q = layer._queries(inputs.query)
    b, s = ops.shape(inputs.value)[:2]
    heads, dtype = layer.num_key_value_heads, layer.compute_dtype
    slot, state = stream.read(
        layer,
        b,
        key=((s, heads, layer.key_dim), dtype),
        value=((s, heads, layer.value_dim), dtype),
        valid=((s,), layer.sum_dtype),
    )
    if stream.constants == "write":
        mask = ops.ones((b, s), "bool") if layout.key_mask is None else layout.key_mask
        state = {
            "key": layer._keys(inputs.key),
            "value": layer.value_dense(inputs.value),
            "valid": ops.cast(mask, layer.sum_dtype),
        }
    stream.constant_slots.add(slot)
    stream.write(slot, state)
    layout = dataclasses.replace(
        layout, key_steps=ops.shape(state["key"])[1], key_mask=state["valid"] > 0.5
    )
    return layer._attend(q, state["key"], state["value"], layout, training, False)[0]
