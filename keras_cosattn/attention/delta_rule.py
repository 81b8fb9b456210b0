"""The delta rule: a step replaces what the state holds for its key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import keras
from keras import ops

from keras_cosattn.attention import step_sizes
from keras_cosattn.attention.decayed import DecayedAttention, root_mean_square_norm, unit_norm
from keras_cosattn.ops import arrays
from keras_cosattn.ops.decays import SMALLEST_LOG_DECAY

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from keras_cosattn.attention.options import DecayedOptions


@keras.saving.register_keras_serializable("keras_cosattn")
class DeltaRuleAttention(DecayedAttention):
    """DeltaNet: each step replaces what the state holds for its key.

    `S_t = a_t (I - beta_t k_t k_t^T) S_(t-1) + beta_t k_t v_t^T`, `out_t = S_t^T q_t / sqrt(d)`.
    Queries, keys and values pass a short convolution and SiLU, queries and keys then have length
    one. `beta_t = sigmoid(x_t W)`, for each key head, is how much of the old value is replaced.
    Each head is normalised by its root mean square.

    `a_t` is 1, or with `gated=True` (Gated DeltaNet)
    `exp(-exp(A_log) softplus(x_t W' + dt_bias))` for each key head; with `gated="channel"` (Kimi
    Delta Attention) for each channel of a key, and then `diag(a_t)` stands left of S.

    Causal, packed; streams without end. With chunks of C steps it takes
    O(t (C (d + e) + C^2 log C + d e)) time for each head: the steps of a chunk are one triangular
    system, whose inverse is `2 log2(C)` products. A streamed step takes O(d e) time, and the
    float32 state has O(d e) numbers for each key head. Dropout acts on the mixed values.

    Where this differs from the papers: heads of a group share keys, values and gates. With
    `gated="channel"` W' is one matrix and not a product of two, a_t is at least exp(-5), and the
    output gate is the same as with `gated=True`.

    Args:
        num_heads: Integer, h, the number of query heads.
        key_dim: Integer, d, the size of a query or key head.
        gated: Boolean or `"channel"`, whether the state fades, too. Defaults to `False`.
        allow_neg_eigval: Boolean, whether beta is between 0 and 2, in place of 1. A step can then
            change the sign of what the state holds, as counting and parity need (Grazzi et al.,
            2025). Defaults to `False`.
        num_groups: Integer, the number of different query and key heads, each of which serves a
            group of value heads, as in Qwen3-Next. It must divide `num_key_value_heads`. Defaults
            to `None`: `num_heads` query heads and `num_key_value_heads` key heads.
        use_output_gate: Boolean, whether `silu` of a projection of the query multiplies the
            outputs. Defaults to `None`: True if `gated`.
        conv_size: Integer, the number of steps of the short convolution, or `None` for none. Its
            SiLU stays. Defaults to `4`.
        norm_epsilon: Float, what the norm adds to the mean square. Defaults to `1e-5`.
        chunk_size: Integer, C. Defaults to `None`, 64.
        **kwargs: Other arguments of `Attention`, such as `dropout`, `value_dim` and
            `num_key_value_heads`.

    Raises:
        ValueError: If `gated` is none of these, or `num_groups` does not divide
            `num_key_value_heads`.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn import DeltaRuleAttention
    >>> layer = DeltaRuleAttention(num_heads=2, key_dim=4, gated=True)
    >>> x = np.ones((1, 10, 8), "float32")
    >>> tuple(layer(x, x, use_causal_mask=True).shape)
    (1, 10, 8)

    Reference:
        - [Yang et al., 2024 (DeltaNet)](https://arxiv.org/abs/2406.06484), equations 2-3 and
          section 3
        - [Yang et al., 2025 (Gated DeltaNet)](https://arxiv.org/abs/2412.06464), equation 10
        - [Kimi Team, 2025 (Kimi Linear)](https://arxiv.org/abs/2510.26692), section 3
        - [Grazzi et al., 2025](https://arxiv.org/abs/2411.12537), negative eigenvalues
    """

    delta_rule = True
    always_applies_silu = True

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        *args: Any,
        gated: bool | Literal["channel"] = False,
        allow_neg_eigval: bool = False,
        num_groups: int | None = None,
        use_output_gate: bool | None = None,
        conv_size: int | None = 4,
        **kwargs: Unpack[DecayedOptions],
    ):
        if gated not in (False, True, "channel"):
            raise ValueError(f'`gated` must be False, True or "channel". Received: gated={gated!r}')
        gate = bool(gated) if use_output_gate is None else use_output_gate
        super().__init__(
            num_heads, key_dim, *args, conv_size=conv_size, use_output_gate=gate, **kwargs
        )
        self.num_groups = None if num_groups is None else self._checked_groups(num_groups)
        self.gated = gated
        self.allow_neg_eigval = allow_neg_eigval

    def _build_gates(self, query_shape):
        heads = self.num_key_value_heads
        self.beta_dense = self._gate_dense("beta", query_shape, heads)
        self.norm_scale = self._sum_weight("norm_scale", (self.value_dim,), "ones")
        if not self.gated:
            return
        size = self.key_dim if self.gated == "channel" else 1
        self.decay_dense = self._gate_dense("decay", query_shape, heads * size)
        self.log_rate = self._sum_weight("A_log", (heads, 1), step_sizes.log_rates())
        self.step_bias = self._sum_weight("dt_bias", (heads, size), step_sizes.step_biases())

    def _gates(self, query):
        gates = {"beta": self.beta_dense(query)}
        if self.gated:
            gates["log_decay"] = self.decay_dense(query)
        return gates

    def _prepared(self, steps):
        q, k, v = (arrays.accumulate(steps[name]) for name in ("q", "k", "v"))
        q, k = self._for_each_head(unit_norm(q) * self.key_dim**-0.5, unit_norm(k))
        beta = ops.sigmoid(arrays.accumulate(steps["beta"]))
        steps = {
            **steps,
            "q": q,
            "k": k,
            "v": v,
            "beta": beta * 2.0 if self.allow_neg_eigval else beta,
        }
        if self.gated:
            z = arrays.accumulate(steps["log_decay"])
            z = ops.reshape(z, (-1, ops.shape(z)[1], *self.step_bias.shape))
            size = step_sizes.step_size(z, ops.convert_to_tensor(self.step_bias))
            log_decay = step_sizes.log_decay(size, ops.convert_to_tensor(self.log_rate))
            if self.gated == "channel":
                log_decay = ops.maximum(log_decay, SMALLEST_LOG_DECAY)
            steps["log_decay"] = log_decay
        return steps

    def _normalised(self, mixed):
        return root_mean_square_norm(mixed, self.norm_scale, self.norm_epsilon)

    def get_config(self):
        return {
            **super().get_config(),
            "gated": self.gated,
            "allow_neg_eigval": self.allow_neg_eigval,
            "num_groups": self.num_groups,
        }
