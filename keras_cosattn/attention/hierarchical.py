"""Attention inside units, between units, and between units of units."""

import inspect
import math

import keras
from keras import ops

from keras_cosattn import limits
from keras_cosattn.attention.arguments import optional, positive
from keras_cosattn.attention.base import Attention, Tensor
from keras_cosattn.attention.call_inputs import read_call
from keras_cosattn.ops import arrays, cache, dense, hierarchy, timesteps
from keras_cosattn.ops.pool import pool
from keras_cosattn.ops.windows import window_attention, window_length


@keras.saving.register_keras_serializable("keras_cosattn")
class HierarchicalAttention(Attention):
    """Softmax attention inside units, whose aggregates are the steps of the next level.

    As words, sentences, paragraphs. The steps of level 1 are the input's: `x1 = x`. At level l
    each c_l steps are a unit, and an aggregator makes the units the steps of the level above:

    `x(l+1)_u = G_l(xl_s, s in unit u)`
    `yl_t = sum_s softmax_s(ql_t . kl_s / sqrt(d)) vl_s + y(l+1)_u(t)`, s in t's unit u(t)

    and the layer's output is the projection of `y1`. Each level has projections of its own to
    ql, kl, vl; at the top level all steps are one unit, and nothing is added. If causal, s <= t
    and what is added is `y(l+1)_(u(t)-1)`, of the last finished unit: the parts of the past that
    the levels see then fit together without a gap. Every step so reaches every other, or every
    one of the past.

    Units are of c_1 steps, or with `unit_ids` runs of equal ids (sentences), those of more than
    c_1 steps cut after each c_1. Upper levels always have units of c_l steps. Of packed
    sequences, each has units of its own at every level.

    Both directions, causal, packed. For n steps O(n c_1 + (n / c_1) c_2 + ...
    + (n / (c_1 c_2 ...))^2) times (d + e) in time, and without (d + e) in memory, per head:
    O(n max c) if the product of the sizes is at least sqrt(n). With `unit_ids` and `max_units` U,
    O(n c_1 + U c_2 + ... + (U / (c_2 ...))^2); packed, O(n c_1 + U c_2 + U c_3 + ... + U^2), for
    each sequence may be of one unit at every level. So give `max_units`: without it U is n.

    Streams for N = `max_length` steps, with units of c_l steps. With
    S = c_1 + c_2 + ... + N / (c_1 c_2 ...), a step costs O(S (d + e)) per head, and every level
    projects one step and aggregates c_l of them, whether a unit ends or not. The float32 state is
    O(S (d + e)) per key head, the c_1 + c_2 + ... steps themselves, and e per level and head.
    More than N steps raise ValueError, or fail an assertion in a TensorFlow graph; under XLA the
    top level does not see them. Dropout acts on the weights.

    Yang et al., 2016 (Hierarchical Attention Networks), section 2.2, eq. 5-10: units pooled with a
    learned query. Zhu and Soricut, 2021 (H-Transformer-1D): near steps one by one, far
    ones as aggregates.

    Where we leave the papers: Yang et al. classify whole documents; here each step gets back what
    its units found, and their pooling has a hidden layer where ours is
    `softmax_s(u . x_s / sqrt(m))`. Zhu and Soricut have one projection for all levels, fixed
    means, and one softmax over all of them.

    The weights of `return_attention_scores` say how much of each step there is in what all levels
    mix, and sum to the number of levels. They do not mix the values to the output, for each level
    has values of its own.

    Args:
        num_heads, key_dim, *args, **kwargs: as `Attention`.
        unit_sizes: c_1, c_2, ...: one for each level but the top.
        aggregator: G: "attention" (a learned query for each level), "mean", or a Keras layer
            `(z, c, m) -> (z, m')`, of which each level gets a copy. Places where a unit has no
            step are zero; if its `call` takes a `mask`, they are False there.
        max_units: how many units of `unit_ids` or of packed sequences, of which each begins one,
            a row has the capacity for; None is as many as steps. More raise ValueError, or fail
            an assertion in a TensorFlow graph. Under XLA the units beyond get what the last unit
            gets of the upper levels, and these do not see them.
        max_length: N, steps that a stream can hold; None cannot stream. Whole sequences may have
            any length.

    Call arguments:
        unit_ids: `(b, t)` integer: runs of equal ids are the units of level 1. Not in a stream.
    """

    needs_valid_first = True

    def __init__(
        self,
        num_heads,
        key_dim,
        *args,
        unit_sizes=(16, 16),
        aggregator="attention",
        max_units=None,
        max_length=None,
        **kwargs,
    ):
        super().__init__(num_heads, key_dim, *args, **kwargs)
        if not isinstance(unit_sizes, list | tuple) or not unit_sizes:
            raise ValueError(
                "`unit_sizes` must be a tuple of at least one size. "
                f"Received: unit_sizes={unit_sizes!r}"
            )
        self.unit_sizes = tuple(positive("unit_sizes", size) for size in unit_sizes)
        self.max_units = optional(positive, "max_units", max_units)
        self.max_length = optional(positive, "max_length", max_length)
        if isinstance(aggregator, dict):
            aggregator = keras.saving.deserialize_keras_object(aggregator)
        if aggregator not in ("attention", "mean") and not isinstance(aggregator, keras.Layer):
            raise ValueError(
                '`aggregator` must be "attention", "mean" or a Keras layer. '
                f"Received: aggregator={aggregator!r}"
            )
        self._pooling = None if isinstance(aggregator, keras.Layer) else aggregator
        self.aggregators = []
        if self._pooling is None:
            config = aggregator.get_config()
            self.aggregators = [type(aggregator).from_config(config) for _ in unit_sizes]

    @property
    def aggregator(self):
        """As given to the constructor; of a layer, the copy of level 1."""
        return self._pooling or self.aggregators[0]

    @property
    def cannot(self):
        """What the layer refuses: use -> reason."""
        cannot = {
            "cross": "its units pair each query with the keys of the same steps. "
            "Use SegmentedAttention with `summaries`."
        }
        if self.max_length is None:
            cannot["stream"] = (
                "its top level keeps a key of every unit, so it needs to know how many. "
                "Build it with `max_length`."
            )
        return cannot

    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        self.upper_query_dense, self.upper_key_dense, self.upper_value_dense = [], [], []
        self._pool_queries = []
        shape, self._widths = tuple(query_shape), []
        shared = self.num_key_value_heads
        for i, size in enumerate(self.unit_sizes):
            self._widths.append(shape[-1])
            shape = (None, None, self._build_aggregator(i, size, shape[-1]))
            for parts, name, heads, d in (
                (self.upper_query_dense, "query", self.num_heads, self.key_dim),
                (self.upper_key_dense, "key", shared, self.key_dim),
                (self.upper_value_dense, "value", shared, self.value_dim),
            ):
                parts.append(self._heads(f"{name}_{i + 2}", shape, heads, d))

    def _build_aggregator(self, i, size, width):
        """The width of what comes out."""
        if self._pooling is None:
            shape = self.aggregators[i](keras.KerasTensor((None, size, width))).shape
            if len(shape) != 2 or shape[-1] is None:
                raise ValueError(
                    f"{self.name}: `aggregator` must make (units, features) of (units, {size}, "
                    f"{width}). It made: {shape}"
                )
            return shape[-1]
        if self._pooling == "attention":
            query = self.add_weight(
                name=f"pool_query_{i + 1}",
                shape=(1, width),
                initializer="glorot_uniform",
                dtype=self.sum_dtype,
                autocast=False,
            )
            self._pool_queries.append(query)
        return width

    def call(
        self,
        query: Tensor,
        value: Tensor,
        key: Tensor | None = None,
        query_mask: Tensor | None = None,
        value_mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
        use_causal_mask: bool = False,
        segment_ids: Tensor | None = None,
        unit_ids: Tensor | None = None,
    ) -> Tensor:
        if return_attention_scores and self._pooling is None:
            raise ValueError(
                f"{self.name}: `return_attention_scores` needs to know how much of each step is "
                'in a unit, which the `aggregator` does not say. Use "attention" or "mean".'
            )
        inputs = read_call(
            self, query, value, key, query_mask, value_mask, key_mask, attention_mask,
            use_causal_mask, segment_ids, unit_ids,
        )  # fmt: skip
        return self._attend_to(inputs, training, return_attention_scores)

    def _project(self, query, key, value):
        return query, None, None  # each level projects its own steps

    def _attend(self, x, _k, _v, layout, training, return_weights):
        b, t = ops.shape(x)[:2]
        runs, segments, mask = layout.units, layout.segments, layout.key_mask
        if segments is not None and runs is not None:
            runs = timesteps.segment_numbers(runs + segments)  # changes where one of them does
        elif runs is None:
            runs = segments
        valid = ops.ones((b, t), "bool") if mask is None else mask
        options = {"runs": runs, "segments": segments, "causal": layout.causal}
        mixed = self._level(0, x, None, valid, training=training, **options)
        if not return_weights:
            return mixed, None
        each = ops.reshape(ops.eye(t, dtype=self.sum_dtype), (1, t, 1, t))
        each = ops.broadcast_to(each, (b, t, 1, t))
        weights = self._level(0, x, each, valid, training=False, **options)
        weights = arrays.zero_masked(weights, mask)
        return mixed, ops.transpose(weights, (0, 2, 1, 3))

    def _level(self, i, x, each, real, *, causal, training, runs=None, segments=None):
        """What the steps `x (b, n, m)` get from this level and those above, `(b, n, h, e)`.

        `each (b, n, 1, s)` are values to mix in place of the level's own. Units end where the
        numbers `runs (b, n)` change, which they do where `segments (b, n)` do.
        """
        q, k, v = self._projected(i, x)
        v = v if each is None else each
        dropout = self._drop(training)
        if i == len(self.unit_sizes):
            mixed, _ = dense.softmax_attention(
                q, k, v, causal=causal, query_mask=real, mask=real, segment_ids=segments,
                dropout=dropout,
            )  # fmt: skip
            return mixed
        size, n = self.unit_sizes[i], ops.shape(x)[1]
        capacity = self.max_units if i == 0 else None
        if runs is None:
            units = hierarchy.fixed_units(real, size)
        else:
            units = hierarchy.given_units(real, runs, size, capacity or n)
        mixed = hierarchy.attend_inside(q, k, v, units, causal=causal, mask=real, dropout=dropout)
        found, weights = self._aggregate(i, hierarchy.places(x, units), units)
        if each is not None:
            each = dense.mix(weights, hierarchy.places(each, units))
            each = ops.reshape(each, (-1, units.count, 1, each.shape[-1]))
        if segments is not None:
            segments = hierarchy.of_units(segments, units)
        upper = self._level(
            i + 1, found, each, hierarchy.taken(units), causal=causal, training=training,
            runs=segments, segments=segments,
        )  # fmt: skip
        mixed = mixed + hierarchy.spread(upper, n, units, last_finished=causal, segments=segments)
        if runs is None or capacity is None:
            return mixed
        advice = "Build the layer with a larger `max_units`."
        return limits.check_count(
            mixed, ops.max(units.of, axis=1) + 1, capacity, self.name, "units", advice
        )

    def _projected(self, i, x):
        if i == 0:
            return self.query_dense(x), self.key_dense(x), self.value_dense(x)
        parts = self.upper_query_dense, self.upper_key_dense, self.upper_value_dense
        return tuple(part[i - 1](x) for part in parts)

    def _aggregate(self, i, x, units):
        """Units of steps `x (b * U, c, m)` as steps, `(b, U, m')`, and the weights of the pool."""
        real, weights = units.real, None
        if self._pooling is None:
            aggregator, options = self.aggregators[i], {}
            if "mask" in inspect.signature(aggregator.call).parameters:
                # Where a unit has no step at all, all of its places: a mean of none is NaN.
                some = ops.any(real, axis=1, keepdims=True)
                options["mask"] = ops.logical_or(real, ops.logical_not(some))
            found = aggregator(x, **options)
        else:
            query = self._pool_queries[i] if self._pool_queries else None
            found, weights = pool(ops.expand_dims(x, 2), real, query)
        found = ops.reshape(found, (-1, units.count, found.shape[-1]))
        return arrays.zero_masked(found, hierarchy.taken(units)), weights

    def _attend_in_stream(self, x, _k, _v, layout, stream, training):
        if layout.units is not None:
            raise ValueError(
                f"{self.path} ({type(self).__name__}) cannot stream: `unit_ids` would need a "
                "state that knows where a unit began, and this one counts the steps of units of "
                "`unit_sizes`. Leave them out."
            )
        b, t = ops.shape(x)[:2]
        spec, mask = self._state_spec(), layout.key_mask
        slot, state = stream.read(self, b, limit=self.max_length, **spec)
        valid = ops.ones((b, t), "bool") if mask is None else mask
        mixed, new = self._level_in_stream(0, x, valid, state, state["position"], training)
        new["position"] = timesteps.advance(state["position"], t, mask)
        stream.write(slot, {name: ops.cast(new[name], dtype) for name, (_, dtype) in spec.items()})
        return mixed

    def _level_in_stream(self, i, x, real, state, position, training):
        """As `_level`, of the next steps at this level, after `position (b,)` of them; new state.

        The units that end among these steps are the next steps of the level above.
        """
        q, k, v = self._projected(i, x)
        dropout, level = self._drop(training), i + 1
        if i == len(self.unit_sizes):
            return self._top_in_stream(q, k, v, real, state, position, dropout)
        size = self.unit_sizes[i]
        past = {name: state.get(f"{name}_{level}") for name in ("key", "value")}
        mixed, past = window_attention(
            q, k, v, size=size, causal=True, mask=real, state={**past, "position": position},
            dropout=dropout,
        )  # fmt: skip
        steps, units, window = hierarchy.finished_units(
            x, real, state.get(f"input_{level}"), position, size
        )
        found, _ = self._aggregate(i, steps, units)
        upper, new = self._level_in_stream(
            i + 1, found, hierarchy.taken(units), state, position // size, training
        )
        added, last = hierarchy.spread_in_stream(
            upper, state[f"above_{level}"], real, position, size
        )
        parts = {"key": past["key"], "value": past["value"], "input": window, "above": last}
        new |= {f"{name}_{level}": y for name, y in parts.items()}
        return mixed + added, new

    def _top_in_stream(self, q, k, v, real, state, position, dropout):
        """Causal attention to all steps of the top level: those in the state and these."""
        level = len(self.unit_sizes) + 1
        place = ops.expand_dims(position, 1) + ops.arange(ops.shape(q)[1], dtype="int32")
        past = {
            f"{name}_{level}": cache.append(
                state[f"{name}_{level}"], ops.cast(y, self.sum_dtype), place, real
            )
            for name, y in (("key", k), ("value", v))
        }
        key, value = past.values()
        seen = ops.expand_dims(place, 2) >= ops.arange(key.shape[1], dtype="int32")
        seen = ops.logical_and(seen, ops.expand_dims(real, 2))
        return dense.attend(q, key, value, ops.expand_dims(seen, 1), dropout)[0], past

    def _state_spec(self):
        """Level by level the last unit's steps, and what the level above gave for it."""
        spec, heads = {"position": ((), "int32")}, self.num_key_value_heads
        lengths = [window_length(size, 0) for size in self.unit_sizes]
        for level, (n, width) in enumerate(zip(lengths, self._widths, strict=True), 1):
            spec[f"input_{level}"] = (n, width), self.sum_dtype
            spec[f"above_{level}"] = (self.num_heads, self.value_dim), self.sum_dtype
        top = max(self.max_length // math.prod(self.unit_sizes), 1)
        for level, n in enumerate([*lengths, top], 1):
            spec[f"key_{level}"] = (n, heads, self.key_dim), self.sum_dtype
            spec[f"value_{level}"] = (n, heads, self.value_dim), self.sum_dtype
        return {name: part for name, part in spec.items() if 0 not in part[0]}  # a unit of one

    def get_config(self):
        return {
            **super().get_config(),
            "unit_sizes": self.unit_sizes,
            "aggregator": self._pooling or keras.saving.serialize_keras_object(self.aggregator),
            "max_units": self.max_units,
            "max_length": self.max_length,
        }
