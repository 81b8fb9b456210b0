"""The base of the attention layers for tf_keras: arguments, weights, and how a call passes."""

from __future__ import annotations

from typing import Any, ClassVar

import tensorflow as tf
from keras import ops

from keras_cosattn.attention.arguments import optional, positive
from keras_cosattn.attention.call_inputs import CallInputs, read_call
from keras_cosattn.attention.keras_arguments import output_sizes
from keras_cosattn.attention.projections import OUTPUT_AXES
from keras_cosattn.models.keras2 import tf_keras
from keras_cosattn.models.masks import key_mask
from keras_cosattn.ops import arrays, timesteps

Tensor = Any


class TFKerasAttention(tf_keras.layers.Layer):
    """Base of the attention layers for tf_keras, in place of its `MultiHeadAttention`.

    The projections have the names, the shapes and the order of those of
    `tf_keras.layers.MultiHeadAttention`, and of the layers of this package for Keras 3. So weights
    go from one to the other with `set_weights(layer.get_weights())`, and a `tf.train.Checkpoint`
    of a model with softmax attention can be restored into the same model with linear attention.
    Between the projections a layer computes what its namesake for Keras 3 computes, with the same
    functions.

    Dropout acts on the mixed values of the heads, as the weights of the steps are never computed.
    Sums and normalisers are float32 under every dtype policy. A row with nothing to attend to, or
    of a query that the implicit mask of tf_keras excludes, is zero before the output projection.
    Positions count valid steps only. Where only the keys have a mask, queries count all steps, so
    pad after the valid steps.

    Args:
        num_heads: Integer, h, the number of heads.
        key_dim: Integer, d, the size of a query or key head.
        value_dim: Integer, e, the size of a value head. Defaults to `key_dim`.
        dropout: Float between 0 and 1, the dropout rate in training. Defaults to `0.0`.
        use_bias: Boolean, whether the projections have a bias. Defaults to `True`.
        output_shape: Integer or tuple of integers, the sizes of the output's last axes. Defaults
            to the size of the query's last axis.
        chunk_size: Integer, the number of steps that one matrix product of the causal form
            covers. Defaults to `None`: 128 on CPUs, 64 elsewhere.
        block_size: Integer, the number of steps that one iteration of the loop over the sequence
            takes. Defaults to `None`: one chunk on CPUs, 8,192 steps elsewhere.
        kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer,
        kernel_constraint, bias_constraint: As for `tf_keras.layers.MultiHeadAttention`, for the
            projections.
        activity_regularizer: Regularizer of the output.
        seed: Integer, the seed of the dropout.
        **kwargs: Arguments of `tf_keras.layers.Layer`, such as `name` and `dtype`.

    Call arguments:
        query: Tensor `(b, t, m)`.
        value: Tensor `(b, s, m')`.
        key: Tensor `(b, s, m'')`. Defaults to `value`.
        attention_mask: Boolean or number, True or 1 for valid keys: `(b, s)`, or a mask
            `(b, t, s)` or `(b, 1, t, s)` whose rows are equal, as `SelfAttentionMask` of
            tf-models-official makes. The first costs less, and it is the only one under XLA.
        training: Boolean, whether to apply dropout.
        use_causal_mask: Boolean. If True, query t sees only the keys s <= t.

    Returns:
        Tensor `(b, t, m)`.

    Raises:
        ValueError: If an argument has the wrong shape, or a mask differs from query to query. A
            TensorFlow graph, where the numbers are not known, has an assertion. A TFLite file has
            none.
    """

    # What `read_call` asks of a layer.
    accepts_attention_mask = False
    attention_axes = None
    cannot: ClassVar[dict[str, str]] = {}

    max_length: int | None = None
    limit_advice = ""

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        *,
        value_dim: int | None = None,
        dropout: float = 0.0,
        use_bias: bool = True,
        output_shape: int | tuple[int, ...] | None = None,
        chunk_size: int | None = None,
        block_size: int | None = None,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        seed: int | None = None,
        **kwargs: Any,
    ):
        # Without autocast the query keeps its implicit mask. The projections cast what they read.
        super().__init__(autocast=False, activity_regularizer=activity_regularizer, **kwargs)
        self.num_heads = positive("num_heads", num_heads)
        self.key_dim = positive("key_dim", key_dim)
        self.value_dim = optional(positive, "value_dim", value_dim) or self.key_dim
        self.dropout = dropout
        self.use_bias = use_bias
        self.output_sizes = output_sizes(output_shape)
        self.chunk_size = optional(positive, "chunk_size", chunk_size)
        self.block_size = optional(positive, "block_size", block_size)
        self.kernel_initializer = tf_keras.initializers.get(kernel_initializer)
        self.bias_initializer = tf_keras.initializers.get(bias_initializer)
        self.kernel_regularizer = tf_keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = tf_keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = tf_keras.constraints.get(kernel_constraint)
        self.bias_constraint = tf_keras.constraints.get(bias_constraint)
        self.seed = seed
        self.supports_masking = True
        self.input_spec = tf_keras.layers.InputSpec(ndim=3)
        self._dropout_layer = tf_keras.layers.Dropout(dropout, seed=seed, dtype=self.dtype_policy)

    def build(self, input_shape):
        # The attributes have the names of those of MultiHeadAttention, by which checkpoints know
        # them. The weights are built when the projections are called.
        self._query_dense = self._heads("query", self.key_dim)
        self._key_dense = self._heads("key", self.key_dim)
        self._value_dense = self._heads("value", self.value_dim)
        sizes = self.output_sizes or (input_shape[-1],)
        letters = OUTPUT_AXES[: len(sizes)]
        equation = f"bthe,he{letters}->bt{letters}"
        self._output_dense = self._dense("attention_output", equation, sizes, letters)
        super().build(input_shape)

    def call(
        self,
        query: Tensor,
        value: Tensor,
        key: Tensor | None = None,
        attention_mask: Tensor | None = None,
        training: bool | None = None,
        use_causal_mask: bool = False,
    ) -> Tensor:
        return self._attend(query, value, key, attention_mask, training, use_causal_mask)

    @tf.autograph.experimental.do_not_convert  # on `call` it would hide the arguments
    def _attend(self, query, value, key, attention_mask, training, use_causal_mask):
        key = value if key is None else key
        query_mask, value_mask, implicit = (
            getattr(x, "_keras_mask", None) for x in (query, value, key)
        )
        given = key_mask(self.name, attention_mask, value.shape)
        keys = timesteps.combine(implicit, given)
        inputs = read_call(
            self, query, value, key, query_mask, value_mask, keys, use_causal_mask=use_causal_mask
        )
        inputs = self._in_order(inputs.zero_masked())
        q = self._query_dense(inputs.query)
        k = self._key_dense(inputs.key)
        v = self._value_dense(inputs.value)
        mixed = ops.cast(self._mix(q, k, v, inputs.layout), self.compute_dtype)
        mixed = self._dropout_layer(mixed, training=training)
        mixed = arrays.zero_masked(mixed, inputs.layout.query_mask)
        return self._output_dense(inputs.order.restore_queries(mixed))

    def _in_order(self, inputs: CallInputs) -> CallInputs:
        """Return the inputs, at most `max_length` steps, in the order that `_mix` needs."""
        layout = inputs.layout
        if self.max_length is not None:
            longest = arrays.maximum(layout.longest_queries(), layout.longest_keys())
            inputs = inputs.check_limit(longest, self.max_length, self.name, self.limit_advice)
        if layout.causal and not layout.one_sequence:
            return inputs.valid_first()
        return inputs

    def _mix(self, q, k, v, layout):
        """Mix v over the whole sequence: `(b, t, h, e)`."""
        raise NotImplementedError(f"{type(self).__name__} must fill in `_mix`.")

    def _op_arguments(self, layout):
        """Return the arguments that all operations take."""
        return {
            "mask": layout.key_mask,
            "lengths": (layout.query_steps, layout.key_steps),
            "chunk_size": self.chunk_size,
            "block_size": self.block_size,
        }

    def _heads(self, name, size):
        return self._dense(name, "btm,mhd->bthd", (self.num_heads, size), "hd")

    def _dense(self, name, equation, sizes, bias_axes):
        return tf_keras.layers.EinsumDense(
            equation,
            output_shape=(None, *sizes),
            bias_axes=bias_axes if self.use_bias else None,
            kernel_initializer=_copy(self.kernel_initializer),
            bias_initializer=_copy(self.bias_initializer),
            kernel_regularizer=self.kernel_regularizer,
            bias_regularizer=self.bias_regularizer,
            kernel_constraint=self.kernel_constraint,
            bias_constraint=self.bias_constraint,
            dtype=self.dtype_policy,
            name=name,
        )

    def get_build_config(self):
        """Return the widths of query, key and value, which decide on the shapes of the weights."""
        if not (self.built and self._output_dense.built):
            return None
        parts = {"query": self._query_dense, "key": self._key_dense, "value": self._value_dense}
        return {name: part.kernel.shape[0] for name, part in parts.items()}

    def build_from_config(self, config):
        shapes = {name: (None, None, width) for name, width in config.items()}
        self.build(tf.TensorShape(shapes["query"]))
        self._query_dense.build(shapes["query"])
        self._key_dense.build(shapes["key"])
        self._value_dense.build(shapes["value"])
        self._output_dense.build((None, None, self.num_heads, self.value_dim))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "value_dim": self.value_dim,
            "dropout": self.dropout,
            "use_bias": self.use_bias,
            "output_shape": self.output_sizes,
            "chunk_size": self.chunk_size,
            "block_size": self.block_size,
            "kernel_initializer": tf_keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": tf_keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": tf_keras.regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": tf_keras.regularizers.serialize(self.bias_regularizer),
            "activity_regularizer": tf_keras.regularizers.serialize(self.activity_regularizer),
            "kernel_constraint": tf_keras.constraints.serialize(self.kernel_constraint),
            "bias_constraint": tf_keras.constraints.serialize(self.bias_constraint),
            "seed": self.seed,
        }


def _copy(initializer):
    """Return an initializer with the same arguments. One object would give each weight the same."""
    if not hasattr(initializer, "get_config"):  # a function
        return initializer
    return type(initializer).from_config(initializer.get_config())
