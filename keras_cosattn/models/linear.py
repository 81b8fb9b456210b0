"""Linear attention for tf_keras."""

from __future__ import annotations

from typing import Any

from keras_cosattn.models.base import TFKerasAttention
from keras_cosattn.models.keras2 import tf_keras
from keras_cosattn.ops.linear import linear_attention
from keras_cosattn.ops.pointwise_features import FEATURE_MAPS, FeatureMapName


@tf_keras.utils.register_keras_serializable("keras_cosattn")
class LinearAttention(TFKerasAttention):
    """Linear attention for tf_keras: `keras_cosattn.LinearAttention` without `position`.

    `out_t = phi(q_t) sum_s phi(k_s) v_s^T / phi(q_t) sum_s phi(k_s)`

    With f features for each head it takes O((t + s) f e) time and O((t + s) f) memory for each
    head.

    Args:
        num_heads: Integer, h, the number of heads.
        key_dim: Integer, d, the size of a query or key head.
        feature_map: phi, one of `"elu+1"`, `"relu"`, `"squared_relu"`, `"identity"` (all with
            f = d) and `"taylor"` (f = (d + 1) (d + 2) / 2). Defaults to `"elu+1"`.
        **kwargs: Other arguments of `TFKerasAttention`, such as `dropout`.

    Raises:
        ValueError: If `feature_map` is something else.

    Example:
    >>> from keras_cosattn.models import LinearAttention
    >>> layer = LinearAttention(num_heads=2, key_dim=4, feature_map="relu")
    >>> x = np.ones((1, 10, 8), "float32")
    >>> tuple(layer(x, x).shape)
    (1, 10, 8)

    Reference:
        - [Katharopoulos et al., 2020](https://arxiv.org/abs/2006.16236), equations 4-12
    """

    def __init__(
        self, num_heads: int, key_dim: int, *, feature_map: FeatureMapName = "elu+1", **kwargs: Any
    ):
        super().__init__(num_heads, key_dim, **kwargs)
        if not isinstance(feature_map, str) or feature_map not in FEATURE_MAPS:
            raise ValueError(
                f"`feature_map` must be one of {sorted(FEATURE_MAPS)}; only the layer for Keras 3 "
                f"takes objects and functions. Received: feature_map={feature_map!r}"
            )
        self.feature_map = feature_map

    def _mix(self, q, k, v, layout):
        phi = FEATURE_MAPS[self.feature_map]

        def features(q, k, positions):
            return [(phi(q), phi(k))]

        options = self._op_arguments(layout)
        return linear_attention(q, k, v, features=features, causal=layout.causal, **options)[0]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "feature_map": self.feature_map}
