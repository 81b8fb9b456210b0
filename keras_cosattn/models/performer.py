"""Performer attention for tf_keras."""

from __future__ import annotations

import random
from typing import Any

import tensorflow as tf

from keras_cosattn.attention.arguments import positive
from keras_cosattn.feature_maps import PositiveFeatures
from keras_cosattn.models.base import TFKerasAttention
from keras_cosattn.models.keras2 import tf_keras
from keras_cosattn.ops.linear import linear_attention
from keras_cosattn.ops.random_features import orthogonal_projection


@tf_keras.utils.register_keras_serializable("keras_cosattn")
class PerformerAttention(TFKerasAttention):
    """Performer for tf_keras: `keras_cosattn.PerformerAttention` with its positive features.

    `out_t = sum_s w_ts v_s / sum_s w_ts`, with `w_ts = phi(q_t) . phi(k_s)`, whose mean over the
    random draws is `exp(q_t . k_s / sqrt(d))`

    The m random directions are a weight "projection" `(d, m)` that is saved and exported, but not
    trained. With m of them the layer takes O((t + s) m (d + e)) time for each head.

    Args:
        num_heads: Integer, h, the number of heads.
        key_dim: Integer, d, the size of a query or key head.
        num_random_features: Integer, m, the number of random directions. Defaults to `256`.
        **kwargs: Other arguments of `TFKerasAttention`, such as `dropout`. `seed` is also the seed
            of the directions. Without it each layer draws others.

    Example:
    >>> from keras_cosattn.models import PerformerAttention
    >>> layer = PerformerAttention(num_heads=2, key_dim=4, num_random_features=32, seed=0)
    >>> x = np.ones((1, 10, 8), "float32")
    >>> tuple(layer(x, x).shape)
    (1, 10, 8)

    Reference:
        - [Choromanski et al., 2021](https://arxiv.org/abs/2009.14794), lemma 1 and section 2.4
    """

    def __init__(
        self, num_heads: int, key_dim: int, *, num_random_features: int = 256, **kwargs: Any
    ):
        super().__init__(num_heads, key_dim, **kwargs)
        self.num_random_features = positive("num_random_features", num_random_features)

    def build(self, input_shape):
        seed = random.randrange(2**32) if self.seed is None else self.seed
        drawn = orthogonal_projection(self.key_dim, self.num_random_features, seed)
        self.projection = self.add_weight(
            "projection",
            shape=drawn.shape,
            dtype=tf.float32,
            initializer=lambda shape, dtype: tf.constant(drawn, dtype, shape),
            trainable=False,
            experimental_autocast=False,
        )
        super().build(input_shape)

    def _mix(self, q, k, v, layout):
        projection = tf.convert_to_tensor(self.projection)

        def features(q, k, positions):
            return [PositiveFeatures()(q, k, projection)]

        options = self._op_arguments(layout)
        return linear_attention(q, k, v, features=features, causal=layout.causal, **options)[0]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_random_features": self.num_random_features}
