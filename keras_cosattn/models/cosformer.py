"""cosFormer attention for tf_keras."""

from __future__ import annotations

from typing import Any

from keras_cosattn.attention.arguments import optional, positive
from keras_cosattn.models.base import TFKerasAttention
from keras_cosattn.models.keras2 import tf_keras
from keras_cosattn.ops.cosine import causal_cosine_attention, cosine_attention


@tf_keras.utils.register_keras_serializable("keras_cosattn")
class CosFormerAttention(TFKerasAttention):
    """cosFormer attention for tf_keras: `keras_cosattn.CosFormerAttention` without `horizon`.

    `out_t = sum_s w_ts v_s / sum_s w_ts`, with
    `w_ts = relu(q_t) . relu(k_s) cos(pi/2 (t - s) / M)`

    The layer takes O((t + s) d e) time and O(t + s) memory for each head.

    Args:
        num_heads: Integer, h, the number of heads.
        key_dim: Integer, d, the size of a query or key head.
        max_length: Integer, M in steps. More valid steps raise ValueError where their number is
            known, and fail an assertion in a TensorFlow graph. Under XLA all steps from M on share
            position M - 1. Defaults to `None`: M is the larger number of queries or valid keys of
            the call, as in the paper's code. Outputs then change when a batch is padded further.
        **kwargs: Other arguments of `TFKerasAttention`, such as `dropout`.

    Example:
    >>> from keras_cosattn.models import CosFormerAttention
    >>> layer = CosFormerAttention(num_heads=2, key_dim=4, max_length=16)
    >>> x = np.ones((1, 10, 8), "float32")
    >>> tuple(layer(x, x).shape)
    (1, 10, 8)

    Reference:
        - [Qin et al., 2022](https://arxiv.org/abs/2202.08791), section "cos-based re-weighting"
    """

    limit_advice = "Build the layer with a larger `max_length`."

    def __init__(
        self, num_heads: int, key_dim: int, *, max_length: int | None = None, **kwargs: Any
    ):
        super().__init__(num_heads, key_dim, **kwargs)
        self.max_length = optional(positive, "max_length", max_length)

    def _mix(self, q, k, v, layout):
        options = {
            "max_length": self.max_length,
            "query_mask": layout.query_mask,
            **self._op_arguments(layout),
        }
        if layout.causal:
            return causal_cosine_attention(q, k, v, **options)[0]
        return cosine_attention(q, k, v, **options)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "max_length": self.max_length}
