"""The base of the linear layers, whose past is a sum of constant size."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_cosattn.attention.base import Attention
from keras_cosattn.layout import CallLayout
from keras_cosattn.ops import timesteps
from keras_cosattn.scope import Stream


class SumsAttention(Attention):
    """Base class of the linear layers.

    Dropout acts on the mixed values, as the weights are never computed. A subclass overrides
    `_sums`, `_weights` and `_state_spec`. It sets `limit` if its streams have an end, and `bounded`
    if its sums run over a bounded number of steps. The state of all other layers has a "count" of
    the steps in a stream that keeps means.
    """

    limit: int | None = None
    bounded = False

    def _sums(self, q, k, v, layout, state):
        """Return `(b, t, h, e)` and the new state. `state` is None for a whole sequence."""
        raise NotImplementedError(f"{type(self).__name__} must override `_sums`.")

    def _weights(self, q, k, layout):
        """Return the weights `(b, h, t, s)` that `_sums` implies."""
        raise NotImplementedError(f"{type(self).__name__} must override `_weights`.")

    def _state_spec(self):
        """Return the shape (without the batch axis) and the dtype of each entry of the state."""
        raise NotImplementedError(f"{type(self).__name__} must override `_state_spec`.")

    def _positions(self, layout, state):
        """Return the positions of queries and keys, or None, and the state of the positions.

        Subclasses that accept a `position` call it in `_sums` and `_weights`. Their state then has
        the entries of `_position_spec`.
        """
        if self.position is None:
            return None, {}
        if state is None:
            return (layout.query_positions, layout.key_positions), {}
        start, t = state["position"], layout.query_steps
        positions = timesteps.positions(t, layout.query_mask, start=start)
        count = timesteps.advance(start, t, layout.query_mask)
        return (positions, positions), {"position": timesteps.wrap(count, 1)}

    def _rotate(self, q, k, positions):
        """Return queries and keys, rotated by the positions of `_positions`."""
        return (q, k) if positions is None else self._encode_positions(q, k, *positions)[:2]

    def _position_spec(self):
        """Return the entries of the state for `_positions`: the number of earlier steps."""
        return {} if self.position is None else {"position": ((), "int32")}

    def _wants_valid_first(self, layout: CallLayout) -> bool:
        # Row t of a causal sum reads the keys up to row t, so both sides must be aligned.
        return layout.causal and not layout.one_sequence

    def _attend(self, q, k, v, layout, training, return_weights):
        weights = self._weights(q, k, layout) if return_weights else None
        mixed, _ = self._sums(q, k, v, layout, None)
        return self.dropout_layer(mixed, training=training), weights

    def attend_to_state(self, query: Any, stream: Stream) -> Any:
        """Return what queries `(b, t, m)` get of the sums in a stream's state, `(b, t, m)`.

        The state stays as it is: no step is added to it.
        """
        q = self.query_dense(query)
        b, t = ops.shape(q)[:2]
        heads = self.num_key_value_heads
        k = ops.zeros((b, t, heads, self.key_dim), q.dtype)
        v = ops.zeros((b, t, heads, self.value_dim), q.dtype)
        _, state = stream.read(self, b, **self._state_spec())
        layout = CallLayout(t, t, key_mask=ops.zeros((b, t), "bool"), causal=True)
        mixed, _ = self._sums(q, k, v, layout, state)
        return self.output_dense(ops.cast(mixed, self.compute_dtype))

    def _attend_in_stream(self, q, k, v, layout, stream, training):
        spec = self._state_spec()
        if stream.means and not self.bounded:
            spec["count"] = (), "int32"
        slot, state = stream.read(self, ops.shape(q)[0], limit=self.limit, **spec)
        mixed, state = self._sums(q, k, v, layout, state)
        stream.write(slot, state)
        return self.dropout_layer(mixed, training=training)
