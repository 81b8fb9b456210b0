"""Gated linear attention: each channel of the state fades as the input asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from keras_cosattn.attention.arguments import positive
from keras_cosattn.attention.decayed import DecayedAttention, root_mean_square_norm
from keras_cosattn.ops import arrays
from keras_cosattn.ops.decays import SMALLEST_LOG_DECAY

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from keras_cosattn.attention.options import DecayedOptions


@keras.saving.register_keras_serializable("keras_cosattn")
class GatedLinearAttention(DecayedAttention):
    """Gated linear attention: the input decides how fast each channel of the state fades.

    `S_t = diag(a_t) S_(t-1) + k_t v_t^T`, `out_t = S_t^T q_t / sqrt(d)`, with
    `a_t = sigmoid(x_t W1 W2 + b)^(1/tau)` for each channel of a key. Each head is normalised by its
    root mean square, and multiplied by `silu` of a projection of the query.

    Causal, packed; streams without end. In both directions (Afzal et al., 2025) a channel fades by
    the product of the a between two steps. With chunks of C steps it takes O(t (C (d + e) + d e))
    time for each head. A streamed step takes O(d e) time, and the float32 state has O(d e) numbers
    for each key head. Dropout acts on the mixed values.

    Where this differs from the paper: heads of a group share keys, values and gates; and a_t is at
    least exp(-5), so that the products of a chunk stay in the range of float32.

    Args:
        num_heads: Integer, h, the number of query heads.
        key_dim: Integer, d, the size of a query or key head. The paper takes half of a value head.
        gate_low_rank_dim: Integer, the number of columns of W1. Defaults to `16`.
        gate_logit_normalizer: Float above 0, tau. Defaults to `16.0`.
        use_output_gate: Boolean, whether the outputs are gated. Defaults to `True`.
        conv_size: Integer, the number of steps of a short causal convolution of queries, keys and
            values. Defaults to `None`, none.
        norm_epsilon: Float, what the norm adds to the mean square. Defaults to `1e-5`.
        chunk_size: Integer, C. Defaults to `None`, 64.
        **kwargs: Other arguments of `Attention`, such as `dropout`, `value_dim` and
            `num_key_value_heads`.

    Raises:
        ValueError: If `gate_logit_normalizer` is not above 0.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn import GatedLinearAttention
    >>> layer = GatedLinearAttention(num_heads=2, key_dim=4, value_dim=8)
    >>> x = np.ones((1, 10, 8), "float32")
    >>> tuple(layer(x, x, use_causal_mask=True).shape)
    (1, 10, 8)

    Reference:
        - [Yang et al., 2024](https://arxiv.org/abs/2312.06635), equations 4-6 and section 4.4
        - [Afzal et al., 2025 (LION)](https://arxiv.org/abs/2502.16249), both directions
    """

    accepts_positions = ("rotation",)

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        *args: Any,
        gate_low_rank_dim: int = 16,
        gate_logit_normalizer: float = 16.0,
        use_output_gate: bool = True,
        conv_size: int | None = None,
        **kwargs: Unpack[DecayedOptions],
    ):
        super().__init__(
            num_heads,
            key_dim,
            *args,
            conv_size=conv_size,
            use_output_gate=use_output_gate,
            **kwargs,
        )
        self.gate_low_rank_dim = positive("gate_low_rank_dim", gate_low_rank_dim)
        if not gate_logit_normalizer > 0:
            raise ValueError(
                "`gate_logit_normalizer` must be a number above 0, so that the state fades. "
                f"Received: gate_logit_normalizer={gate_logit_normalizer!r}"
            )
        self.gate_logit_normalizer = gate_logit_normalizer

    def _build_gates(self, query_shape):
        self.decay_in_dense = self._gate_dense("decay_in", query_shape, self.gate_low_rank_dim)
        self.decay_out_dense = self._heads(
            "decay_out",
            (*query_shape[:-1], self.gate_low_rank_dim),
            self.num_key_value_heads,
            self.key_dim,
        )
        self.norm_scale = self._sum_weight("norm_scale", (self.value_dim,), "ones")

    def _gates(self, query):
        return {"log_decay": self.decay_out_dense(self.decay_in_dense(query))}

    def _prepared(self, steps):
        log_decay = ops.log_sigmoid(arrays.accumulate(steps["log_decay"]))
        log_decay = ops.maximum(log_decay / self.gate_logit_normalizer, SMALLEST_LOG_DECAY)
        return {**steps, "q": steps["q"] * self.key_dim**-0.5, "log_decay": log_decay}

    def _normalised(self, mixed):
        return root_mean_square_norm(mixed, self.norm_scale, self.norm_epsilon)

    def get_config(self):
        return {
            **super().get_config(),
            "gate_low_rank_dim": self.gate_low_rank_dim,
            "gate_logit_normalizer": self.gate_logit_normalizer,
        }
