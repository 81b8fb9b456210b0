"""The base of the linear layers, whose past is a sum of constant size."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_cosattn.attention.arguments import optional, positive
from keras_cosattn.attention.base import Attention
from keras_cosattn.attention.short_convolutions import ShortConvolutions
from keras_cosattn.layout import CallLayout
from keras_cosattn.ops import timesteps
from keras_cosattn.scope import Stream


class SumsAttention(Attention):
    """Base class of the linear layers.

    Dropout acts on the mixed values, as the weights are never computed. A subclass overrides
    `_sums`, `_weights` and `_state_spec`. It sets `limit` if its streams have an end, and `bounded`
    if its sums run over a bounded number of steps. The state of all other layers has a "count" of
    the steps in a stream that keeps means.

    Args:
        *args: Arguments of `Attention`.
        conv_size: Integer, the number of steps of a short causal convolution of the queries, keys
            and values, each channel by itself, with SiLU after it. `None` is no convolution.
        **kwargs: Arguments of `Attention`.
    """

    limit: int | None = None
    bounded = False
    convolves_in_loop = False  # whether `_sums` calls `convolutions` itself
    uses_conv_bias = False
    period = 1  # the positions of an endless stream keep their remainder by this number

    def __init__(self, *args: Any, conv_size: int | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.conv_size = optional(positive, "conv_size", conv_size)
        if self.conv_size is not None:
            self.queries_are_independent = False

    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        if self.conv_size is None:
            return
        of_queries, of_keys = self._projected_heads()
        sizes = {
            "q": (of_queries, self.key_dim),
            "k": (of_keys, self.key_dim),
            "v": (self.num_key_value_heads, self.value_dim),
        }
        self.convolutions = ShortConvolutions(self, self.conv_size, sizes, self.uses_conv_bias)

    def _sums(self, q, k, v, layout, state):
        """Return `(b, t, h, e)` and the new state. `state` is None for a whole sequence."""
        raise NotImplementedError(f"{type(self).__name__} must override `_sums`.")

    def _weights(self, q, k, layout):
        """Return the weights `(b, h, t, s)` that `_sums` implies."""
        raise NotImplementedError(f"{type(self).__name__} must override `_weights`.")

    def _state_spec(self):
        """Return the shape (without the batch axis) and the dtype of each entry of the state."""
        raise NotImplementedError(f"{type(self).__name__} must override `_state_spec`.")

    @property
    def _has_positions(self) -> bool:
        return self.position is not None

    def _positions(self, layout, state):
        """Return the positions of queries and keys, or None, and the state of the positions.

        They are prepared for `_rotate`. Subclasses that accept a `position` call it in `_sums` and
        `_weights`. Their state then has the entries of `_position_spec`.
        """
        if not self._has_positions:
            return None, {}
        if state is None:
            of_queries, of_keys = layout.query_positions, layout.key_positions
            prepared = self._prepared_positions(of_queries)
            is_same = of_keys is of_queries
            return (prepared, prepared if is_same else self._prepared_positions(of_keys)), {}
        start, t = state["position"], layout.query_steps
        positions = timesteps.positions(t, layout.query_mask, start=start)
        count = timesteps.advance(start, t, layout.query_mask)
        prepared = self._prepared_positions(positions)
        return (prepared, prepared), {"position": timesteps.wrap(count, self.period)}

    def _prepared_positions(self, positions):
        """Return what a loop over the steps reads of the positions, computed before the loop."""
        size = self._feature_size()
        if size > self.num_heads * self.key_dim:  # a table of so many features takes much memory
            return positions
        return self.position.prepare(positions, size, self.sum_dtype)

    def _feature_size(self):
        """Return the size of the queries and keys that `_rotate` gets."""
        return self.key_dim

    def _rotate(self, q, k, positions):
        """Return queries and keys, rotated by the positions of `_positions`."""
        return (q, k) if positions is None else self._encode_positions(q, k, *positions)[:2]

    def _position_spec(self):
        """Return the entries of the state for `_positions`: the number of earlier steps."""
        return {"position": ((), "int32")} if self._has_positions else {}

    def _wants_valid_first(self, layout: CallLayout) -> bool:
        # Row t of a causal sum reads the keys up to row t, so both sides must be aligned.
        return self.conv_size is not None or (layout.causal and not layout.one_sequence)

    def _convolution_spec(self):
        """Return the entries of the state for `convolutions`."""
        return {} if self.conv_size is None else self.convolutions.state_spec()

    def _convolved(self, q, k, v, layout, state):
        """Return queries, keys and values, convolved unless `_sums` does it. Updates the state."""
        if self.conv_size is None or self.convolves_in_loop:
            return q, k, v
        masks = {"q": layout.query_mask, "k": layout.key_mask, "v": layout.key_mask}
        return [
            self.convolutions(name, x, state, masks[name], layout.segments)
            for name, x in (("q", q), ("k", k), ("v", v))
        ]

    def _attend(self, q, k, v, layout, training, return_weights):
        zeros = {
            name: ops.zeros((ops.shape(q)[0], *shape), dtype)
            for name, (shape, dtype) in self._convolution_spec().items()
        }
        q, k, v = self._convolved(q, k, v, layout, zeros)
        weights = self._weights(q, k, layout) if return_weights else None
        mixed, _ = self._sums(q, k, v, layout, None)
        return self.dropout_layer(mixed, training=training), weights

    def attend_to_state(self, query: Any, stream: Stream, training: bool | None) -> Any:
        """Return what queries `(b, t, m)` get of the sums in a stream's state, `(b, t, m)`.

        The state stays as it is: no step is added to it. The layer must not convolve the queries.
        """
        q = self._queries(query)
        b, t = ops.shape(q)[:2]
        heads = self.num_key_value_heads
        k = ops.zeros((b, t, heads, self.key_dim), q.dtype)
        v = ops.zeros((b, t, heads, self.value_dim), q.dtype)
        _, state = stream.read(self, b, **self._state_spec())
        layout = CallLayout(t, t, key_mask=ops.zeros((b, t), "bool"), causal=True)
        mixed, _ = self._sums(q, k, v, layout, state)
        return self._project_back(query, self.dropout_layer(mixed, training=training))

    def _attend_in_stream(self, q, k, v, layout, stream, training):
        spec = {**self._state_spec(), **self._convolution_spec()}
        if stream.means and not self.bounded:
            spec["count"] = (), "int32"
        slot, state = stream.read(self, ops.shape(q)[0], limit=self.limit, **spec)
        q, k, v = self._convolved(q, k, v, layout, state)
        mixed, sums = self._sums(q, k, v, layout, state)
        stream.write(slot, {**state, **sums})
        return self.dropout_layer(mixed, training=training)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "conv_size": self.conv_size}
