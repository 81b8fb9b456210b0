"""Attention inside units, between units, and between units of units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import keras
from keras import ops

from keras_cosattn import scope
from keras_cosattn.attention import aggregators
from keras_cosattn.attention.arguments import optional, positive
from keras_cosattn.attention.base import Attention, Tensor
from keras_cosattn.attention.call_inputs import read_call
from keras_cosattn.attention.levels import Levels
from keras_cosattn.ops import arrays, timesteps
from keras_cosattn.ops.windows import window_length

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from keras_cosattn.attention.options import AttentionOptions
    from keras_cosattn.layer_options import signature_of


@keras.saving.register_keras_serializable("keras_cosattn")
class HierarchicalAttention(Attention):
    """Softmax attention inside units, whose aggregates are the steps of the next level.

    Units are, for example, words, sentences and paragraphs. The steps of level 1 are those of the
    input, `x1 = x`. At level l each c_l steps are a unit, and an aggregator makes the units the
    steps of the next level:

    `x(l+1)_u = G_l(xl_s, s in unit u)`
    `yl_t = sum_s softmax_s(ql_t . kl_s / sqrt(d)) vl_s + y(l+1)_u(t)`, s in t's unit u(t)

    The layer's output is the projection of `y1`. Each level has its own projections to ql, kl, vl.
    At the top level all steps are one unit, and nothing is added. If causal, s <= t, and
    `y(l+1)_(u(t)-1)` is added: that of the last finished unit. The parts of the past that the
    levels attend to then fit together without a gap. So every step reaches every step, or every
    step of the past.

    Units have c_1 steps. With `unit_ids` they are runs of equal ids (sentences); runs of more than
    c_1 steps are cut after each c_1. Units of the other levels always have c_l steps. Each packed
    sequence has its own units at every level.

    Both directions, causal, packed. For n steps the cost per head is O(n c_1 + (n / c_1) c_2 + ...
    + (n / (c_1 c_2 ...))^2), times (d + e) in time and without (d + e) in memory. It is O(n max c)
    if the product of the sizes is at least sqrt(n). With `unit_ids` and U = `max_units` it is
    O(n c_1 + U c_2 + ... + (U / (c_2 ...))^2). Packed it is O(n c_1 + U c_2 + U c_3 + ... + U^2),
    because each sequence may have one unit at every level. So give `max_units`: without it U is n.

    Streams for N = `max_length` steps, with units of c_l steps. With
    S = c_1 + c_2 + ... + N / (c_1 c_2 ...), a step costs O(S (d + e)) per head. Every level
    projects one step and aggregates c_l of them, whether a unit ends or not. The state is
    O(S (d + e)) per key head, the c_1 + c_2 + ... steps themselves, and e per level and head.
    More than N steps raise ValueError, or fail an assertion in a TensorFlow graph; under XLA the
    top level does not attend to them. Dropout is applied to the attention weights.

    The weights of `return_attention_scores` are the shares of each step in what all levels mix.
    They sum to the number of levels of which the step gets something. They do not mix the values to
    the output, because each level has its own values.

    Where this differs from the papers: Yang et al. classify whole documents. Here each step gets
    the results of its units. Their pooling has a hidden layer; here it is
    `softmax_s(u . x_s / sqrt(m))`. Zhu and Soricut use one projection for all levels, fixed means,
    and one softmax over all levels.

    Args:
        num_heads: Integer, h, the number of query heads.
        key_dim: Integer, d, the size of a query or key head.
        unit_sizes: Tuple of integers, c_1, c_2, ...: one for each level but the top. Defaults to
            `(16, 16)`.
        aggregator: G. `"attention"` (weights with a learned query for each level), `"mean"`, or a
            Keras layer `(z, c, m) -> (z, m')`, of which each level gets a copy. Places without a
            step are zero; a `mask` of its `call` is False there. Defaults to `"attention"`.
        max_units: Integer, the capacity for units of `unit_ids` or of packed sequences (each
            begins a unit) in one row. `None` is as many as steps. More units raise ValueError, or
            fail an assertion in a TensorFlow graph. Under XLA the units beyond it get what the
            last unit gets of the other levels, which do not attend to them. Defaults to `None`.
        max_length: Integer, N, the number of steps that a stream can hold. With `None` the layer
            cannot stream. Whole sequences may have any length. Defaults to `None`.
        **kwargs: Other arguments of `Attention`, such as `dropout`, `num_key_value_heads` and
            `seed`.

    Call arguments:
        unit_ids: Integer `(b, t)`. Runs of equal ids are the units of level 1. Not in a stream.

    Raises:
        ValueError: If the attention weights are asked for with a layer as `aggregator`, or
            `unit_ids` are given in a stream, or if there are more than `max_units` units.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn import HierarchicalAttention
    >>> layer = HierarchicalAttention(num_heads=2, key_dim=4, unit_sizes=(3, 2))
    >>> x = np.ones((1, 10, 8), "float32")
    >>> tuple(layer(x, x).shape)
    (1, 10, 8)
    >>> sentences = np.array([[0, 0, 1, 1, 1, 1, 1, 2, 2, 2]])
    >>> tuple(layer(x, x, unit_ids=sentences).shape)
    (1, 10, 8)

    Reference:
        - [Yang et al., 2016 (Hierarchical Attention Networks)](https://aclanthology.org/N16-1174),
          section 2.2, equations 5-10: units pooled with a learned query
        - [Zhu and Soricut, 2021 (H-Transformer-1D)](https://arxiv.org/abs/2107.11906): attention
          to near steps, and to aggregates of far steps
    """

    needs_valid_first = True
    accepts_query_key_norm = False

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        *args: Any,
        unit_sizes: Sequence[int] = (16, 16),
        aggregator: Literal["attention", "mean"] | keras.Layer | dict[str, Any] = "attention",
        max_units: int | None = None,
        max_length: int | None = None,
        **kwargs: Unpack[AttentionOptions],
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
        aggregator = aggregators.check_aggregator(aggregator)
        found = aggregators.for_levels(aggregator, len(unit_sizes))
        self._pooling, self.aggregators, self._saved_aggregator = found

    @property
    def aggregator(self) -> str | keras.Layer:
        """The constructor's argument. For a layer, the copy of level 1."""
        return self._pooling or self.aggregators[0]

    @property
    def cannot(self) -> dict[str, str]:
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
        """Build the aggregator of a level and return the width of the next level."""
        if self._pooling is None:
            return aggregators.output_width(self.aggregators[i], size, width, self.name)
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
        wants_weights = return_attention_scores or scope.watching() is not None
        if wants_weights and self._pooling is None:
            raise ValueError(
                f"{self.name}: the attention weights need the share of each step in its unit, "
                'which a layer as `aggregator` does not give. Use "attention" or "mean".'
            )
        inputs = read_call(
            self, query, value, key, query_mask, value_mask, key_mask, attention_mask,
            use_causal_mask, segment_ids, unit_ids,
        )  # fmt: skip
        return self._attend_to(inputs, training, return_attention_scores)

    if TYPE_CHECKING:

        @signature_of(call)
        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

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
        mixed = self._levels(training).attend(0, x, valid, **options)
        if not return_weights:
            return mixed, None
        identity = ops.reshape(ops.eye(t, dtype=self.sum_dtype), (1, t, 1, t))
        identity = ops.broadcast_to(identity, (b, t, 1, t))
        weights = self._levels(training=False).attend(0, x, valid, values=identity, **options)
        weights = arrays.zero_masked(weights, mask)
        return mixed, ops.transpose(weights, (0, 2, 1, 3))

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
        levels = self._levels(training)
        mixed, new = levels.attend_in_stream(0, x, valid, state, state["position"])
        new["position"] = timesteps.advance(state["position"], t, mask)
        stream.write(slot, {name: ops.cast(new[name], dtype) for name, (_, dtype) in spec.items()})
        return mixed

    def _levels(self, training):
        upper = self.upper_query_dense, self.upper_key_dense, self.upper_value_dense
        first = self.query_dense, self.key_dense, self.value_dense
        return Levels(
            owner=self.name,
            projections=[first, *zip(*upper, strict=True)],
            unit_sizes=self.unit_sizes,
            max_units=self.max_units,
            aggregate=self._aggregate,
            cache_dtype=self.compute_dtype,
            dropout=self._drop(training),
        )

    def _aggregate(self, i, x, units):
        if self._pooling is None:
            return aggregators.aggregate_with_layer(self.aggregators[i], x, units), None
        query = self._pool_queries[i] if self._pool_queries else None
        return aggregators.aggregate_with_weights(query, x, units)

    def _state_spec(self):
        """For each level the steps of the last unit and the output of the next level for it."""
        spec, heads = {"position": ((), "int32")}, self.num_key_value_heads
        lengths = [window_length(size, 0) for size in self.unit_sizes]
        for level, (n, width) in enumerate(zip(lengths, self._widths, strict=True), 1):
            spec[f"input_{level}"] = (n, width), self.sum_dtype
            spec[f"above_{level}"] = (self.num_heads, self.value_dim), self.sum_dtype
        top = max(self.max_length // math.prod(self.unit_sizes), 1)
        for level, n in enumerate([*lengths, top], 1):
            spec[f"key_{level}"] = (n, heads, self.key_dim), self.compute_dtype
            spec[f"value_{level}"] = (n, heads, self.value_dim), self.compute_dtype
        return {name: part for name, part in spec.items() if 0 not in part[0]}  # a unit of one

    def get_config(self):
        return {
            **super().get_config(),
            "unit_sizes": self.unit_sizes,
            # A copy: Keras takes the config of a functional model apart.
            "aggregator": keras.saving.serialize_keras_object(self._saved_aggregator),
            "max_units": self.max_units,
            "max_length": self.max_length,
        }
