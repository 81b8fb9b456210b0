"""Attention to a fixed number of learned mixtures of the keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from keras_cosattn.attention.arguments import positive
from keras_cosattn.attention.base import Attention
from keras_cosattn.ops.low_rank import low_rank_attention

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from keras_cosattn.attention.options import AttentionOptions


@keras.saving.register_keras_serializable("keras_cosattn")
class LowRankAttention(Attention):
    """Linformer: softmax attention to a fixed number of learned mixtures of the keys.

    `out_t = sum_j softmax_j(q_t . (E k)_j / sqrt(d)) (F v)_j`, j = 1 .. `rank`

    E and F are learned. They mix up to `max_length` steps into `rank` slots. The layer attends in
    both directions, also to other values (cross-attention). It can neither be causal nor pack
    sequences nor stream. Dropout acts on the softmax over the slots.

    It takes O((t + s) rank (d + e)) time and O((t + s) rank) memory for each head, and E and F have
    `max_length` times `rank` weights each.

    Positions count the valid steps: n valid steps use the first n steps of E and F. A slot into
    which E mixes none of them has no key and does not count. So with E and F the identity, of rank
    `max_length`, this is softmax attention at every length. More than `max_length` valid steps
    raise ValueError where their number is known, and fail an assertion in a TensorFlow graph. Under
    XLA the values from `max_length` on do not count.

    Where this differs from the paper: E and F are shared inside one layer only. To share them
    across layers, assign the weights of one layer to the other. With `num_key_value_heads` they are
    per key head.

    Args:
        num_heads: int, h, the number of query heads.
        key_dim: int, d, the size of a query or key head.
        max_length: int, the largest number of valid steps.
        rank: int, the number of slots.
        share_heads: bool. If True, all heads have one E and one F (the paper's headwise sharing),
            of shape `(max_length, rank)`. If False, each key head has its own, of shape
            `(max_length, hk, rank)`. Defaults to `True`.
        share_key_value: bool. If True, F is E (the paper's key-value sharing). Defaults to `False`.
        projection_initializer: Initializer of E and F. Defaults to `"lecun_normal"`.
        *args, **kwargs: Other arguments of `Attention`, such as `dropout`, `num_key_value_heads`
            and `seed`.

    Raises:
        ValueError: If a call has more than `max_length` valid steps, or asks for what the layer
            cannot do.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn import LowRankAttention
    >>> layer = LowRankAttention(num_heads=2, key_dim=4, max_length=16, rank=4)
    >>> x = np.ones((1, 10, 8), "float32")
    >>> tuple(layer(x, x).shape)
    (1, 10, 8)

    Reference:
        - [Wang et al., 2020](https://arxiv.org/abs/2006.04768), equation 7 and section 4
    """

    queries_are_independent = True

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        *args: Any,
        max_length: int,
        rank: int,
        share_heads: bool = True,
        share_key_value: bool = False,
        projection_initializer: str | keras.initializers.Initializer = "lecun_normal",
        **kwargs: Unpack[AttentionOptions],
    ):
        super().__init__(num_heads, key_dim, *args, **kwargs)
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
    def cannot(self) -> dict[str, str]:
        """What the layer refuses, each with its reason."""
        return {
            "causal": "each of its slots mixes steps of the whole sequence, also of the future. "
            "Use LinearAttention or SoftmaxAttention.",
            "packed": "its slots would mix the segments. Put each in a row of its own, padded.",
            "stream": "each new step changes all slots.",
        }

    @property
    def sequence_limit(self) -> int | None:
        """The value of `max_length`."""
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

        def initialize_heads(shape, dtype=None):
            # One matrix is drawn for all heads. Of a tensor of rank 3 an initializer would count
            # the heads as inputs.
            drawn = initializer((self.max_length, heads * self.rank), dtype=dtype)
            return ops.reshape(drawn, shape)

        if not self.share_heads:
            shape = (self.max_length, heads, self.rank)
        return self.add_weight(name=name, shape=shape, initializer=initialize_heads, autocast=False)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "max_length": self.max_length,
            "rank": self.rank,
            "share_heads": self.share_heads,
            "share_key_value": self.share_key_value,
            "projection_initializer": keras.initializers.serialize(self.projection_initializer),
        }
