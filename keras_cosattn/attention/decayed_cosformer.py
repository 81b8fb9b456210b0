"""cosFormer whose weights fade: a state of constant size without a horizon's end."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from keras_cosattn.attention.arguments import positive
from keras_cosattn.attention.decayed import DecayedAttention
from keras_cosattn.ops import arrays

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from keras_cosattn.attention.options import DecayedOptions


@keras.saving.register_keras_serializable("keras_cosattn")
class DecayedCosFormerAttention(DecayedAttention):
    """cosFormer with a learned decay for each head, in place of an end of its horizon.

    `out_t = sum_s w_ts v_s / sum_s w_ts`,
    `w_ts = relu(q_t) . relu(k_s) cos^2(pi/2 (t - s)/M) gamma^|t - s|`

    cosFormer's cosine turns negative beyond the distance M. Its square does not, so distances may
    be any: the weight is a wave of period 2 M that fades with `gamma = exp(-exp(w))`, w learned
    for each key head. `cos^2(x/2) = (1 + cos x)/2` is a product of 3 d features, so the past is a
    sum of constant size. This combination is of this package, not of a paper.
    In float32 the cosine of a weight at the distance M is about 1e-7 and not 0. A step whose other
    weights are all 0, which happens with few features and a short horizon, then gets what rounding
    decides.

    Both directions, causal, packed; streams without end. With chunks of C steps it takes
    O(t (C (d + e) + d e)) time for each head. A streamed step takes O(d e) time, and the float32
    state has O(d e) numbers for each key head. Dropout acts on the mixed values.

    Args:
        num_heads: Integer, h, the number of query heads.
        key_dim: Integer, d, the size of a query or key head.
        horizon: Integer, M, the distance of the first zero of the weights. At the start the heads
            fade by 1/e in M, ..., M^(1/h) steps. Defaults to `256`.
        conv_size: Integer, the number of steps of a short causal convolution of queries, keys and
            values. Defaults to `None`, none.
        use_output_gate: Boolean, whether `silu` of a projection of the query multiplies the
            outputs. Defaults to `False`.
        chunk_size: Integer, C. Defaults to `None`, 64.
        **kwargs: Other arguments of `Attention`, such as `dropout`, `num_key_value_heads` and
            `seed`.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn import DecayedCosFormerAttention
    >>> layer = DecayedCosFormerAttention(num_heads=2, key_dim=4, horizon=16)
    >>> x = np.ones((1, 10, 8), "float32")
    >>> tuple(layer(x, x, use_causal_mask=True).shape)
    (1, 10, 8)

    Reference:
        - [Qin et al., 2022 (cosFormer)](https://arxiv.org/abs/2202.08791), equation 10: the
          cosine re-weighting
        - [Sun et al., 2023 (RetNet)](https://arxiv.org/abs/2307.08621), equation 5: the decay
    """

    fades_evenly = True
    normalise = True

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        *args: Any,
        horizon: int = 256,
        conv_size: int | None = None,
        use_output_gate: bool = False,
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
        self.horizon = positive("horizon", horizon)
        self.period = 2 * self.horizon

    @property
    def _has_positions(self):
        return True

    def _build_gates(self, query_shape):
        heads = self.num_key_value_heads
        lengths = self.horizon ** (1.0 - np.arange(heads) / heads)
        self.log_rate = self._sum_weight(
            "log_rate", (heads,), lambda shape, dtype: ops.cast(-np.log(lengths), dtype)
        )

    def _rates(self):
        return -ops.exp(ops.convert_to_tensor(self.log_rate))

    def _prepared_positions(self, positions):
        """Return the cosine and sine of each step, `(b or 1, t, 1, 2)`."""
        place = ops.cast(ops.mod(positions, self.period), self.sum_dtype)
        angle = ops.expand_dims(place * (math.pi / self.horizon), (2, 3))
        return ops.concatenate([ops.cos(angle), ops.sin(angle)], axis=3)

    def _prepared(self, steps):
        q, k = (ops.relu(arrays.accumulate(steps[name])) for name in ("q", "k"))
        waves = ops.stop_gradient(steps["positions"])
        wave = waves[..., :1], waves[..., 1:]
        return {
            **steps,
            "q": ops.concatenate([0.5 * q, *(0.5 * q * x for x in wave)], axis=-1),
            "k": ops.concatenate([k, *(k * x for x in wave)], axis=-1),
        }

    def _feature_size(self):
        return 3 * self.key_dim

    def get_config(self):
        return {**super().get_config(), "horizon": self.horizon}
