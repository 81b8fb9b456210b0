"""Retention: linear attention whose past fades at a fixed rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np
from keras import ops

from keras_cosattn.attention.decayed import DecayedAttention
from keras_cosattn.positions import Rotary
from keras_cosattn.positions.alibi import slopes

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from keras_cosattn.attention.options import DecayedOptions

SCHEDULES = {
    "retnet": lambda h: np.log1p(-(2.0 ** (-5.0 - np.arange(h)))),
    "lightning": lambda h: -slopes(h),
}
"""Name of a schedule -> function of the number of heads that returns the log decay of each."""


@keras.saving.register_keras_serializable("keras_cosattn")
class RetentionAttention(DecayedAttention):
    """Retention: the weight of a step fades by a fixed factor of its head with each later step.

    `S_t = gamma S_(t-1) + k_t v_t^T`, `out_t = S_t^T q_t`: the sum over s <= t of
    `gamma^(t-s) (q_t . k_s) v_s`. Queries and keys are rotated by their positions, and keys are
    divided by sqrt(d). Each head is normalised (group norm) in place of a division by the sum of
    the weights, and multiplied by `silu` of a projection of the query.

    Causal, packed; streams without end. In both directions (Afzal et al., 2025) a step fades by
    the same factor both ways. With chunks of C steps it takes O(t (C (d + e) + d e)) time for each
    head. A streamed step takes O(d e) time, and the float32 state has O(d e) numbers for each key
    head. Dropout acts on the mixed values.

    Where this differs from the paper: heads of a group share keys, values and the decay. The
    fading of xPos is the decay itself, so positions are rotations.

    Args:
        num_heads: Integer, h, the number of query heads.
        key_dim: Integer, d, the size of a query or key head.
        decay: gamma. `"retnet"`, `1 - 2^(-5-i)` for head i; `"lightning"`, `exp(-slope)` with the
            slopes of ALiBi, `2^(-8(i+1)/h)` if h is a power of two, as in Lightning Attention and
            TransNormer; or a sequence of one number above 0 and up to 1 for each key head. Defaults
            to `"retnet"`.
        use_output_gate: Boolean, whether the outputs are gated. Defaults to `True`.
        conv_size: Integer, the number of steps of a short causal convolution of queries, keys and
            values. Defaults to `None`, none.
        norm_epsilon: Float, what group norm adds to the variance. Defaults to `1e-5`.
        chunk_size: Integer, C. Defaults to `None`, 64.
        position: A rotation, or `None`. Defaults to `Rotary()`.
        **kwargs: Other arguments of `Attention`, such as `dropout`, `value_dim` (the paper takes
            2 d) and `num_key_value_heads`.

    Raises:
        ValueError: If `decay` is none of these.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn import RetentionAttention
    >>> layer = RetentionAttention(num_heads=2, key_dim=4, value_dim=8)
    >>> x = np.ones((1, 10, 8), "float32")
    >>> tuple(layer(x, x, use_causal_mask=True).shape)
    (1, 10, 8)

    Reference:
        - [Sun et al., 2023 (RetNet)](https://arxiv.org/abs/2307.08621), equations 3-8
        - [Qin et al., 2024 (Lightning Attention-2)](https://arxiv.org/abs/2401.04658)
        - [Afzal et al., 2025 (LION)](https://arxiv.org/abs/2502.16249), both directions
    """

    accepts_positions = ("rotation",)
    fades_evenly = True

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        *args: Any,
        decay: Literal["retnet", "lightning"] | Sequence[float] = "retnet",
        use_output_gate: bool = True,
        conv_size: int | None = None,
        **kwargs: Unpack[DecayedOptions],
    ):
        kwargs.setdefault("position", Rotary())
        super().__init__(
            num_heads,
            key_dim,
            *args,
            conv_size=conv_size,
            use_output_gate=use_output_gate,
            **kwargs,
        )
        is_many = isinstance(decay, Sequence | np.ndarray) and not isinstance(decay, str)
        self.decay = [float(x) for x in decay] if is_many else decay
        self._log_decay = self._log_decays()

    def _log_decays(self):
        heads, decay = self.num_key_value_heads, self.decay
        if isinstance(decay, str):
            if decay in SCHEDULES:
                return SCHEDULES[decay](heads)
        elif isinstance(decay, list) and len(decay) == heads and all(0 < x <= 1 for x in decay):
            return np.log(decay)
        raise ValueError(
            f"`decay` must be one of {sorted(SCHEDULES)}, or {heads} numbers above 0 and up to 1, "
            f"one for each key head. Received: decay={decay!r}"
        )

    def _build_gates(self, query_shape):
        shape = self.num_heads, self.value_dim
        self.norm_scale = self._sum_weight("norm_scale", shape, "ones")
        self.norm_bias = self._sum_weight("norm_bias", shape, "zeros")

    def _rates(self):
        return ops.convert_to_tensor(self._log_decay, self.sum_dtype)

    def _prepared(self, steps):
        return {**steps, "k": steps["k"] * self.key_dim**-0.5}

    def _normalised(self, mixed):
        mixed = mixed - ops.mean(mixed, axis=-1, keepdims=True)
        variance = ops.mean(ops.square(mixed), axis=-1, keepdims=True)
        mixed = mixed * ops.rsqrt(variance + self.norm_epsilon)
        return mixed * ops.convert_to_tensor(self.norm_scale) + self.norm_bias

    def get_config(self):
        return {**super().get_config(), "decay": self.decay}
