"""The base of the attention layers: how a call passes through one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from keras_cosattn import scope
from keras_cosattn.attention import refusals
from keras_cosattn.attention.call_inputs import CallInputs, check_shapes, differ, read_call
from keras_cosattn.attention.constant_values import attend_to_constants, attends_to_constants
from keras_cosattn.attention.projections import HeadProjections
from keras_cosattn.layout import CallLayout
from keras_cosattn.ops import arrays

if TYPE_CHECKING:
    from keras_cosattn.layer_options import signature_of

Tensor = Any


class Attention(HeadProjections):
    """Base of the attention layers: a drop-in for `keras.layers.MultiHeadAttention`.

    Queries `(b, t, m)` and values `(b, s, m')` are projected to heads, mixed by the variant, and
    projected back to `(b, t, m)`. A variant fills in `_mix` and `_attend_in_stream`, and says in
    `cannot` what it cannot do.

    Masked steps are set to zero before the layer reads them, so they may hold any number, also
    NaN. Positions and limits count valid steps only. A row with nothing to attend to is zero
    before the output projection. Inside a stream (`Streaming`) the layer continues from its state;
    that needs `use_causal_mask=True`.

    Args:
        num_heads: Integer, h, the number of query heads.
        key_dim: Integer, d, the size of a query or key head.
        value_dim: Integer, e, the size of a value head. Defaults to `key_dim`.
        dropout: Float between 0 and 1, the dropout rate in training. Defaults to `0.0`.
        use_bias: Boolean, whether the projections have a bias. Defaults to `True`.
        output_shape: Integer or tuple of integers, the sizes of the output's last axes. Defaults to
            the size of the query's last axis.
        attention_axes: Integer or tuple of integers, the axes that attention mixes, for inputs of
            a rank above 3. Defaults to all axes but the first and the last.
        sliding_window: Integer w, for `SoftmaxAttention`: a query sees the keys at less than w
            steps from it. Defaults to `None`, no window.
        flash_attention: `None`, or `False` to keep `SoftmaxAttention` from the fused kernels of
            JAX and PyTorch. Defaults to `None`.
        kernel_initializer: Initializer of the projections' kernels. Defaults to
            `"glorot_uniform"`.
        bias_initializer: Initializer of the projections' biases. Defaults to `"zeros"`.
        kernel_regularizer: Regularizer of the projections' kernels.
        bias_regularizer: Regularizer of the projections' biases.
        activity_regularizer: Regularizer of the outputs of each projection.
        kernel_constraint: Constraint of the projections' kernels.
        bias_constraint: Constraint of the projections' biases.
        use_gate: Boolean, whether a sigmoid projection of the query multiplies what the output
            projection reads (Qiu et al., 2025). Defaults to `False`.
        seed: Integer, the seed of the dropout.
        num_key_value_heads: Integer, the number of key and value heads, each of which is shared by
            a group of query heads (Ainslie et al., 2023). Defaults to `num_heads`.
        position: An object of `keras_cosattn.positions`, for the variants that can use it. The
            layer makes a copy of its own. Defaults to `None`.
        use_query_key_norm: Boolean, whether the d numbers x of each query and key head become
            `x / sqrt(mean(x^2) + epsilon) g`, with a learned g for queries and one for keys, before
            anything else reads them (Qwen 3, Yang et al., 2025). Defaults to `False`.
        query_key_norm_epsilon: Float, the epsilon of these norms. Defaults to `1e-6`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Call arguments:
        query: Tensor `(b, t, m)`.
        value: Tensor `(b, s, m')`.
        key: Tensor `(b, s, m'')`. Defaults to `value`.
        query_mask: Boolean `(b, t)`, True for valid queries. Defaults to the query's Keras mask.
            The row of a masked query is zero before the output projection.
        value_mask: Boolean `(b, s)`, True for valid values. Defaults to the value's Keras mask. In
            a causal call without `query_mask`, and in a packed call, it masks the queries too.
        key_mask: Boolean `(b, s)`, as `value_mask`. A step is valid if both masks say so.
        attention_mask: Boolean `(b, 1, s)`, a mask of the keys. `SoftmaxAttention` takes any mask
            that broadcasts to `(b, h, t, s)`.
        return_attention_scores: Boolean, whether to return the weights `(b, h, t, s)` with which
            the values are mixed, too. They cost O(t s) memory, and as much time as values of
            size s.
        training: Boolean, whether to apply dropout.
        use_causal_mask: Boolean. If True, query t sees only the keys s <= t.
        segment_ids: Integer `(b, t)`, for packed sequences in self-attention: a step sees only
            the steps of its own run of equal ids.

    Returns:
        A tensor `(b, t, m)`, or with `return_attention_scores=True` a pair of it and the weights.

    Raises:
        ValueError: If an argument has the wrong shape, if the layer cannot do what is asked, or
            if it is known that there are more valid steps than the layer's limit.
    """

    accepts_attention_mask = False
    queries_are_independent = False  # without `position`: no output depends on other queries
    limit_advice = "Build the layer with a larger `max_length`, or shorten the input."
    needs_valid_first = False  # `_mix` and `_attend_in_stream` want the valid steps first

    @property
    def cannot(self) -> dict[str, str]:
        """What the layer refuses, each with its reason.

        The keys are of "both ways" (without `use_causal_mask`), "causal", "cross" (queries other
        than the values), "packed" (`segment_ids`) and "stream".
        """
        return {}

    @property
    def sequence_limit(self) -> int | None:
        """The largest number of valid steps of a whole sequence. None means that any will do."""
        return None

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
    ) -> Tensor:
        inputs = read_call(
            self, query, value, key, query_mask, value_mask, key_mask, attention_mask,
            use_causal_mask, segment_ids,
        )  # fmt: skip
        return self._attend_to(inputs, training, return_attention_scores)

    if TYPE_CHECKING:

        @signature_of(call)
        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def compute_output_spec(
        self, query, value, key=None, query_mask=None, value_mask=None, key_mask=None,
        attention_mask=None, return_attention_scores=False, training=None, use_causal_mask=False,
        segment_ids=None, **more,
    ):  # fmt: skip
        key = value if key is None else key
        axes = check_shapes(self, query.shape, value.shape, key.shape)
        if use_causal_mask or attention_mask is None:  # a mask can be causal
            self.refuse("causal" if use_causal_mask else "both ways")
        if segment_ids is not None:
            self.refuse("packed")
        if differ(query, value) or differ(value, key):
            self.refuse("cross")
        shape = self.compute_output_shape(query.shape, value.shape)
        outputs = keras.KerasTensor(shape, dtype=self.compute_dtype)
        if not return_attention_scores:
            return outputs
        shape = axes.scores_shape(query.shape, value.shape, self.num_heads)
        return outputs, keras.KerasTensor(shape, dtype=self.compute_dtype)

    def refuse(self, use: str) -> None:
        """Raise ValueError with the reason if `cannot` has the use."""
        refusals.refuse(self, use)

    def _attend_to(self, inputs: CallInputs, training, return_weights):
        """The output of a call and, if asked for, the weights."""
        refusals.check_use(self, inputs.layout, return_weights)
        watch, stream = scope.watching(), scope.current()
        wants_weights = return_weights or watch is not None
        mixed, weights = self._mixed(inputs, stream, training, wants_weights)
        outputs = inputs.unfold(self.output_dense(mixed))
        if not wants_weights:
            return outputs
        weights = ops.cast(weights, self.compute_dtype)
        if watch is not None:
            watch(self, weights)
        return (outputs, inputs.unfold_scores(weights)) if return_weights else outputs

    def _mixed(self, inputs, stream, training, return_weights):
        """What each query gets, `(b, t, h, e)`, and if asked for the weights `(b, h, t, s)`."""
        if stream is None and inputs.is_empty:
            return self._nothing(inputs, return_weights)
        inputs = inputs.zero_masked()
        if attends_to_constants(stream, inputs.layout.causal):
            mixed = attend_to_constants(self, inputs, stream, training)
            mixed = self._gated(inputs.query, mixed)
            return arrays.zero_masked(mixed, inputs.layout.query_mask), None
        if stream is None and self.sequence_limit is not None:
            longest = self._longest(inputs.layout)
            inputs = inputs.check_limit(longest, self.sequence_limit, self.name, self.limit_advice)
        if self._wants_valid_first(inputs.layout):
            inputs = inputs.valid_first()
        layout, order, weights = inputs.layout, inputs.order, None
        q, k, v = self._project(inputs.query, inputs.key, inputs.value)
        if stream is None:
            mixed, weights = self._attend(q, k, v, layout, training, return_weights)
        else:
            mixed = self._attend_in_stream(q, k, v, layout, stream, training)
        mixed = arrays.zero_masked(self._gated(inputs.query, mixed), layout.query_mask)
        mixed = order.restore_queries(mixed)
        return mixed, None if weights is None else order.restore_weights(weights)

    def _nothing(self, inputs, return_weights):
        """The zeros of a call without examples, queries or keys."""
        b, t = ops.shape(inputs.query)[:2]
        mixed = ops.zeros((b, t, self.num_heads, self.value_dim), self.compute_dtype)
        if not return_weights:
            return mixed, None
        s = inputs.layout.key_steps
        return mixed, ops.zeros((b, self.num_heads, t, s), self.compute_dtype)

    def _longest(self, layout: CallLayout) -> Any:
        """What `sequence_limit` limits."""
        return arrays.maximum(layout.longest_queries(), layout.longest_keys())

    def _wants_valid_first(self, layout: CallLayout) -> bool:
        return self.needs_valid_first

    def _attend(self, q, k, v, layout, training, return_weights):
        """Mix v over the whole sequence: `(b, t, h, e)` and, if asked for, `(b, h, t, s)`."""
        mixed = self._mix(q, k, v, layout, training)
        if not return_weights:
            return mixed, None
        weights = self._implied_weights(
            lambda each: self._mix(q, k, each, layout, False), v, layout
        )
        return mixed, weights

    def _implied_weights(self, mix, v, layout):
        """`(b, h, t, s)`: what a function that is linear in the values makes of the identity."""
        b, s, heads, _ = ops.shape(v)
        each = ops.reshape(ops.eye(s, dtype=self.sum_dtype), (1, s, 1, s))
        each = ops.broadcast_to(each, (b, s, heads, s))
        return ops.transpose(arrays.zero_masked(mix(each), layout.query_mask), (0, 2, 1, 3))

    def _mix(self, q, k, v, layout, training):
        """Mix v over the whole sequence, `(b, t, h, e)`. Linear in v, whose e may be any."""
        raise NotImplementedError(f"{type(self).__name__} must fill in `_mix`.")

    def _attend_in_stream(self, q, k, v, layout, stream, training):
        """Mix v over the past that the stream holds and these steps: `(b, t, h, e)`."""
        raise NotImplementedError(f"{type(self).__name__} must fill in `_attend_in_stream`.")

    def _drop(self, training):
        """The dropout of weights, as a function that keeps their dtype. `None` if nothing drops."""
        if not training or self.dropout == 0:
            return None
        return lambda weights: self.dropout_layer(weights, training=True)

    def _encode_positions(self, q, k, q_positions, k_positions):
        """Queries and keys with their positions `(b or 1, t)`, `(b or 1, s)` in them; the bias."""
        if self.position is None:
            return q, k, None
        bias = self.position.bias(q, q_positions, k_positions)
        return *self.position.encode(q, k, q_positions, k_positions), bias
