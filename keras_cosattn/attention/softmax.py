"""Softmax attention, the exact form that the other layers replace."""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from keras_cosattn.attention.cached import CachedAttention
from keras_cosattn.ops import arrays, dense, fused, timesteps

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from keras_cosattn.attention.options import AttentionOptions


@keras.saving.register_keras_serializable("keras_cosattn")
class SoftmaxAttention(CachedAttention):
    """Softmax attention with the interface of the other layers of this package.

    `out_t = sum_s softmax_s(q_t . k_s / sqrt(d)) v_s`

    The layer attends in both directions or causally, also to other values (cross-attention) and
    inside packed sequences. It takes any `attention_mask` and any `position`. Dropout acts on the
    weights.

    With `logit_soft_cap=c` each score x = q_t . k_s / sqrt(d) becomes `c tanh(x / c)`, which lies
    between -c and c. What a `position` adds to the scores is added to the capped ones.

    It takes O(t s (d + e)) time and O(t s) memory for each head. On JAX and PyTorch, a call that
    asks for no weights, drops none and caps no scores takes `keras.ops.dot_product_attention`,
    which has kernels that do not store the weights. A stream keeps the keys and values of
    `max_length` steps: a step takes O(max_length (d + e)) time, and the state has as many numbers,
    in the compute dtype. More steps raise ValueError, or fail an assertion in a TensorFlow graph.
    Under XLA the steps beyond are not stored, and attend to the stored ones.

    Args:
        num_heads: int, h, the number of query heads.
        key_dim: int, d, the size of a query or key head.
        max_length: int, the number of steps that a stream can hold. A layer without it cannot
            stream. A whole sequence may have any length. Defaults to `None`.
        logit_soft_cap: float, c, above 0. Defaults to `None`, no cap.
        *args, **kwargs: Other arguments of `Attention`, such as `dropout`, `num_key_value_heads`
            and `seed`.

    Raises:
        ValueError: If `logit_soft_cap` is not above 0.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn import SoftmaxAttention
    >>> layer = SoftmaxAttention(num_heads=2, key_dim=4, num_key_value_heads=1)
    >>> x = np.ones((1, 10, 8), "float32")
    >>> output, weights = layer(x, x, return_attention_scores=True)
    >>> tuple(output.shape), tuple(weights.shape)
    ((1, 10, 8), (1, 2, 10, 10))

    Reference:
        - [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762), equation 1
        - [Gemma Team, 2024 (Gemma 2)](https://arxiv.org/abs/2408.00118), section 2, for
          `logit_soft_cap`
    """

    accepts_attention_mask = True
    queries_are_independent = True
    accepts_positions = ("rotation", "encoding", "bias")
    accepts_sliding_window = True

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        *args: Any,
        max_length: int | None = None,
        logit_soft_cap: float | None = None,
        **kwargs: Unpack[AttentionOptions],
    ):
        super().__init__(num_heads, key_dim, *args, max_length=max_length, **kwargs)
        is_number = isinstance(logit_soft_cap, numbers.Real)
        if logit_soft_cap is not None and not (is_number and logit_soft_cap > 0):
            raise ValueError(
                "`logit_soft_cap` must be None or a number above 0. "
                f"Received: logit_soft_cap={logit_soft_cap!r}"
            )
        self.logit_soft_cap = logit_soft_cap

    def _attend(self, q, k, v, layout, training, return_weights):
        q, k, bias = self._encode_positions(q, k, layout.query_positions, layout.key_positions)
        k, v = arrays.zero_masked(k, layout.key_mask), arrays.zero_masked(v, layout.key_mask)
        no_weights = not return_weights and self._drop(training) is None
        causal = no_weights and layout.only_causal and self.sliding_window is None
        allowed = None
        if not causal:
            allowed = self._within_window(
                layout.pair_mask(), layout.query_positions, layout.key_positions
            )
        if return_weights:
            return self._mix_with_weights(q, k, v, allowed, bias, self._drop(training))
        in_window = self.sliding_window is None or layout.one_sequence
        may_see_nothing = layout.may_see_nothing or not in_window
        return self._mix_pairs(q, k, v, allowed, bias, training, causal, may_see_nothing), None

    def _attend_to_cache(self, q, k, past, positions, bias, training):
        slots = ops.expand_dims(ops.arange(self.max_length, dtype="int32"), 0)
        allowed = ops.expand_dims(positions, (1, 3)) >= slots
        allowed = self._within_window(allowed, positions, slots)
        # Without a window, also a step beyond the last slot sees the first one.
        may_see_nothing = self.sliding_window is not None
        return self._mix_pairs(
            q, k, past["value"], allowed, bias, training, may_see_nothing=may_see_nothing
        )

    def _mix_pairs(self, q, k, v, allowed, bias, training, causal=False, may_see_nothing=True):
        """Mix the values of the allowed pairs, `(b, t, h, e)`."""
        dropout = self._drop(training)
        if dropout is not None:
            return self._mix_with_weights(q, k, v, allowed, bias, dropout)[0]
        return fused.attend(
            q,
            k,
            v,
            allowed,
            bias,
            causal=causal,
            may_see_nothing=may_see_nothing,
            flash_attention=self.flash_attention,
            logit_soft_cap=self.logit_soft_cap,
        )

    def _mix_with_weights(self, q, k, v, allowed, bias, dropout):
        return dense.attend(q, k, v, allowed, dropout, bias, logit_soft_cap=self.logit_soft_cap)

    def _within_window(self, allowed, q_positions, k_positions):
        """The mask `allowed`, `(b or 1, 1 or h, t, s)` or None, within `sliding_window`."""
        if self.sliding_window is None:
            return allowed
        window = timesteps.window_mask(q_positions, k_positions, self.sliding_window)
        return timesteps.combine(allowed, window)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "logit_soft_cap": self.logit_soft_cap}
