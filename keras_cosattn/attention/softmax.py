"""Softmax attention: what the others are measured against."""

import keras
from keras import ops

from keras_cosattn.attention.cached import CachedAttention
from keras_cosattn.ops import dense, timesteps


@keras.saving.register_keras_serializable("keras_cosattn")
class SoftmaxAttention(CachedAttention):
    """Softmax attention: `out_t = sum_s softmax_s(q_t . k_s / sqrt(d)) v_s`.

    Both directions, causal, cross, packed, with any `attention_mask` and any `position`.
    O(t s (d + e)) time and O(t s) memory per head. Streams with a cache of `max_length` steps: a
    step costs O(max_length (d + e)), the float32 state is as large, and steps beyond it give NaN.
    Dropout acts on the weights. Vaswani et al., 2017, eq. 1.

    Args:
        num_heads, key_dim, **kwargs: as `Attention`.
        max_length: steps that a stream can hold; None cannot stream. Whole sequences may have any
            length.
    """

    accepts_attention_mask = True
    accepts_positions = ("rotation", "encoding", "bias")

    def _attend(self, q, k, v, how, training, return_weights):
        segments = timesteps.segment_numbers(how.segments)
        q, k, bias = self._place(
            q,
            k,
            timesteps.positions(ops.shape(q)[1], how.query, segments),
            timesteps.positions(ops.shape(k)[1], how.key, segments),
        )
        return dense.softmax_attention(
            q,
            k,
            v,
            causal=how.causal,
            query_mask=how.query,
            mask=how.key,
            segment_ids=how.segments,
            attention_mask=how.attention,
            bias=bias,
            dropout=self._drop(training),
        )

    def _mix_past(self, q, past, positions, training):
        slots = ops.arange(self.max_length, dtype="int32")
        q, k, bias = self._place(q, past["key"], positions, ops.expand_dims(slots, 0))
        allowed = ops.expand_dims(ops.expand_dims(positions, 1), 3) >= slots
        return dense.attend(q, k, past["value"], allowed, self._drop(training), bias)[0]
