"""Mamba-2: a state space whose decay and step size depend on the input, as attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from keras_cosattn.attention import step_sizes
from keras_cosattn.attention.decayed import DecayedAttention, root_mean_square_norm
from keras_cosattn.ops import arrays

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from keras_cosattn.attention.options import DecayedOptions


@keras.saving.register_keras_serializable("keras_cosattn")
class Mamba2Attention(DecayedAttention):
    """Mamba-2 (SSD): attention whose steps have a size, which says how much they write and fade.

    `S_t = exp(-exp(A_log) dt_t) S_(t-1) + dt_t k_t v_t^T`, `out_t = S_t^T q_t + D v_t`, with the
    step size `dt_t = softplus(x_t W + dt_bias)` of each key head. In the paper's words, q is C,
    k is B, v is x, d is the size of the state (N) and e that of a head (P). Queries, keys and
    values pass a short convolution with a bias and SiLU. The outputs are multiplied by `silu` of a
    projection z of the query, and then the heads of a group together are normalised by their root
    mean square.

    Causal, packed; streams without end. In both directions (Afzal et al., 2025) steps fade by the
    same factor both ways. With chunks of C steps it takes O(t (C (d + e) + d e)) time for each
    head. A streamed step takes O(d e) time, and the float32 state has O(d e) numbers for each key
    head. Dropout acts on the mixed values.

    Where this differs from the paper: query heads may share a value head
    (`num_key_value_heads`), as in grouped-query attention.

    Args:
        num_heads: Integer, h, the number of heads.
        key_dim: Integer, d, the size of the state for each channel of a value. The paper takes 64
            or 128.
        num_groups: Integer, the number of different query and key heads, each of which serves a
            group of heads. It must divide `num_key_value_heads`. Defaults to `1`.
        use_output_gate: Boolean, whether z multiplies the outputs. Defaults to `True`.
        conv_size: Integer, the number of steps of the short convolution, or `None` for none. Its
            SiLU stays. Defaults to `4`.
        norm_epsilon: Float, what the norm adds to the mean square. Defaults to `1e-5`.
        chunk_size: Integer, C. Defaults to `None`, 64.
        **kwargs: Other arguments of `Attention`, such as `dropout`, `value_dim` (the paper takes
            64) and `num_key_value_heads`.

    Raises:
        ValueError: If `num_groups` does not divide `num_key_value_heads`.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn import Mamba2Attention
    >>> layer = Mamba2Attention(num_heads=2, key_dim=16, value_dim=8)
    >>> x = np.ones((1, 10, 8), "float32")
    >>> tuple(layer(x, x, use_causal_mask=True).shape)
    (1, 10, 8)

    Reference:
        - [Dao and Gu, 2024](https://arxiv.org/abs/2405.21060), equation 16 and section 7
        - [Afzal et al., 2025 (LION)](https://arxiv.org/abs/2502.16249), both directions
    """

    uses_conv_bias = True
    always_applies_silu = True
    gates_before_norm = True
    num_groups: int

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        *args: Any,
        num_groups: int = 1,
        use_output_gate: bool = True,
        conv_size: int | None = 4,
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
        self.num_groups = self._checked_groups(num_groups)

    def _build_gates(self, query_shape):
        heads = self.num_key_value_heads
        self.step_dense = self._gate_dense("dt", query_shape, heads)
        self.log_rate = self._sum_weight("A_log", (heads,), step_sizes.log_rates())
        self.step_bias = self._sum_weight("dt_bias", (heads,), step_sizes.step_biases())
        self.skip = self._sum_weight("D", (self.num_heads, 1), "ones")
        self.norm_scale = self._sum_weight("norm_scale", (self.num_heads, self.value_dim), "ones")

    def _gates(self, query):
        return {"dt": self.step_dense(query)}

    def _prepared(self, steps):
        q, k, v = (arrays.accumulate(steps[name]) for name in ("q", "k", "v"))
        z = arrays.accumulate(steps["dt"])
        size = step_sizes.step_size(z, ops.convert_to_tensor(self.step_bias))
        log_decay = step_sizes.log_decay(size, ops.convert_to_tensor(self.log_rate))
        shared_by = self.num_heads // self.num_key_value_heads
        skip = arrays.repeat_heads(v, shared_by) * ops.convert_to_tensor(self.skip)
        q, k = self._for_each_head(q, k)
        return {
            **{name: x for name, x in steps.items() if name != "dt"},
            "q": q,
            "k": k,
            "v": v * ops.expand_dims(size, 3),
            "log_decay": ops.expand_dims(log_decay, 3),
            "skip": skip,
        }

    def _normalised(self, mixed):
        b, t, heads, size = ops.shape(mixed)
        groups = ops.reshape(mixed, (b, t, self.num_groups, heads // self.num_groups * size))
        groups = root_mean_square_norm(groups, 1.0, self.norm_epsilon)
        return ops.reshape(groups, (b, t, heads, size)) * ops.convert_to_tensor(self.norm_scale)

    def get_config(self):
        return {**super().get_config(), "num_groups": self.num_groups}
