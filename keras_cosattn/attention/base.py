"""What every attention layer shares: projections, masks, head groups, dropout, config, streams."""

import typing

import keras
from keras import ops

from keras_cosattn import scope
from keras_cosattn.ops import arrays, timesteps


class Masks(typing.NamedTuple):
    """Which key each query may see, in factors. None stands for all."""

    query: object = None  # (b, t) bool
    key: object = None  # (b, s) bool
    segments: object = None  # (b, t) integer
    attention: object = None  # broadcastable to (b, h, t, s)
    causal: bool = False
    lengths: object = (
        None  # (t, s), read before the projections: reading a size cuts a TFLite graph
    )


class Attention(keras.layers.Layer):
    """Base of the attention layers: a drop-in for `keras.layers.MultiHeadAttention`.

    `(b, t, m)` queries and `(b, s, m')` values are projected to heads, mixed by the variant, and
    projected back to `(b, t, m)`. A variant fills in `_mix` and `_attend_in_stream`, and says in
    `cannot` what it cannot do.

    Args:
        num_heads: h.
        key_dim: d, the size of a query or key head.
        value_dim: e, the size of a value head; None is d.
        num_key_value_heads: heads of keys and values, each shared by a group of query heads;
            None is h. Ainslie et al., 2023.
        position: how far apart two steps are, for the variants that can use it: one of the
            objects of `keras_cosattn.positions`.
        dropout: rate, while training.
        use_bias: give the projections a bias.
        output_shape: size of the output's last axis; None is that of the query.
        kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer,
        kernel_constraint, bias_constraint: of the projections.
        seed: of the dropout.

    Call arguments:
        query: `(b, t, m)`.
        value: `(b, s, m')`.
        key: `(b, s, m'')`; None is the value.
        query_mask, value_mask, key_mask: `(b, t)`, `(b, s)`, `(b, s)`, True where a step takes
            part; None is Keras's implicit mask, and in self-attention (`query is value`) the mask
            of the values. Masked queries give zero before the output projection, and positions
            count the real steps only.
        attention_mask: `(b, 1, s)`, a padding mask; `SoftmaxAttention` takes any that
            broadcasts to `(b, h, t, s)`.
        return_attention_scores: also return the weights `(b, h, t, s)` with which the values are
            mixed, in O(t s) memory and the time of mixing values of size s.
        training: apply dropout.
        use_causal_mask: query t sees keys s <= t, both counted from the start.
        segment_ids: `(b, t)`, for packed sequences in self-attention: a step sees only its own
            run of equal ids.

    A row with nothing to attend to is zero before the output projection. Inside a stream
    (`Streaming`) the layer goes on from its state; that needs `use_causal_mask=True`.

    Attributes:
        cannot: dict of the uses that the layer refuses, each with its reason: "both ways" (without
            `use_causal_mask`), "causal", "cross" (queries other than the values), "packed"
            (`segment_ids`), "stream".
    """

    accepts_attention_mask = False
    accepts_positions = ()  # of the kinds "rotation", "encoding" and "bias"
    shares_query_and_key = False  # one projection, named `query`, makes both

    def __init__(
        self,
        num_heads,
        key_dim,
        value_dim=None,
        num_key_value_heads=None,
        dropout=0.0,
        use_bias=True,
        output_shape=None,
        position=None,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        kernel_constraint=None,
        bias_constraint=None,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = positive("num_heads", num_heads)
        self.key_dim = positive("key_dim", key_dim)
        self.value_dim = positive("value_dim", value_dim or key_dim)
        self.num_key_value_heads = positive("num_key_value_heads", num_key_value_heads or num_heads)
        if num_heads % self.num_key_value_heads:
            raise ValueError(
                "`num_heads` must be a multiple of `num_key_value_heads`. Received: "
                f"num_heads={num_heads}, num_key_value_heads={num_key_value_heads}"
            )
        self.dropout = dropout
        self.use_bias = use_bias
        self.output_size = output_shape
        self.position = self._check_position(position)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.seed = seed
        self.supports_masking = True
        self.dropout_layer = keras.layers.Dropout(dropout, seed=seed, dtype=self.dtype_policy)

    def build(self, query_shape, value_shape, key_shape=None):
        key_shape = value_shape if key_shape is None else key_shape
        self._check_inputs(query_shape, value_shape, key_shape)
        shared = self.num_key_value_heads
        self.query_dense = self._heads("query", query_shape, self.num_heads, self.key_dim)
        if not self.shares_query_and_key:
            self.key_dense = self._heads("key", key_shape, shared, self.key_dim)
        self.value_dense = self._heads("value", value_shape, shared, self.value_dim)
        self.output_dense = keras.layers.EinsumDense(
            "bthe,hem->btm",
            output_shape=(None, self.output_size or query_shape[-1]),
            bias_axes="m" if self.use_bias else None,
            name="attention_output",
            **self._projection_options(),
        )
        self.output_dense.build((*query_shape[:2], self.num_heads, self.value_dim))
        if self.position is not None and not self.position.built:
            self.position.build((*query_shape[:2], self.num_heads, self.key_dim))

    @property
    def cannot(self):
        """What the layer refuses: use -> reason."""
        return {}

    def __call__(self, query, value, *args, **kwargs):
        key = args[0] if args else kwargs.get("key")
        if query is not value or (key is not None and key is not value):
            self._refuse("cross")
        # Keras converts each argument by itself: `call` may not see that two were the same.
        names = ("query_mask", "value_mask", "attention_mask")
        found = _one_mask(query, value, *map(kwargs.get, names))
        kwargs |= {k: m for k, m in zip(names, found, strict=True) if k in kwargs or m is not None}
        watch = scope.watching()
        if watch is None:
            return super().__call__(query, value, *args, **kwargs)
        asked = kwargs.pop("return_attention_scores", False)
        kwargs["return_attention_scores"] = True
        outputs, weights, *more = super().__call__(query, value, *args, **kwargs)
        watch(self, weights)
        outputs = (outputs, weights, *more) if asked else (outputs, *more)
        return outputs if len(outputs) > 1 else outputs[0]

    def call(
        self,
        query,
        value,
        key=None,
        query_mask=None,
        value_mask=None,
        key_mask=None,
        attention_mask=None,
        return_attention_scores=False,
        training=None,
        use_causal_mask=False,
        segment_ids=None,
        **more,
    ):
        key = value if key is None else key
        self._check_inputs(query.shape, value.shape, key.shape)
        how = self._read_masks(
            query, value, query_mask, value_mask, key_mask, attention_mask, segment_ids
        )._replace(causal=use_causal_mask, lengths=(ops.shape(query)[1], ops.shape(value)[1]))
        stream = scope.current()
        self._check_use(how, stream, return_attention_scores)
        q, k, v = self._project(query, key, value, **more)
        if stream is None:
            mixed, weights = self._attend(q, k, v, how, training, return_attention_scores)
        else:
            mask = how.key if how.query is how.key else timesteps.combine(how.query, how.key)
            mask = timesteps.combine(stream.mask, mask)
            mixed, weights = self._attend_in_stream(q, k, v, mask, stream, training), None
        if how.query is not None:
            mixed = ops.where(_rows(how.query), mixed, ops.zeros_like(mixed))
        outputs = self.output_dense(ops.cast(mixed, self.compute_dtype))
        if return_attention_scores:
            return outputs, ops.cast(weights, self.compute_dtype)
        return outputs

    def compute_output_spec(
        self, query, value, key=None, return_attention_scores=False, use_causal_mask=False, **masks
    ):
        self._check_inputs(query.shape, value.shape, (value if key is None else key).shape)
        shape = self.compute_output_shape(query.shape, value.shape)
        outputs = keras.KerasTensor(shape, dtype=self.compute_dtype)
        if not return_attention_scores:
            return outputs
        shape = (query.shape[0], self.num_heads, query.shape[1], value.shape[1])
        return outputs, keras.KerasTensor(shape, dtype=self.compute_dtype)

    def compute_output_shape(self, query_shape, value_shape, key_shape=None):
        return (*query_shape[:2], self.output_size or query_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "value_dim": self.value_dim,
            "num_key_value_heads": self.num_key_value_heads,
            "dropout": self.dropout,
            "use_bias": self.use_bias,
            "output_shape": self.output_size,
            "position": keras.saving.serialize_keras_object(self.position),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
            "kernel_constraint": keras.constraints.serialize(self.kernel_constraint),
            "bias_constraint": keras.constraints.serialize(self.bias_constraint),
            "seed": self.seed,
        }

    def _read_masks(
        self, query, value, query_mask, value_mask, key_mask, attention_mask, segment_ids
    ):
        """The call's masks, checked, as `Masks`: one object where both sides have the same."""
        query_mask, value_mask, attention_mask = _one_mask(
            query, value, query_mask, value_mask, attention_mask
        )
        shared = query_mask is value_mask and key_mask is None and attention_mask is None
        given = {
            "value_mask": (value_mask, value.shape),
            "key_mask": (key_mask, value.shape),
            "query_mask": (query_mask, query.shape),
            "segment_ids": (segment_ids, query.shape),
        }
        for name, (mask, shape) in given.items():
            self._check_steps(name, mask, shape)
        if segment_ids is not None and not _compatible(query.shape[1], value.shape[1]):
            raise ValueError(
                f"{self.name}: `segment_ids` is for self-attention, where queries and keys are "
                f"the same steps. Received: query.shape={query.shape}, value.shape={value.shape}"
            )
        key_mask = timesteps.combine(_as_bool(value_mask), _as_bool(key_mask))
        attention_mask, padding = self._factor(attention_mask, query, value)
        key_mask = timesteps.combine(key_mask, padding)
        query_mask = _as_bool(query_mask)
        if segment_ids is not None and not shared:
            query_mask = timesteps.combine(query_mask, key_mask)
        if segment_ids is not None or shared:
            key_mask = query_mask  # one object: the layers below need not align the two
        return Masks(query_mask, key_mask, segment_ids, attention_mask)

    def _project(self, query, key, value):
        """What `_attend` takes: q `(b, t, h, d)`, k `(b, s, hk, d)`, v `(b, s, hk, e)`.

        A variant whose `call` has more arguments hands them on and finds them here.
        """
        q = self.query_dense(query)
        k = q if self.shares_query_and_key else self.key_dense(key)
        return q, k, self.value_dense(value)

    def _attend(self, q, k, v, how, training, return_weights):
        """Mix v over the whole sequence: `(b, t, h, e)` and, if asked for, `(b, h, t, s)`."""
        mixed = self._mix(q, k, v, how, training)
        if not return_weights:
            return mixed, None
        return mixed, self._implied_weights(lambda each: self._mix(q, k, each, how, False), v, how)

    def _implied_weights(self, mix, v, how):
        """`(b, h, t, s)`: what a function that is linear in the values makes of the identity."""
        b, s, heads, _ = ops.shape(v)
        each = ops.broadcast_to(ops.reshape(ops.eye(s), (1, s, 1, s)), (b, s, heads, s))
        return ops.transpose(arrays.zero_masked(mix(each), how.query), (0, 2, 1, 3))

    def _mix(self, q, k, v, how, training):
        """Mix v over the whole sequence, `(b, t, h, e)`. Linear in v, whose e may be any."""
        raise NotImplementedError(f"{type(self).__name__} must fill in `_mix`.")

    def _attend_in_stream(self, q, k, v, mask, stream, training):
        """Mix v over the past that the stream holds and these steps: `(b, t, h, e)`."""
        raise NotImplementedError(f"{type(self).__name__} must fill in `_attend_in_stream`.")

    def _drop(self, training):
        """The dropout of weights, as a function."""
        return lambda weights: self.dropout_layer(weights, training=training)

    def _place(self, q, k, q_positions, k_positions):
        """Queries and keys with their positions `(b or 1, t)`, `(b or 1, s)` in them; the bias."""
        if self.position is None:
            return q, k, None
        bias = self.position.bias(q, q_positions, k_positions)
        return *self.position.encode(q, k, q_positions, k_positions), bias

    def _heads(self, name, shape, heads, size):
        dense = keras.layers.EinsumDense(
            "btm,mhd->bthd",
            output_shape=(None, heads, size),
            bias_axes="hd" if self.use_bias else None,
            name=name,
            **self._projection_options(),
        )
        dense.supports_masking = True  # the masks are read before; Keras would warn
        dense.build(shape)
        return dense

    def _projection_options(self):
        return {
            "kernel_initializer": _copy(self.kernel_initializer),
            "bias_initializer": _copy(self.bias_initializer),
            "kernel_regularizer": self.kernel_regularizer,
            "bias_regularizer": self.bias_regularizer,
            "kernel_constraint": self.kernel_constraint,
            "bias_constraint": self.bias_constraint,
            "dtype": self.dtype_policy,
        }

    def _factor(self, mask, query, value):
        """An attention mask as `(rest, padding)`: one of the two is None, `padding (b, s)`."""
        if mask is None:
            return None, None
        mask, t, s = _as_bool(mask), query.shape[1], value.shape[1]
        shape = (1,) * (4 - len(mask.shape)) + tuple(mask.shape)
        if len(mask.shape) == 3:
            shape = (shape[1], 1, *shape[2:])
        if len(shape) > 4 or any(
            n not in (1, None) and not _compatible(n, full)
            for n, full in zip(shape[1:], (self.num_heads, t, s), strict=True)
        ):
            raise ValueError(
                f"{self.name}: `attention_mask` must broadcast to (b, h, t, s) = "
                f"(b, {self.num_heads}, {t}, {s}), a mask of rank 3 being (b, t, s). "
                f"Received: attention_mask.shape={mask.shape}"
            )
        if shape[1] == 1 and shape[2] == 1:
            return None, ops.broadcast_to(
                ops.reshape(mask, (-1, mask.shape[-1])), ops.shape(value)[:2]
            )
        if not self.accepts_attention_mask:
            raise ValueError(
                f"{self.name}: a linear layer cannot take an `attention_mask` that differs from "
                f"query to query. Received: attention_mask.shape={mask.shape}. Use (b, 1, s) for "
                "padding, `use_causal_mask=True`, or `segment_ids`; or SoftmaxAttention, "
                "which takes any mask."
            )
        return mask, None

    def _check_inputs(self, query_shape, value_shape, key_shape):
        shapes = {"query": query_shape, "value": value_shape, "key": key_shape}
        for name, shape in shapes.items():
            if len(shape) != 3 or shape[1] == 0:
                raise ValueError(
                    f"{self.name}: `{name}` must have shape (batch, steps, features) with at "
                    f"least one step. Received: {name}.shape={tuple(shape)}"
                )
        batches = (query_shape[0], value_shape[0]), (value_shape[0], key_shape[0])
        if not all(_compatible(*pair) for pair in (*batches, (value_shape[1], key_shape[1]))):
            raise ValueError(
                f"{self.name}: query, value and key must agree in batch size, and value and key "
                f"in length. Received: query.shape={tuple(query_shape)}, "
                f"value.shape={tuple(value_shape)}, key.shape={tuple(key_shape)}"
            )

    def _check_steps(self, name, mask, shape):
        if mask is None:
            return
        if len(mask.shape) != 2 or not all(
            _compatible(n, full) for n, full in zip(mask.shape, shape, strict=False)
        ):
            raise ValueError(
                f"{self.name}: `{name}` must have shape (batch, steps) = {tuple(shape[:2])}. "
                f"Received: {name}.shape={tuple(mask.shape)}"
            )

    def _check_use(self, how, stream, return_attention_scores):
        self._refuse("causal" if how.causal else "both ways")
        if how.segments is not None:
            self._refuse("packed")
        if stream is None:
            return
        reasons = {
            "it looks ahead: it is called without `use_causal_mask=True`": not how.causal,
            "`attention_mask` would have to cover the past": how.attention is not None,
            "`segment_ids` are not needed: reset the stream instead": how.segments is not None,
            "`return_attention_scores` would need the whole past": return_attention_scores,
        }
        for reason, holds in reasons.items():
            if holds:
                raise ValueError(f"{self.path} ({type(self).__name__}) cannot stream: {reason}.")
        self._refuse("stream")

    def _refuse(self, use):
        if use in self.cannot:
            what = {
                "both ways": "look both ways (without `use_causal_mask=True`)",
                "causal": "be causal (`use_causal_mask=True`)",
                "cross": "attend from queries to other values",
                "packed": "pack sequences (`segment_ids`)",
                "stream": "stream",
            }[use]
            raise ValueError(
                f"{self.path or self.name} ({type(self).__name__}) cannot {what}: "
                f"{self.cannot[use]}"
            )

    def _check_position(self, position):
        if isinstance(position, dict):
            position = keras.saving.deserialize_keras_object(position)
        if position is None:
            return None
        if getattr(position, "kind", None) in self.accepts_positions:
            return position.clone()  # one object may be passed to many layers
        if not self.accepts_positions:
            can = "None: this layer has no scores or features that it could change"
        else:
            can = f"an object of keras_cosattn.positions of kind {self.accepts_positions}"
        raise ValueError(
            f"{type(self).__name__}: `position` must be {can}. Received: position={position!r}"
        )


def positive(name, value):
    """`value`, which must be an integer of at least 1."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` must be an integer of at least 1. Received: {name}={value!r}")
    return value


def valid_steps_first(q, k, v, how):
    """The call with padding moved behind, so that index is position; and what puts it back.

    Returns q, k, v, how, and the order for `timesteps.take_steps` that restores the queries' steps,
    or None.
    """
    restore = None
    if how.query is not None and how.query is how.key:
        order, restore = timesteps.valid_first(how.query)
        q, k, v = (timesteps.take_steps(x, order) for x in (q, k, v))
        mask = timesteps.take_steps(how.query, order)
        how = how._replace(query=mask, key=mask)
        if how.segments is not None:
            # Numbers: two runs of one id may come to stand side by side.
            segments = timesteps.take_steps(timesteps.segment_numbers(how.segments), order)
            how = how._replace(segments=segments)
        return q, k, v, how, restore
    if how.key is not None:
        order, _ = timesteps.valid_first(how.key)
        k, v = timesteps.take_steps(k, order), timesteps.take_steps(v, order)
        how = how._replace(key=timesteps.take_steps(how.key, order))
    if how.query is not None:
        order, restore = timesteps.valid_first(how.query)
        q = timesteps.take_steps(q, order)
        how = how._replace(query=timesteps.take_steps(how.query, order))
    return q, k, v, how, restore


def _compatible(n, other):
    return n is None or other is None or n == other


def _as_bool(mask):
    return None if mask is None else ops.cast(mask, "bool")


def _one_mask(query, value, query_mask, value_mask, attention_mask):
    """The three masks; in self-attention whose queries have none of their own, one for both sides.

    A padding mask `(b, 1, s)` is then taken into it.
    """
    if query is not value or query_mask is not None:
        return query_mask, value_mask, attention_mask
    shape = () if attention_mask is None else attention_mask.shape
    if len(shape) == 3 and shape[1] == 1 and _compatible(shape[2], value.shape[1]):
        value_mask = timesteps.combine(_as_bool(value_mask), _as_bool(attention_mask[:, 0]))
        attention_mask = None
    return value_mask, value_mask, attention_mask


def _rows(mask):
    return ops.expand_dims(ops.expand_dims(mask, -1), -1)


def _copy(initializer):
    """A fresh one, so that two projections never start with the same numbers."""
    return type(initializer).from_config(initializer.get_config())
