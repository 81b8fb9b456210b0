"""The arguments of one call of an attention layer, checked and read into a layout."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from keras import ops

from keras_cosattn import limits, scope
from keras_cosattn.attention.axes import AttentionAxes, Folding
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
        folding: The `Folding` that made the tensors. None means that they had this form already.
    """

    query: Any
    key: Any
    value: Any
    layout: CallLayout
    order: StepOrder = dataclasses.field(default_factory=StepOrder)
    folding: Folding | None = None

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

    def unfold(self, outputs: Any) -> Any:
        """Return outputs `(b, t, ...)` with the axes that the query of the call had."""
        return outputs if self.folding is None else self.folding.unfold(outputs)

    def unfold_scores(self, weights: Any) -> Any:
        """Return weights `(b, h, t, s)` with the axes that query and value of the call had."""
        return weights if self.folding is None else self.folding.unfold_scores(weights)

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
    axes = check_shapes(layer, query.shape, value.shape, key.shape)
    arguments = {
        "query_mask": (query_mask, query.shape),
        "value_mask": (value_mask, value.shape),
        "key_mask": (key_mask, value.shape),
        "segment_ids": (segment_ids, query.shape),
        "unit_ids": (unit_ids, query.shape),
    }
    given = {name: _steps(layer.name, name, x, shape) for name, (x, shape) in arguments.items()}
    folding = None
    if not axes.is_single:
        _check_no_stream(layer, stream, query)
        folding = Folding(axes, ops.shape(query), ops.shape(value))
        query, value, key = folding.fold_inputs(query, value, key)
        given = {name: None if x is None else folding.fold(x) for name, x in given.items()}
    query_mask, value_mask, key_mask = (
        _as_bool(given[name]) for name in ("query_mask", "value_mask", "key_mask")
    )
    factors = factor(layer, attention_mask, query.shape, value.shape, folding)
    if factors.key_mask is not None:
        padding = ops.broadcast_to(factors.key_mask, ops.shape(value)[:2])
        key_mask = timesteps.combine(key_mask, padding)
    if factors.query_mask is not None:
        rows = ops.broadcast_to(factors.query_mask, ops.shape(query)[:2])
        query_mask = timesteps.combine(query_mask, rows)
    key_mask = timesteps.combine(value_mask, key_mask)

    to_constants = attends_to_constants(stream, use_causal_mask)
    stream_mask = None if stream is None else stream.mask
    if to_constants:
        query_mask = timesteps.combine(stream_mask, query_mask)
    reasons = {
        "`segment_ids` number the steps of one sequence": segment_ids is not None,
        "a stream is one sequence": stream is not None and not to_constants,
        "the layer compares the steps of one sequence": "cross" in layer.cannot,
        "a causal call without `query_mask` takes the mask of the values for both": (
            timesteps.queries_take_mask_of_keys(query_mask, key_mask, use_causal_mask)
        ),
        "`attention_mask` is causal": factors.causal,
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if reason is not None:
        _check_one_sequence(layer, reason, query, value, key)
        mask = query_mask if key_mask is query_mask else timesteps.combine(query_mask, key_mask)
        mask = timesteps.combine(stream_mask, mask)
        query_mask = key_mask = mask
    # Read before the projections: later, reading it would cut a TFLite graph into two parts.
    steps = ops.shape(query)[1]
    layout = CallLayout(
        query_steps=steps,
        key_steps=steps if value is query or reason is not None else ops.shape(value)[1],
        query_mask=query_mask,
        key_mask=key_mask,
        segments=timesteps.segment_numbers(given["segment_ids"]),
        units=timesteps.segment_numbers(given["unit_ids"]),
        attention_mask=factors.attention_mask,
        causal=use_causal_mask or factors.causal,
        one_sequence=reason is not None,
    )
    return CallInputs(query, key, value, layout, folding=folding)


def check_shapes(layer: Any, query_shape: Any, value_shape: Any, key_shape: Any) -> AttentionAxes:
    """Return the axes that attention mixes.

    Raises:
        ValueError: Unless the shapes are `(b, *axes, m)`, `(b, *axes, m')` and `(b, *axes, m'')`,
            those of value and key with the same axes, those of query and value with the same
            axes where attention does not mix them.
    """
    shapes = {"query": query_shape, "value": value_shape, "key": key_shape}
    received = ", ".join(f"{name}.shape={tuple(shape)}" for name, shape in shapes.items())
    for argument in ("query", "value"):
        if len(shapes[argument]) < 3:
            raise ValueError(
                f"{layer.name}: `{argument}` must have shape (batch, steps, features). "
                f"Received: {argument}.shape={tuple(shapes[argument])}"
            )
    if len({len(shape) for shape in shapes.values()}) > 1:
        raise ValueError(
            f"{layer.name}: query, value and key must have as many axes as each other: their "
            f"ranks must be equal. Received: {received}"
        )
    axes = AttentionAxes.of(layer.attention_axes, len(query_shape))
    steps = zip(value_shape[:-1], key_shape[:-1], strict=True)
    others = ((query_shape[axis], value_shape[axis]) for axis in (0, *axes.others))
    if not all(compatible(*pair) for pair in (*steps, *others)):
        raise ValueError(
            f"{layer.name}: query, value and key must agree in batch size, and value and key "
            "in length: these sizes, and those of axes that do not attend, must be equal. "
            f"Received: {received}"
        )
    return axes


def compatible(n: int | None, other: int | None) -> bool:
    """Whether two static sizes can be equal."""
    return n is None or other is None or n == other


def _check_one_sequence(layer, reason, query, value, key):
    if "cross" in layer.cannot and (differ(query, value) or differ(value, key)):
        layer.refuse("cross")
    if not compatible(query.shape[1], value.shape[1]):
        raise ValueError(
            f"{layer.name}: query and value must have the same number of steps, because {reason}. "
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


def _check_no_stream(layer, stream, query):
    if stream is not None:
        raise ValueError(
            f"{layer.path} ({type(layer).__name__}) cannot stream: its input has rank "
            f"{len(query.shape)}, and a stream has one axis of steps. Give each sequence a row of "
            "the batch."
        )


def _steps(layer_name, name, x, shape):
    """`x` as a tensor. Raises ValueError unless its shape is `(b, t)`."""
    if x is None:
        return None
    x = ops.convert_to_tensor(x)
    if len(x.shape) != len(shape) - 1 or not all(map(compatible, x.shape, shape)):
        raise ValueError(
            f"{layer_name}: `{name}` must have shape (batch, steps) = {tuple(shape[:-1])}. "
            f"Received: {name}.shape={tuple(x.shape)}"
        )
    return x


def _as_bool(mask):
    return None if mask is None else ops.cast(mask, "bool")
