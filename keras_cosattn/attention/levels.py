"""The levels of hierarchical attention: their computation over whole sequences and in streams."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_cosattn import limits
from keras_cosattn.ops import cache, dense, hierarchy
from keras_cosattn.ops.hierarchy import Units
from keras_cosattn.ops.windows import window_attention

Tensor = Any


@dataclasses.dataclass(frozen=True)
class Levels:
    """The levels of one `HierarchicalAttention`. Level i has the index i - 1 here.

    Shapes: n steps at a level, of width m; U units of c steps each.
    """

    owner: str
    """The name of the layer, for errors."""
    projections: Sequence[tuple[keras.Layer, keras.Layer, keras.Layer]]
    """For each level the layers that project its steps to q, k and v."""
    unit_sizes: tuple[int, ...]
    """c of each level but the top."""
    max_units: int | None
    """The capacity for given units at level 1."""
    aggregate: Callable[[int, Tensor, Units], tuple[Tensor, Tensor | None]]
    """Function of a level, its steps `(b * U, c, m)` and units to the steps of the next level,
    and to the weights of the aggregates, if they are known."""
    cache_dtype: str
    dropout: Callable[[Tensor], Tensor]
    """Function applied to the attention weights."""

    def attend(
        self,
        level: int,
        x: Tensor,
        valid: Tensor,
        *,
        causal: bool,
        values: Tensor | None = None,
        runs: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        """Return the output of a level and all levels over it, for whole sequences.

        Args:
            level: the index of the level.
            x: `(b, n, m)`, the steps of the level.
            valid: `(b, n)`, the valid steps, which come first.
            causal: whether a step attends to the past only.
            values: `(b, n, 1, s)`, values in place of those of each level.
            runs: `(b, n)`, numbers along n. A unit ends where they change.
            segments: `(b, n)`, the numbers of packed sequences. Where they change, `runs` do too.

        Returns:
            `(b, n, h, e)`.
        """
        q, k, v = (project(x) for project in self.projections[level])
        v = v if values is None else values
        if level == len(self.unit_sizes):
            mixed, _ = dense.softmax_attention(
                q, k, v, causal=causal, query_mask=valid, mask=valid, segment_ids=segments,
                dropout=self.dropout,
            )  # fmt: skip
            return mixed
        n = ops.shape(x)[1]
        capacity = self.max_units if level == 0 else None
        units = self._units(level, valid, runs, capacity or n)
        mixed = hierarchy.attend_inside(
            q, k, v, units, causal=causal, mask=valid, dropout=self.dropout
        )
        steps, weights = self.aggregate(level, hierarchy.gather_units(x, units), units)
        if values is not None:
            values = dense.mix(weights, hierarchy.gather_units(values, units))
            values = hierarchy.by_example(values[:, 0], units)
        if segments is not None:
            segments = hierarchy.segments_of_units(segments, units)
        upper = self.attend(
            level + 1, steps, hierarchy.not_empty(units), causal=causal, values=values,
            runs=segments, segments=segments,
        )  # fmt: skip
        mixed = mixed + hierarchy.spread(upper, n, units, last_finished=causal, segments=segments)
        if runs is None or capacity is None:
            return mixed
        return self._check_units(mixed, units, capacity)

    def attend_in_stream(
        self, level: int, x: Tensor, valid: Tensor, state: Mapping[str, Tensor], position: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the causal output of a level and all levels over it for the next steps.

        The units that end among these steps are the next steps of the next level.

        Args:
            level: the index of the level.
            x: `(b, n, m)`, the next steps of the level.
            valid: `(b, n)`, the valid steps, which come first.
            state: the state of all levels.
            position: `(b,)`, the number of steps of this level before these.

        Returns:
            `(b, n, h, e)`, and the new state of these levels.
        """
        q, k, v = (project(x) for project in self.projections[level])
        number = level + 1
        if level == len(self.unit_sizes):
            return self._attend_to_cache(q, k, v, valid, state, position)
        size = self.unit_sizes[level]
        cached = {name: state.get(f"{name}_{number}") for name in ("key", "value")}
        mixed, kept = window_attention(
            q, k, v, size=size, causal=True, mask=valid, state={**cached, "position": position},
            dropout=self.dropout,
        )  # fmt: skip
        steps, units, window = hierarchy.finished_units(
            x, valid, state.get(f"input_{number}"), position, size
        )
        aggregates, _ = self.aggregate(level, steps, units)
        upper, new = self.attend_in_stream(
            level + 1, aggregates, hierarchy.not_empty(units), state, position // size
        )
        added, last = hierarchy.spread_in_stream(
            upper, state[f"above_{number}"], valid, position, size
        )
        parts = {"key": kept["key"], "value": kept["value"], "input": window, "above": last}
        new |= {f"{name}_{number}": tensor for name, tensor in parts.items()}
        return mixed + added, new

    def _units(self, level, valid, runs, capacity):
        size = self.unit_sizes[level]
        if runs is None:
            return hierarchy.fixed_units(valid, size)
        return hierarchy.given_units(valid, runs, size, capacity)

    def _check_units(self, mixed, units, capacity):
        count = ops.max(units.of, axis=1) + 1
        advice = "Build the layer with a larger `max_units`."
        return limits.check_count(mixed, count, capacity, self.owner, "units", advice)

    def _attend_to_cache(self, q, k, v, valid, state, position):
        """Causal attention to all steps of the top level: those in the state and these."""
        number = len(self.unit_sizes) + 1
        positions = ops.expand_dims(position, 1) + ops.arange(ops.shape(q)[1], dtype="int32")
        cached = {
            f"{name}_{number}": cache.append(
                state[f"{name}_{number}"], ops.cast(new, self.cache_dtype), positions, valid
            )
            for name, new in (("key", k), ("value", v))
        }
        key, value = cached.values()
        allowed = ops.expand_dims(positions, 2) >= ops.arange(key.shape[1], dtype="int32")
        allowed = ops.logical_and(allowed, ops.expand_dims(valid, 2))
        mixed = dense.attend(q, key, value, ops.expand_dims(allowed, 1), self.dropout)[0]
        return mixed, cached
