"""Softmax attention to a sliding window, and linear attention to all steps before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from keras_cosattn.attention.arguments import optional, own_copy, positive, saved_form
from keras_cosattn.attention.base import Attention
from keras_cosattn.feature_maps import FeatureMap, HedgehogFeatures
from keras_cosattn.ops import arrays, pointwise_features, timesteps
from keras_cosattn.ops.windowed_linear import windowed_linear_attention

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from keras_cosattn.attention.options import AttentionOptions

LEAST_LOGIT = -30.0
"""Of the window's factor: with less, its inverse would leave the range of float32."""


@keras.saving.register_keras_serializable("keras_cosattn")
class WindowedLinearAttention(Attention):
    """LoLCATs: exact softmax in a sliding window, and linear attention to all steps before it.

    `out_t = sum_s a_ts v_s / sum_s a_ts`: the last w steps, `t - w < s <= t`, have the weights
    `a_ts = g exp(q_t . k_s / sqrt(d) - c_t)`, and all earlier steps `a_ts = phi(q_t) . phi(k_s)`.
    `c_t` is the largest score in the window, so the largest weight there is g. Each head learns
    its `g = sigmoid(beta)`, which starts at 1/2. While all steps are in the window, g cancels, and
    the layer is causal softmax attention.

    The layer attends causally, also inside packed sequences. It streams without end. With f
    features for each head, it takes O(t (w (d + e) + f e)) time and O(t (w + f)) memory for each
    head; on a CPU the weights are those of one block only. A streamed step takes
    O(w (d + e) + f e) time. The state has as many numbers: the keys and values of the window in the
    compute dtype, and float32 sums.

    A `position`, such as `Rotary()`, rotates queries and keys before both parts. Dropout acts on
    the mixed values. LoLCATs first trains phi and g alone, so that the outputs come near those of
    the softmax layer that this layer replaces.

    Where this differs from the paper: g starts at 1/2, where LoLCATs' published settings have 1/10,
    and is at least e^-30. The map of keys is one for each key head. Hedgehog's features have size
    d, twice, also where LoLCATs has fewer. `c_t` does not scale the weights of earlier steps, as in
    the paper, so the size of phi(q_t) counts. With `HedgehogFeatures()`, which is not `normalized`,
    phi(q_t) is divided by its largest feature.

    Args:
        num_heads: int, h, the number of query heads.
        key_dim: int, d, the size of a query or key head.
        window: int, w, the number of steps with exact weights, the step itself included. Defaults
            to `64`.
        feature_map: phi, as in `LinearAttention`: a name, such as `"elu+1"`; or an object, such as
            `DPFPFeatures(nu)`; or a function of a tensor `(b, t, h, d)` that returns a tensor
            `(b, t, h, f)` and maps each step by itself. Defaults to `None`, the map of LoLCATs:
            `HedgehogFeatures(normalized=True)`, f = 2 d.
        block_size: int, the number of steps that one iteration of the loop over the sequence takes.
            Defaults to `None`: the length of the window on CPUs, 64 at least; 8,192 steps
            elsewhere.
        *args, **kwargs: Other arguments of `Attention`, such as `dropout`, `num_key_value_heads`
            and `seed`.

    Raises:
        ValueError: If an argument has a value that is not listed, or for a `position` that is no
            rotation.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn import Rotary, WindowedLinearAttention
    >>> layer = WindowedLinearAttention(num_heads=2, key_dim=4, window=3, position=Rotary())
    >>> x = np.ones((1, 10, 8), "float32")
    >>> tuple(layer(x, x, use_causal_mask=True).shape)
    (1, 10, 8)

    Reference:
        - [Zhang et al., 2024 (LoLCATs)](https://arxiv.org/abs/2410.10254), equation 7
        - [Zhang et al., 2024 (The Hedgehog & the Porcupine)](https://arxiv.org/abs/2402.04347),
          section 4
    """

    accepts_positions = ("rotation",)
    needs_valid_first = True

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        *args: Any,
        window: int = 64,
        feature_map: pointwise_features.FeatureMapName
        | FeatureMap
        | Callable[..., Any]
        | None = None,
        block_size: int | None = None,
        **kwargs: Unpack[AttentionOptions],
    ):
        super().__init__(num_heads, key_dim, *args, **kwargs)
        self.window = positive("window", window)
        if feature_map is None:
            feature_map = HedgehogFeatures(normalized=True)
        self.feature_map = feature_map = own_copy(feature_map, self.dtype_policy)
        self.block_size = optional(positive, "block_size", block_size)
        is_map = isinstance(feature_map, FeatureMap)
        self._phi = None if is_map else pointwise_features.get(feature_map)

    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        self.window_factor = self.add_weight(
            name="window_factor",
            shape=(self.num_heads,),
            initializer="zeros",
            dtype=self.sum_dtype,
            autocast=False,
        )
        if isinstance(self.feature_map, FeatureMap):
            heads = self.num_heads, self.num_key_value_heads
            self.feature_map.build(*((None, None, h, self.key_dim) for h in heads))

    @property
    def cannot(self) -> dict[str, str]:
        """What the layer refuses, each with its reason."""
        return {
            "both ways": "its sums are of the steps before the window. Call it with "
            "`use_causal_mask=True`, or use LinearAttention, whose sums may run over everything.",
            "cross": "its window ends at the query's own step. Use SoftmaxAttention or "
            "LinearAttention.",
        }

    def _features(self, q, k):
        """Return `phi(q) / g` and `phi(k)`. To divide here by g is to multiply the window by it."""
        q, k = arrays.accumulate(q), arrays.accumulate(k)
        if isinstance(self.feature_map, FeatureMap):
            q, k = self.feature_map(q, k)
        else:
            q, k = self._phi(q), self._phi(k)
        logit = ops.cast(ops.convert_to_tensor(self.window_factor), q.dtype)
        inverse = 1.0 + ops.exp(-ops.maximum(logit, LEAST_LOGIT))
        if isinstance(self.feature_map, HedgehogFeatures) and not self.feature_map.normalized:
            least = pointwise_features.SMALLEST_NUMBER
            q = q / ops.max(q, axis=-1, keepdims=True, initial=least)
        return q * ops.expand_dims(inverse, 1), k

    def _mix(self, q, k, v, layout, training):
        mixed, _ = self._windowed(q, k, v, layout, layout.query_positions, segments=layout.segments)
        return self.dropout_layer(mixed, training=training)

    def _attend_in_stream(self, q, k, v, layout, stream, training):
        slot, state = stream.read(self, ops.shape(q)[0], averages=True, **self._state_spec())
        positions = timesteps.positions(
            layout.query_steps, layout.query_mask, start=state["position"]
        )
        mixed, state = self._windowed(q, k, v, layout, positions, state=state, means=stream.means)
        stream.write(slot, {**state, "position": timesteps.wrap(state["position"], 1)})
        return self.dropout_layer(mixed, training=training)

    def _windowed(self, q, k, v, layout, positions, **options):
        """Return the mixed values `(b, t, h, e)` and the new state."""
        q, k, _ = self._encode_positions(q, k, positions, positions)
        return windowed_linear_attention(
            q,
            ops.cast(k, self.compute_dtype),  # as a stream keeps it
            v,
            window=self.window,
            features=self._features,
            positions=positions,
            mask=layout.query_mask,
            block_size=self.block_size,
            **options,
        )

    def _state_spec(self):
        """Return the shape (without the batch axis) and the dtype of each entry of the state."""
        heads, d, e = self.num_key_value_heads, self.key_dim, self.value_dim
        if isinstance(self.feature_map, FeatureMap):
            size = self.feature_map.size(d)
        else:
            size = self._phi(ops.ones((1, 1, heads, d))).shape[-1]
        return {
            "key": ((self.window, heads, d), self.compute_dtype),
            "value": ((self.window, heads, e), self.compute_dtype),
            "sums": ((heads, size, e + 1), self.sum_dtype),
            "position": ((), "int32"),
        }

    def get_config(self) -> dict[str, Any]:
        feature_map = own_copy(self.feature_map, self.dtype_policy)  # as before `build`
        if callable(feature_map):
            feature_map = saved_form(feature_map)
        return {
            **super().get_config(),
            "window": self.window,
            "feature_map": feature_map,
            "block_size": self.block_size,
        }
