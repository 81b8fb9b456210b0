"""Projections to heads and back: the arguments, weights and shapes of all attention layers."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_cosattn.attention import keras_arguments, refusals
from keras_cosattn.attention.arguments import optional, own_copy, positive, saved_form
from keras_cosattn.attention.call_inputs import check_shapes
from keras_cosattn.keras3_only import Keras3Only

Tensor = Any
OUTPUT_AXES = "mnopqrsuvwxyz"  # letters of einsum equations that b, t, h and e leave


class HeadProjections(Keras3Only, keras.layers.Layer):
    """Base of `Attention`, which documents the arguments: all but the computation of a call.

    The arguments, their order and the order of the weights are those of
    `keras.layers.MultiHeadAttention`.
    """

    accepts_positions: tuple[str, ...] = ()  # of the kinds "rotation", "encoding" and "bias"
    accepts_sliding_window = False
    accepts_query_key_norm = True
    shares_query_and_key = False  # one projection, named `query`, makes both

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        value_dim: int | None = None,
        dropout: float = 0.0,
        use_bias: bool = True,
        output_shape: int | tuple[int, ...] | None = None,
        attention_axes: int | tuple[int, ...] | None = None,
        sliding_window: int | None = None,
        flash_attention: bool | None = None,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        use_gate: bool = False,
        seed: int | None = None,
        *,
        num_key_value_heads: int | None = None,
        position: Any = None,
        use_query_key_norm: bool = False,
        query_key_norm_epsilon: float = 1e-6,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_heads = positive("num_heads", num_heads)
        self.key_dim = positive("key_dim", key_dim)
        self.value_dim = optional(positive, "value_dim", value_dim) or self.key_dim
        shared = optional(positive, "num_key_value_heads", num_key_value_heads)
        self.num_key_value_heads = shared or self.num_heads
        if self.num_heads % self.num_key_value_heads:
            raise ValueError(
                "`num_heads` must be a multiple of `num_key_value_heads`. Received: "
                f"num_heads={num_heads}, num_key_value_heads={num_key_value_heads}"
            )
        self.dropout = dropout
        self.use_bias = use_bias
        self.use_gate = use_gate
        self.output_sizes = keras_arguments.output_sizes(output_shape)
        self.attention_axes = keras_arguments.axes(attention_axes)
        self.sliding_window = keras_arguments.window(type(self), sliding_window)
        self.flash_attention = keras_arguments.flash_attention(type(self), flash_attention)
        self.position = own_copy(position, self.dtype_policy)
        refusals.check_position(self, self.position)
        self.use_query_key_norm = use_query_key_norm
        self.query_key_norm_epsilon = query_key_norm_epsilon
        refusals.check_query_key_norm(self)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        # Of the projections: as the attribute `activity_regularizer` it would count the outputs of
        # the last one twice.
        self._activity_regularizer = keras.regularizers.get(activity_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.seed = seed
        self.supports_masking = True
        self.dropout_layer = keras.layers.Dropout(
            dropout,
            seed=seed,
            dtype=self.dtype_policy,
            autocast=False,  # weights keep their dtype
        )

    @property
    def sum_dtype(self) -> str:
        """The dtype of sums and normalisers: float32, or float64 in a float64 layer."""
        return "float64" if self.compute_dtype == "float64" else "float32"

    def build(self, query_shape, value_shape, key_shape=None):
        key_shape = value_shape if key_shape is None else key_shape
        axes = check_shapes(self, query_shape, value_shape, key_shape)
        query_shape, value_shape, key_shape = map(
            axes.fold_shape, (query_shape, value_shape, key_shape)
        )
        of_queries, of_keys = self._projected_heads()
        self.query_dense = self._heads("query", query_shape, of_queries, self.key_dim)
        if not self.shares_query_and_key:
            self.key_dense = self._heads("key", key_shape, of_keys, self.key_dim)
        if self.use_gate:
            self.gate_dense = self._heads(
                "gate", query_shape, self.num_heads, self.value_dim, activation="sigmoid"
            )
        self.value_dense = self._heads(
            "value", value_shape, self.num_key_value_heads, self.value_dim
        )
        sizes = self.output_sizes or query_shape[-1:]
        letters = OUTPUT_AXES[: len(sizes)]
        self.output_dense = keras.layers.EinsumDense(
            f"bthe,he{letters}->bt{letters}",
            output_shape=(None, *sizes),
            bias_axes=letters if self.use_bias else None,
            name="attention_output",
            **self._projection_options(),
        )
        self.output_dense.build((*query_shape[:2], self.num_heads, self.value_dim))
        if self.use_query_key_norm:
            self.query_norm = self._head_norm("query_norm")
            self.key_norm = self._head_norm("key_norm")
        if self.position is not None and not self.position.built:
            self.position.build((*query_shape[:2], self.num_heads, self.key_dim))

    def compute_output_shape(self, query_shape, value_shape, key_shape=None):
        check_shapes(self, query_shape, value_shape, key_shape or value_shape)
        return (*query_shape[:-1], *(self.output_sizes or query_shape[-1:]))

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "value_dim": self.value_dim,
            "num_key_value_heads": self.num_key_value_heads,
            "dropout": self.dropout,
            "use_bias": self.use_bias,
            "use_gate": self.use_gate,
            "output_shape": self.output_sizes,
            "attention_axes": self.attention_axes,
            "sliding_window": self.sliding_window,
            "flash_attention": self.flash_attention,
            "position": saved_form(self.position),
            "use_query_key_norm": self.use_query_key_norm,
            "query_key_norm_epsilon": self.query_key_norm_epsilon,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
            "activity_regularizer": keras.regularizers.serialize(self._activity_regularizer),
            "kernel_constraint": keras.constraints.serialize(self.kernel_constraint),
            "bias_constraint": keras.constraints.serialize(self.bias_constraint),
            "seed": self.seed,
        }

    def _projected_heads(self):
        """Return the numbers of heads of queries and of keys that the projections make."""
        return self.num_heads, self.num_key_value_heads

    def _project(self, query, key, value):
        """What `_attend` takes: q `(b, t, h, d)`, k `(b, s, hk, d)`, v `(b, s, hk, e)`."""
        q = self._queries(query)
        k = q if self.shares_query_and_key else self._keys(key)
        return q, k, self.value_dense(value)

    def _queries(self, query):
        """The heads `(b, t, h, d)` of queries `(b, t, m)`."""
        q = self.query_dense(query)
        return self.query_norm(q) if self.use_query_key_norm else q

    def _keys(self, key):
        """The heads `(b, s, hk, d)` of keys `(b, s, m)`."""
        k = self.key_dense(key)
        return self.key_norm(k) if self.use_query_key_norm else k

    def _gated(self, query, mixed):
        """What the output projection reads: `mixed (b, t, h, e)`, times the gate of the query."""
        mixed = ops.cast(mixed, self.compute_dtype)
        return ops.multiply(mixed, self.gate_dense(query)) if self.use_gate else mixed

    def _project_back(self, query, mixed):
        """The outputs `(b, t, m)` of what each query gets, `mixed (b, t, h, e)`."""
        return self.output_dense(self._gated(query, mixed))

    def _heads(self, name, shape, heads, size, activation=None):
        dense = keras.layers.EinsumDense(
            "btm,mhd->bthd",
            output_shape=(None, heads, size),
            bias_axes="hd" if self.use_bias else None,
            activation=activation,
            name=name,
            **self._projection_options(),
        )
        dense.supports_masking = True  # the masks are read before; Keras would warn
        dense.build(shape)
        return dense

    def _head_norm(self, name):
        norm = keras.layers.RMSNormalization(
            epsilon=self.query_key_norm_epsilon, name=name, dtype=self.dtype_policy
        )
        norm.supports_masking = True  # as that of the projections
        norm.build((None, None, None, self.key_dim))
        return norm

    def _projection_options(self):
        return {
            "kernel_initializer": self.kernel_initializer.clone(),
            "bias_initializer": self.bias_initializer.clone(),
            "kernel_regularizer": self.kernel_regularizer,
            "bias_regularizer": self.bias_regularizer,
            "activity_regularizer": self._activity_regularizer,
            "kernel_constraint": self.kernel_constraint,
            "bias_constraint": self.bias_constraint,
            "dtype": self.dtype_policy,
        }
