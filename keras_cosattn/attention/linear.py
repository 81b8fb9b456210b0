"""Linear attention with a feature map."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from keras_cosattn.attention.arguments import optional, own_copy, positive, saved_form
from keras_cosattn.attention.sums import SumsAttention
from keras_cosattn.feature_maps import DPFPFeatures, FeatureMap, HedgehogFeatures
from keras_cosattn.ops import arrays, pointwise_features
from keras_cosattn.ops.linear import linear_attention, linear_weights

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from keras_cosattn.attention.options import SumsOptions


@keras.saving.register_keras_serializable("keras_cosattn")
class LinearAttention(SumsAttention):
    """Linear attention: a feature map takes the place of softmax's exponential.

    `out_t = phi(q_t) sum_s phi(k_s) v_s^T / phi(q_t) sum_s phi(k_s)`

    The layer attends in both directions or causally, also to other values (cross-attention) and
    inside packed sequences. It streams without end.

    With f features for each head, it takes O((t + s) f e) time and O((t + s) f) memory for each
    head. A streamed step takes O(f e) time, and the float32 state has O(f e) numbers. Most feature
    maps have f = d features.

    With `position=Rotary()`, phi(q_t) and phi(k_s) are rotated in the numerator and not in the
    normaliser (Su et al., 2021, equation 19). Weights can then be negative. Dropout acts on the
    mixed values.

    Args:
        num_heads: int, h, the number of query heads.
        key_dim: int, d, the size of a query or key head.
        feature_map: phi, one of the names `"elu+1"`, `"relu"`, `"squared_relu"`, `"identity"` (all
            with f = d) and `"taylor"` (f = (d + 1) (d + 2) / 2); or `DPFPFeatures(nu)` (f = 2 d nu)
            or `HedgehogFeatures()` (f = 2 d, learned); or a function of a tensor `(b, t, h, d)`
            that returns a tensor `(b, t, h, f)`. Register such a function with Keras to save the
            layer. With `"identity"` weights can be negative, and the output is large where they
            nearly cancel. Defaults to `"elu+1"`.
        chunk_size: int, the number of steps that one matrix product of the causal form covers.
            Defaults to `None`: 128 on CPUs, 64 elsewhere.
        block_size: int, the number of steps that one iteration of the loop over the sequence takes.
            Defaults to `None`: one chunk on CPUs, 8,192 steps elsewhere.
        conv_size: int, the number of steps of a short causal convolution of queries, keys and
            values, each channel by itself, with SiLU after it. Defaults to `None`, none.
        *args, **kwargs: Other arguments of `Attention`, such as `dropout`, `num_key_value_heads`
            and `seed`.

    Raises:
        ValueError: If an argument has a value that is not listed, or for a `position` that is no
            rotation.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn import LinearAttention
    >>> layer = LinearAttention(num_heads=2, key_dim=4, feature_map="taylor")
    >>> x = np.ones((1, 10, 8), "float32")
    >>> tuple(layer(x, x, use_causal_mask=True).shape)
    (1, 10, 8)

    Reference:
        - [Katharopoulos et al., 2020](https://arxiv.org/abs/2006.16236), equations 4-12
        - [Su et al., 2021](https://arxiv.org/abs/2104.09864), equation 19
    """

    accepts_positions = ("rotation",)
    queries_are_independent = True

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        *args: Any,
        feature_map: pointwise_features.FeatureMapName | FeatureMap | Callable[..., Any] = "elu+1",
        chunk_size: int | None = None,
        block_size: int | None = None,
        **kwargs: Unpack[SumsOptions],
    ):
        super().__init__(num_heads, key_dim, *args, **kwargs)
        self.feature_map = feature_map = own_copy(feature_map, self.dtype_policy)
        self.chunk_size = optional(positive, "chunk_size", chunk_size)
        self.block_size = optional(positive, "block_size", block_size)
        is_map = isinstance(feature_map, FeatureMap)
        self._phi = None if is_map else pointwise_features.get(feature_map)

    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        if isinstance(self.feature_map, FeatureMap):
            heads = self.num_heads, self.num_key_value_heads
            self.feature_map.build(*((None, None, h, self.key_dim) for h in heads))

    def _map(self, q, k):
        q, k = arrays.accumulate(q), arrays.accumulate(k)
        if isinstance(self.feature_map, FeatureMap):
            return self.feature_map(q, k)
        return self._phi(q), self._phi(k)

    def _features(self, q, k, layout, state):
        """Return the arguments of `linear_attention` and `linear_weights` for the features."""
        positions, position_state = self._positions(layout, state)
        maps_each_step = isinstance(self.feature_map, str | DPFPFeatures | HedgehogFeatures)
        if not maps_each_step:  # a user's function may mix steps
            q, k = self._map(q, k)

        def features(q, k, positions):
            pair = self._map(q, k) if maps_each_step else (q, k)
            return [pair] if positions is None else [self._rotate(*pair, positions), pair]

        return {"q": q, "k": k, "features": features, "positions": positions}, position_state

    def _sums(self, q, k, v, layout, state):
        options, position_state = self._features(q, k, layout, state)
        mixed, state = linear_attention(
            v=v,
            causal=layout.causal,
            mask=layout.key_mask,
            segment_ids=layout.segments,
            state=state,
            lengths=(layout.query_steps, layout.key_steps),
            chunk_size=self.chunk_size,
            block_size=self.block_size,
            **options,
        )
        return mixed, {**state, **position_state}

    def _weights(self, q, k, layout):
        return linear_weights(
            causal=layout.causal,
            query_mask=layout.query_mask,
            mask=layout.key_mask,
            segment_ids=layout.segments,
            **self._features(q, k, layout, None)[0],
        )

    def _feature_size(self):
        if isinstance(self.feature_map, FeatureMap):
            return self.feature_map.size(self.key_dim)
        return self._phi(ops.ones((1, 1, self.num_key_value_heads, self.key_dim))).shape[-1]

    def _state_spec(self):
        size, heads, e = self._feature_size(), self.num_key_value_heads, self.value_dim
        if self.position is None:
            return {"sums": ((heads, size, e + 1), self.sum_dtype)}
        return {
            "sums": ((heads, size, e), self.sum_dtype),
            "totals": ((heads, size, 1), self.sum_dtype),
            **self._position_spec(),
        }

    def get_config(self) -> dict[str, Any]:
        feature_map = self.feature_map
        if callable(feature_map):
            feature_map = saved_form(feature_map)
        return {
            **super().get_config(),
            "feature_map": feature_map,
            "chunk_size": self.chunk_size,
            "block_size": self.block_size,
        }
