"""Attention to a fixed number of learned mixtures of the keys."""

import keras
from keras import ops

from keras_cosattn.attention.arguments import positive
from keras_cosattn.attention.base import Attention
from keras_cosattn.ops.low_rank import low_rank_attention


@keras.saving.register_keras_serializable("keras_cosattn")
class LowRankAttention(Attention):
    """Linformer: `out_t = sum_j softmax_j(q_t . (E k)_j / sqrt(d)) (F v)_j`, j = 1 .. rank.

    E and F, learned, mix `max_length` steps into `rank` slots. Both directions and cross; not
    causal, not packed, no streams. O((t + s) rank (d + e)) time and O((t + s) rank) memory per
    head, and max_length rank weights for each E and F.

    Position counts the real steps: n of them use the first n steps of E and F. A slot into which
    E mixes none of those has no key and does not count, so the identity of rank `max_length` is
    softmax attention at every length. More than `max_length` valid steps raise ValueError where
    their number is known, and fail an assertion in a TensorFlow graph. Under XLA the values from
    `max_length` on do not count. Dropout acts on the softmax over slots.
    Wang et al., 2020, eq. 7 and section 4.

    Where we leave the paper: E and F are shared inside one layer only; to share them across
    layers, assign the weights of one to the other. With `num_key_value_heads` they are per key
    head.

    Args:
        num_heads, key_dim, **kwargs: as `Attention`.
        max_length: steps that E and F can mix.
        rank: slots.
        share_heads: one E and one F for all heads, else one for each key head. The paper's
            headwise sharing.
        share_key_value: F is E. The paper's key-value sharing.
        projection_initializer: of E and F, `(max_length, rank)` or `(max_length, hk, rank)`.
    """

    queries_are_independent = True

    def __init__(
        self,
        num_heads,
        key_dim,
        *,
        max_length,
        rank,
        share_heads=True,
        share_key_value=False,
        projection_initializer="lecun_normal",
        **kwargs,
    ):
        super().__init__(num_heads, key_dim, **kwargs)
        self.max_length = positive("max_length", max_length)
        self.rank = positive("rank", rank)
        self.share_heads = share_heads
        self.share_key_value = share_key_value
        self.projection_initializer = keras.initializers.get(projection_initializer)

    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        self.key_projection = self._projection("key_projection")
        self.value_projection = self.key_projection
        if not self.share_key_value:
            self.value_projection = self._projection("value_projection")

    @property
    def cannot(self):
        """What the layer refuses: use -> reason."""
        return {
            "causal": "each of its slots mixes steps of the whole sequence, the future too. Use "
            "LinearAttention or SoftmaxAttention.",
            "packed": "its slots would mix the segments. Put each in a row of its own, padded.",
            "stream": "each new step changes all slots.",
        }

    @property
    def sequence_limit(self) -> int | None:
        """`max_length`."""
        return self.max_length

    def _longest(self, layout):
        return layout.longest_keys()

    def _mix(self, q, k, v, layout, training):
        return low_rank_attention(
            q,
            k,
            v,
            ops.convert_to_tensor(self.key_projection),
            ops.convert_to_tensor(self.value_projection),
            query_mask=layout.query_mask,
            mask=layout.key_mask,
            dropout=self._drop(training),
        )

    def _projection(self, name):
        heads = 1 if self.share_heads else self.num_key_value_heads
        shape = (self.max_length, self.rank)
        initializer = self.projection_initializer.clone()

        def each_head(shape, dtype=None):
            # Drawn as one matrix: initializers would count the heads among the inputs.
            drawn = initializer((self.max_length, heads * self.rank), dtype=dtype)
            return ops.reshape(drawn, shape)

        if not self.share_heads:
            shape = (self.max_length, heads, self.rank)
        return self.add_weight(name=name, shape=shape, initializer=each_head, autocast=False)

    def get_config(self):
        return {
            **super().get_config(),
            "max_length": self.max_length,
            "rank": self.rank,
            "share_heads": self.share_heads,
            "share_key_value": self.share_key_value,
            "projection_initializer": keras.initializers.serialize(self.projection_initializer),
        }
