"""Attention whose past is a sum of constant size: the base of the linear variants."""

from keras import ops

from keras_cosattn.attention.base import Attention, Masks, valid_steps_first
from keras_cosattn.ops import timesteps


class SumsAttention(Attention):
    """Base of the linear layers. Dropout acts on the mixed values: there are no weights to drop.

    A variant fills in `_sums`, `_weights` and `_state_spec`, and sets `limit` where its streams
    have an end. `bounded` says that its sums run over a bounded number of steps: the state of all
    others has a "count" of the steps in a stream of means.
    """

    limit = None
    bounded = False

    def _sums(self, q, k, v, how, state):
        """`(b, t, h, e)` and the new state; `state` is None for a whole sequence."""
        raise NotImplementedError(f"{type(self).__name__} must fill in `_sums`.")

    def _weights(self, q, k, how):
        """The weights that `_sums` implies, `(b, h, t, s)`."""
        raise NotImplementedError(f"{type(self).__name__} must fill in `_weights`.")

    def _state_spec(self):
        """Name -> (shape without the batch axis, dtype) of the state."""
        raise NotImplementedError(f"{type(self).__name__} must fill in `_state_spec`.")

    def _turn(self, q, k, how, state):
        """Queries and keys with an encoding's positions in them, and the state to go on from.

        For the variants that accept encodings, to call in `_sums` and `_weights`. Their state then
        has the entries of `_position_spec`.
        """
        if self.position is None:
            return q, k, {}
        segments = timesteps.segment_numbers(how.segments)
        start = None if state is None else state["position"]
        q_count = timesteps.count_valid(ops.shape(q)[1], how.query, segments, start)
        k_count = timesteps.count_valid(ops.shape(k)[1], how.key, segments, start)
        q, k, _ = self._place(q, k, ops.maximum(q_count - 1, 0), ops.maximum(k_count - 1, 0))
        return q, k, {} if state is None else {"position": k_count[:, -1]}

    def _position_spec(self):
        """What `_turn` keeps: how many steps there have been."""
        return {} if self.position is None else {"position": ((), "int32")}

    def _attend(self, q, k, v, how, training, return_weights):
        weights = self._weights(q, k, how) if return_weights else None
        restore = None
        if how.causal and how.query is not how.key:
            q, k, v, how, restore = valid_steps_first(q, k, v, how)
        mixed, _ = self._sums(q, k, v, how, None)
        if restore is not None:
            mixed = timesteps.take_steps(mixed, restore)
        return self.dropout_layer(mixed, training=training), weights

    def _attend_in_stream(self, q, k, v, mask, stream, training):
        spec = self._state_spec()
        if stream.means and not self.bounded:
            spec["count"] = (), "int32"
        slot, state = stream.read(self, ops.shape(q)[0], limit=self.limit, **spec)
        mixed, state = self._sums(q, k, v, Masks(query=mask, key=mask, causal=True), state)
        stream.write(slot, state)
        return self.dropout_layer(mixed, training=training)
