"""Softmax attention: what the others are measured against."""

import keras
from keras import ops

from keras_cosattn.attention.base import Attention, positive
from keras_cosattn.ops import cache, dense, masks


@keras.saving.register_keras_serializable("keras_cosattn")
class SoftmaxAttention(Attention):
    """Softmax attention: `out_t = sum_s softmax_s(q_t . k_s / sqrt(d)) v_s`.

    Both directions, causal, cross, packed, with any `attention_mask`. O(t s (d + e)) time and
    O(t s) memory per head. Streams with a cache of `max_length` steps: a step costs
    O(max_length (d + e)), the float32 state is as large, and steps beyond it give NaN.
    Dropout acts on the weights. Vaswani et al., 2017, eq. 1.

    Args:
        num_heads, key_dim, **kwargs: as `Attention`.
        max_length: steps that a stream can hold; None cannot stream. Whole sequences may have any
            length.
    """

    accepts_attention_mask = True

    def __init__(self, num_heads, key_dim, *, max_length=None, **kwargs):
        super().__init__(num_heads, key_dim, **kwargs)
        self.max_length = None if max_length is None else positive("max_length", max_length)

    def _attend(self, q, k, v, how, training, return_weights):
        return dense.softmax_attention(
            q,
            k,
            v,
            causal=how.causal,
            query_mask=how.query,
            mask=how.key,
            segment_ids=how.segments,
            attention_mask=how.attention,
            dropout=lambda weights: self.dropout_layer(weights, training=training),
        )

    def _attend_in_stream(self, q, k, v, mask, stream):
        if self.max_length is None:
            raise ValueError(
                f"{self.path} (SoftmaxAttention) cannot stream: it keeps every key, so it needs "
                "to know how many. Build it with `max_length`."
            )
        n, h = self.max_length, self.num_key_value_heads
        slot, state = stream.read(
            self,
            ops.shape(q)[0],
            limit=n,
            key=((n, h, self.key_dim), "float32"),
            value=((n, h, self.value_dim), "float32"),
            position=((), "int32"),
        )
        count = masks.counts(ops.shape(q)[1], mask, start=state["position"])
        position = ops.maximum(count - 1, 0)
        keys = cache.append(state["key"], ops.cast(k, "float32"), position, mask)
        values = cache.append(state["value"], ops.cast(v, "float32"), position, mask)
        stream.write(slot, {"key": keys, "value": values, "position": count[:, -1]})
        rows = ops.expand_dims(ops.expand_dims(position, 1), 3)  # (b, 1, t, 1)
        mixed, _ = dense.attend(q, keys, values, rows >= ops.arange(n, dtype="int32"))
        return ops.where(ops.transpose(rows, (0, 2, 1, 3)) >= n, float("nan"), mixed)

    def get_config(self):
        return {**super().get_config(), "max_length": self.max_length}
