"""The layout of one call: which steps take part, where they stand, and which keys a query sees."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from keras import ops

from keras_cosattn.ops import timesteps


@dataclasses.dataclass(frozen=True)
class CallLayout:
    """Masks, packing and causality of one call of an attention layer.

    It is built once from the arguments of the call and passed to everything that needs it.

    Args:
        query_steps: t, the number of queries, an integer or a tensor.
        key_steps: s, the number of keys.
        query_mask: Boolean `(b, t)`, True for valid queries. None means that all are valid.
        key_mask: Boolean `(b, s)`, True for valid keys. None means that all are valid.
        segments: Integer `(b, t)`, the number of each step's packed sequence, which rises by one
            from one sequence to the next. None means one sequence.
        units: Integer `(b, t)`, runs of equal numbers are the units of `HierarchicalAttention`.
        attention_mask: Boolean, broadcastable to `(b, h, t, s)`. None means all pairs.
        causal: Boolean. If True, a query sees no key that stands after it.
        one_sequence: Boolean. If True, query t and key t are the same step, and both masks are one.
    """

    query_steps: Any
    key_steps: Any
    query_mask: Any = None
    key_mask: Any = None
    segments: Any = None
    units: Any = None
    attention_mask: Any = None
    causal: bool = False
    one_sequence: bool = False

    @functools.cached_property
    def query_positions(self) -> Any:
        """Position of each query in its sequence, int32 `(b or 1, t)`. Only valid steps count."""
        return timesteps.positions(self.query_steps, self.query_mask, self.segments)

    @functools.cached_property
    def key_positions(self) -> Any:
        """Position of each key in its sequence, int32 `(b or 1, s)`. Only valid steps count."""
        if self.one_sequence:
            return self.query_positions
        return timesteps.positions(self.key_steps, self.key_mask, self.segments)

    @property
    def only_causal(self) -> bool:
        """Whether query t sees exactly the keys s <= t."""
        factors = self.query_mask, self.key_mask, self.segments, self.attention_mask
        return self.causal and all(x is None for x in factors)

    @property
    def may_see_nothing(self) -> bool:
        """Whether a valid query may see no key. In one sequence it sees itself."""
        masked_keys = self.key_mask is not None and not self.one_sequence
        return masked_keys or self.attention_mask is not None

    def longest_queries(self) -> Any:
        """Return the largest number of valid queries of one sequence, an integer or a tensor."""
        return self._longest(self.query_steps, self.query_mask)

    def longest_keys(self) -> Any:
        """Return the largest number of valid keys of one sequence, an integer or a tensor."""
        return self._longest(self.key_steps, self.key_mask)

    def _longest(self, steps, mask):
        if self.segments is None and mask is None:
            return steps
        return ops.max(timesteps.count_valid(steps, mask, self.segments))

    def pair_mask(self) -> Any:
        """Return which keys each query sees, boolean `(b, 1 or h, t, s)`. None means all."""
        return timesteps.pair_mask(
            self.query_steps,
            self.key_steps,
            query_mask=self.query_mask,
            key_mask=self.key_mask,
            segments=self.segments,
            causal=self.causal,
            attention_mask=self.attention_mask,
        )

    def valid_first(self) -> tuple[CallLayout, StepOrder]:
        """Return this layout with the valid steps first, and the order that sorts them so."""
        query, query_inverse = _valid_first(self.query_mask)
        key, key_inverse = query, query_inverse
        if not self.one_sequence:
            key, key_inverse = _valid_first(self.key_mask)
        order = StepOrder(query, query_inverse, key, key_inverse)
        query_mask = order.sort_queries(self.query_mask)
        key_mask = query_mask if self.one_sequence else order.sort_keys(self.key_mask)
        layout = dataclasses.replace(
            self,
            query_mask=query_mask,
            key_mask=key_mask,
            segments=timesteps.segment_numbers(order.sort_queries(self.segments)),
            units=timesteps.segment_numbers(order.sort_queries(self.units)),
        )
        return layout, order


@dataclasses.dataclass(frozen=True)
class StepOrder:
    """A permutation of the queries and one of the keys, `(b, t)` and `(b, s)`.

    None stands for the identity.
    """

    query: Any = None
    query_inverse: Any = None
    key: Any = None
    key_inverse: Any = None

    def sort_queries(self, x: Any) -> Any:
        """Return `x (b, t, ...)` in the new order. None stays None."""
        return _take(x, self.query)

    def sort_keys(self, x: Any) -> Any:
        """Return `x (b, s, ...)` in the new order. None stays None."""
        return _take(x, self.key)

    def restore_queries(self, x: Any) -> Any:
        """Return `x (b, t, ...)` in the order of the call."""
        return _take(x, self.query_inverse)

    def restore_weights(self, weights: Any) -> Any:
        """Return weights `(b, h, t, s)` in the order of the call."""
        rows = _take(ops.transpose(weights, (0, 2, 3, 1)), self.query_inverse)
        columns = _take(ops.transpose(rows, (0, 2, 1, 3)), self.key_inverse)
        return ops.transpose(columns, (0, 3, 2, 1))


def _valid_first(mask):
    return (None, None) if mask is None else timesteps.valid_first(mask)


def _take(x, order):
    return x if x is None or order is None else timesteps.take_steps(x, order)
