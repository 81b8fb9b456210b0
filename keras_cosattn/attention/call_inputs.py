"""The arguments of one call of an attention layer, checked and read into a layout."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from keras import ops

from keras_cosattn import limits, scope
from keras_cosattn.attention.constant_values import attends_to_constants
from keras_cosattn.attention.mask_factoring import factor
from keras_cosattn.layout import CallLayout, StepOrder
from keras_cosattn.ops import arrays, timesteps


@dataclasses.dataclass(frozen=True)
class CallInputs:
    """The tensors of a call and their layout.

    Args:
        query: `(b, t, m)`.
        key: `(b, s, m'')`.
        value: `(b, s, m')`.
        layout: A `CallLayout`.
        order: The `StepOrder` that has been applied to the tensors and the layout.
    """

    query: Any
    key: Any
    value: Any
    layout: CallLayout
    order: StepOrder = dataclasses.field(default_factory=StepOrder)

    @property
    def is_empty(self) -> bool:
        """Whether it is known that there is no example, no query or no key."""
        return 0 in (*self.query.shape[:2], *self.value.shape[:2])

    def zero_masked(self) -> CallInputs:
        """Return the inputs with zeros in masked steps, whatever these hold."""
        return self._each(
            lambda x: arrays.zero_masked(x, self.layout.query_mask),
            lambda x: arrays.zero_masked(x, self.layout.key_mask),
        )

    def valid_first(self) -> CallInputs:
        """Return the inputs with the valid steps first."""
        layout, order = self.layout.valid_first()
        inputs = self._each(order.sort_queries, order.sort_keys)
        return dataclasses.replace(inputs, layout=layout, order=order)

    def check_limit(self, longest: Any, limit: int, name: str, advice: str) -> CallInputs:
        """Return the inputs, tied to a check that `longest` is at most `limit` steps."""
        query = limits.check_steps(self.query, longest, limit, name, advice)
        return dataclasses.replace(self, query=query)

    def _each(self, of_queries, of_keys):
        """Apply a function to the query, and one to key and value; once to a shared tensor."""
        value = of_keys(self.value)
        key = value if self.key is self.value else of_keys(self.key)
        shared = self.query is self.value and self.layout.one_sequence
        query = value if shared else of_queries(self.query)
        return dataclasses.replace(self, query=query, key=key, value=value)


def read_call(
    layer: Any,
    query: Any,
    value: Any,
    key: Any = None,
    query_mask: Any = None,
    value_mask: Any = None,
    key_mask: Any = None,
    attention_mask: Any = None,
    use_causal_mask: bool = False,
    segment_ids: Any = None,
    unit_ids: Any = None,
) -> CallInputs:
    """Check the arguments of a call and read them into `CallInputs`.

    Query t and value t are the same step in a packed call, in a stream, in a layer that cannot do
    cross-attention, and in a causal call in which only the values have a mask. One mask, the
    product of all that are given, then serves both sides. Otherwise `query_mask` masks queries
    and the other masks mask keys. That two arguments are one object changes nothing.

    Args:
        layer: The `Attention` that is called.
        query, value, key, ...: The arguments of `Attention.call`.
        unit_ids: Those of `HierarchicalAttention.call`.

    Raises:
        ValueError: If shapes do not fit, or the layer cannot take the masks.
    """
    stream = scope.current()
    key = value if key is None else key
    check_shapes(layer.name, query.shape, value.shape, key.shape)
    sizes = {
        "query_mask": (query_mask, query.shape),
        "value_mask": (value_mask, value.shape),
        "key_mask": (key_mask, value.shape),
        "segment_ids": (segment_ids, query.shape),
        "unit_ids": (unit_ids, query.shape),
    }
    given = {name: _steps(layer.name, name, x, shape) for name, (x, shape) in sizes.items()}
    query_mask, value_mask, key_mask = (
        _as_bool(given[name]) for name in ("query_mask", "value_mask", "key_mask")
    )
    attention_mask, padding = factor(layer, attention_mask, query.shape, value.shape)
    if padding is not None:
        padding = ops.broadcast_to(padding, ops.shape(value)[:2])
    key_mask = timesteps.combine(timesteps.combine(value_mask, key_mask), padding)

    to_constants = attends_to_constants(stream, use_causal_mask)
    stream_mask = None if stream is None else stream.mask
    if to_constants:
        query_mask = timesteps.combine(stream_mask, query_mask)
    reasons = {
        "`segment_ids` number the steps of one sequence": segment_ids is not None,
        "a stream is one sequence": stream is not None and not to_constants,
        "the layer compares the steps of one sequence": "cross" in layer.cannot,
        "a causal call without `query_mask` takes the mask of the values for both": (
            use_causal_mask and query_mask is None and key_mask is not None
        ),
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if reason is not None:
        _check_one_sequence(layer, reason, query, value, key)
        mask = query_mask if key_mask is query_mask else timesteps.combine(query_mask, key_mask)
        mask = timesteps.combine(stream_mask, mask)
        query_mask = key_mask = mask
    layout = CallLayout(
        query_steps=ops.shape(query)[1],  # read before the projections: later, reading it would
        key_steps=ops.shape(value)[1],  # cut a TFLite graph into two delegated parts
        query_mask=query_mask,
        key_mask=key_mask,
        segments=timesteps.segment_numbers(given["segment_ids"]),
        units=timesteps.segment_numbers(given["unit_ids"]),
        attention_mask=attention_mask,
        causal=use_causal_mask,
        one_sequence=reason is not None,
    )
    return CallInputs(query, key, value, layout)


def check_shapes(name: str, query_shape: Any, value_shape: Any, key_shape: Any) -> None:
    """Raise ValueError unless the shapes are `(b, t, m)`, `(b, s, m')` and `(b, s, m'')`."""
    shapes = {"query": query_shape, "value": value_shape, "key": key_shape}
    for argument, shape in shapes.items():
        if len(shape) != 3:
            raise ValueError(
                f"{name}: `{argument}` must have shape (batch, steps, features). "
                f"Received: {argument}.shape={tuple(shape)}"
            )
    pairs = (
        (query_shape[0], value_shape[0]),
        (value_shape[0], key_shape[0]),
        (value_shape[1], key_shape[1]),
    )
    if not all(compatible(*pair) for pair in pairs):
        raise ValueError(
            f"{name}: query, value and key must agree in batch size, and value and key "
            f"in length. Received: query.shape={tuple(query_shape)}, "
            f"value.shape={tuple(value_shape)}, key.shape={tuple(key_shape)}"
        )


def compatible(n: int | None, other: int | None) -> bool:
    """Whether two static sizes can be equal."""
    return n is None or other is None or n == other


def _check_one_sequence(layer, reason, query, value, key):
    if "cross" in layer.cannot and (differ(query, value) or differ(value, key)):
        layer.refuse("cross")
    if not compatible(query.shape[1], value.shape[1]):
        raise ValueError(
            f"{layer.name}: query and value must have as many steps, for {reason}. "
            f"Received: query.shape={tuple(query.shape)}, value.shape={tuple(value.shape)}"
        )


def differ(first: Any, second: Any) -> bool:
    """Whether it is known that two tensors differ.

    Numbers are compared where they are known, static shapes elsewhere.
    """
    if first is second:
        return False
    if not all(map(compatible, first.shape, second.shape)):
        return True
    first, second = limits.known_value(first), limits.known_value(second)
    if first is None or second is None:
        return False
    return not np.array_equal(first.astype("float64"), second.astype("float64"), equal_nan=True)


def _steps(layer_name, name, x, shape):
    """`x` as a tensor. Raises ValueError unless its shape is `(b, t)`."""
    if x is None:
        return None
    x = ops.convert_to_tensor(x)
    if len(x.shape) != 2 or not all(
        compatible(n, full) for n, full in zip(x.shape, shape, strict=False)
    ):
        raise ValueError(
            f"{layer_name}: `{name}` must have shape (batch, steps) = {tuple(shape[:2])}. "
            f"Received: {name}.shape={tuple(x.shape)}"
        )
    return x


def _as_bool(mask):
    return None if mask is None else ops.cast(mask, "bool")
