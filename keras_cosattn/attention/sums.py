"""Attention whose past is a sum of constant size: the base of the linear variants."""

from keras import ops

from keras_cosattn.attention.base import Attention, Masks
from keras_cosattn.ops import masks


class SumsAttention(Attention):
    """Base of the linear layers. Dropout acts on the mixed values: there are no weights to drop.

    A variant fills in `_sums`, `_weights` and `_state_spec`, and sets `limit` where its streams
    have an end.
    """

    limit = None

    def _sums(self, q, k, v, how, state):
        """`(b, t, h, e)` and the new state; `state` is None for a whole sequence."""
        raise NotImplementedError(f"{type(self).__name__} must fill in `_sums`.")

    def _weights(self, q, k, how):
        """The weights that `_sums` implies, `(b, h, t, s)`."""
        raise NotImplementedError(f"{type(self).__name__} must fill in `_weights`.")

    def _state_spec(self):
        """Name -> (shape without the batch axis, dtype) of the state."""
        raise NotImplementedError(f"{type(self).__name__} must fill in `_state_spec`.")

    def _attend(self, q, k, v, how, training, return_weights):
        weights = self._weights(q, k, how) if return_weights else None
        restore = None
        if how.causal and how.query is not how.key:
            q, k, v, how, restore = _align(q, k, v, how)
        mixed, _ = self._sums(q, k, v, how, None)
        if restore is not None:
            mixed = masks.take_steps(mixed, restore)
        return self.dropout_layer(mixed, training=training), weights

    def _attend_in_stream(self, q, k, v, mask, stream):
        slot, state = stream.read(self, ops.shape(q)[0], limit=self.limit, **self._state_spec())
        mixed, state = self._sums(q, k, v, Masks(query=mask, key=mask, causal=True), state)
        stream.write(slot, state)
        return mixed


def _align(q, k, v, how):
    """Causal cross-attention with masks: move padding behind, so that index is position."""
    restore = None
    if how.key is not None:
        k, _ = masks.real_first(k, how.key)
        v, _ = masks.real_first(v, how.key)
        key_mask, _ = masks.real_first(how.key, how.key)
        how = how._replace(key=key_mask)
    if how.query is not None:
        q, restore = masks.real_first(q, how.query)
        query_mask, _ = masks.real_first(how.query, how.query)
        how = how._replace(query=query_mask)
    return q, k, v, how, restore
