"""Softmax attention: what the others are measured against."""

import keras
from keras import ops

from keras_cosattn.attention.cached import CachedAttention
from keras_cosattn.ops import arrays, dense


@keras.saving.register_keras_serializable("keras_cosattn")
class SoftmaxAttention(CachedAttention):
    """Softmax attention: `out_t = sum_s softmax_s(q_t . k_s / sqrt(d)) v_s`.

    Both directions, causal, cross, packed, with any `attention_mask` and any `position`.
    O(t s (d + e)) time and O(t s) memory per head. Streams with a cache of `max_length` steps: a
    step costs O(max_length (d + e)), and the float32 state is as large.
    Dropout acts on the weights. Vaswani et al., 2017, eq. 1.

    Args:
        num_heads, key_dim, **kwargs: as `Attention`.
        max_length: steps that a stream can hold; None cannot stream. Whole sequences may have any
            length.
    """

    accepts_attention_mask = True
    queries_are_independent = True
    accepts_positions = ("rotation", "encoding", "bias")

    def _attend(self, q, k, v, layout, training, return_weights):
        q, k, bias = self._encode_positions(q, k, layout.query_positions, layout.key_positions)
        k, v = arrays.zero_masked(k, layout.key_mask), arrays.zero_masked(v, layout.key_mask)
        return dense.attend(q, k, v, layout.pair_mask(), self._drop(training), bias)

    def _mix_past(self, q, past, positions, training):
        slots = ops.arange(self.max_length, dtype="int32")
        q, k, bias = self._encode_positions(q, past["key"], positions, ops.expand_dims(slots, 0))
        allowed = ops.expand_dims(ops.expand_dims(positions, 1), 3) >= slots
        return dense.attend(q, k, past["value"], allowed, self._drop(training), bias)[0]
