"""Linear attention with a feature map."""

import keras
from keras import ops

from keras_cosattn.attention.arguments import own_copy, positive
from keras_cosattn.attention.sums import SumsAttention
from keras_cosattn.feature_maps import FeatureMap
from keras_cosattn.ops import arrays, pointwise_features
from keras_cosattn.ops.chunked import CHUNK_SIZE
from keras_cosattn.ops.linear import linear_attention, linear_weights


@keras.saving.register_keras_serializable("keras_cosattn")
class LinearAttention(SumsAttention):
    """Linear attention: `out_t = phi(q_t) sum_s phi(k_s) v_s^T / phi(q_t) sum_s phi(k_s)`.

    Both directions, causal, cross, packed; streams without end. With f features, d unless the map
    says otherwise, O((t + s) f e) time and O((t + s) f) memory per head, packed another
    O((t / chunk_size)^1.5 f e) time; a streamed step and its float32 state are O(f e).
    Katharopoulos et al., 2020, eq. 4-12.

    With `position=Rotary()` phi(q_t) and phi(k_s) are rotated in the numerator and not in
    the normaliser (Su et al., 2021, eq. 19); weights can then be negative.

    Args:
        num_heads, key_dim, **kwargs: as `Attention`.
        feature_map: phi: `"elu+1"`, `"relu"`, `"squared_relu"`, `"identity"`, `"taylor"` (f =
            (d + 1) (d + 2) / 2), `DPFPFeatures(nu)` (2 d nu), `HedgehogFeatures()` (2 d, learned),
            or a function `(b, t, h, d) -> (b, t, h, f)`, registered with Keras if the layer is to
            be saved. With `"identity"` weights can be negative, and the output is large where
            they nearly cancel.
        chunk_size: steps per chunk of the causal form.
    """

    accepts_positions = ("rotation",)
    queries_are_independent = True

    def __init__(self, num_heads, key_dim, *, feature_map="elu+1", chunk_size=CHUNK_SIZE, **kwargs):
        super().__init__(num_heads, key_dim, **kwargs)
        self.feature_map = feature_map = own_copy(feature_map, self.dtype_policy)
        self.chunk_size = positive("chunk_size", chunk_size)
        self._phi = pointwise_features.get(feature_map)

    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        if isinstance(self.feature_map, FeatureMap):
            heads = self.num_heads, self.num_key_value_heads
            self.feature_map.build(*((None, None, h, self.key_dim) for h in heads))

    def _features(self, q, k):
        q, k = arrays.accumulate(q), arrays.accumulate(k)
        if isinstance(self.feature_map, FeatureMap):
            return self.feature_map(q, k)
        return self._phi(q), self._phi(k)

    def _sums(self, q, k, v, layout, state):
        q, k = self._features(q, k)
        rotated_q, rotated_k, position_state = self._apply_rotation(q, k, layout, state)
        mixed, state = linear_attention(
            q,
            k,
            v,
            rotated=None if self.position is None else (rotated_q, rotated_k),
            causal=layout.causal,
            mask=layout.key_mask,
            segment_ids=layout.segments,
            state=state,
            chunk_size=self.chunk_size,
        )
        return mixed, {**state, **position_state}

    def _weights(self, q, k, layout):
        q, k = self._features(q, k)
        rotated_q, rotated_k, _ = self._apply_rotation(q, k, layout, None)
        return linear_weights(
            q,
            k,
            rotated=None if self.position is None else (rotated_q, rotated_k),
            causal=layout.causal,
            query_mask=layout.query_mask,
            mask=layout.key_mask,
            segment_ids=layout.segments,
        )

    def _state_spec(self):
        if isinstance(self.feature_map, FeatureMap):
            size = self.feature_map.size(self.key_dim)
        else:
            size = self._phi(ops.ones((1, 1, self.num_key_value_heads, self.key_dim))).shape[-1]
        heads, e = self.num_key_value_heads, self.value_dim
        if self.position is None:
            return {"sums": ((heads, size, e + 1), self.sum_dtype)}
        return {
            "sums": ((heads, size, e), self.sum_dtype),
            "totals": ((heads, size, 1), self.sum_dtype),
            **self._position_spec(),
        }

    def get_config(self):
        feature_map = self.feature_map
        if callable(feature_map):
            feature_map = keras.saving.serialize_keras_object(feature_map)
        return {
            **super().get_config(),
            "feature_map": feature_map,
            "chunk_size": self.chunk_size,
        }
