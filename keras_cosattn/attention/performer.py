"""Performer: softmax attention estimated by random features."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import keras

from keras_cosattn.attention.arguments import not_negative, optional, own_copy, positive, saved_form
from keras_cosattn.attention.sums import SumsAttention
from keras_cosattn.feature_maps import PositiveFeatures, TrigonometricFeatures
from keras_cosattn.ops.linear import linear_attention, linear_weights
from keras_cosattn.ops.random_features import orthogonal_projection

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from keras_cosattn.attention.options import SumsOptions


@keras.saving.register_keras_serializable("keras_cosattn")
class PerformerAttention(SumsAttention):
    """Performer: linear attention whose random features estimate softmax attention.

    `out_t = sum_s w_ts v_s / sum_s w_ts`, with `w_ts = phi(q_t) . phi(k_s)`

    The mean of w_ts over the random draws is `exp(q_t . k_s / sqrt(d))`, and the error of the
    estimate falls as `1 / sqrt(m)`. The features have m directions w_i, which are normal and
    orthogonal in blocks of d. They are drawn once from `seed`, and all heads share them. They are
    a weight "projection" `(d, m)` that is saved and exported, but not trained. Longer q and k need
    more features, as the variance of a weight grows as `exp(|q + k|^2 / sqrt(d))`.

    The layer attends in both directions or causally, also to other values (cross-attention) and
    inside packed sequences. It takes positions that rotate q and k (`Rotary`), and streams without
    end. Dropout acts on the mixed values.

    It takes O((t + s) m (d + e)) time and O((t + s) m) memory for each head. A streamed step takes
    O(m (d + e)) time, and the float32 state has O(m e) numbers.

    Where this differs from the papers: the largest exponent of each row of queries is subtracted,
    as in the Performer's code. The largest exponent of the keys is not subtracted, as results would
    then depend on padding, on future steps and on how a stream is cut into pieces. Instead, the
    exponents of keys, `w_i . y - |y|^2 / 2` with `y = k / d^(1/4)`, are clipped to the range from
    -40 to 30, where float32 holds all sums. So keys longer than about `9 d^(1/4)` weigh more than
    they should. No small constant is added to the features. The sigma of RFA (Peng et al., 2021)
    is fixed, not learned, its w_i are orthogonal too, and its gate is left out.

    Args:
        num_heads: int, h, the number of query heads.
        key_dim: int, d, the size of a query or key head.
        num_random_features: int, m, the number of random directions. Defaults to `256`.
        features: `PositiveFeatures()` (m features) or `TrigonometricFeatures(sigma)` (2 m
            features). Defaults to `None`, which is `PositiveFeatures()`.
        chunk_size: int, the number of steps that one matrix product of the causal form covers.
            Defaults to `None`: 128 on CPUs, 64 elsewhere.
        block_size: int, the number of steps that one iteration of the loop over the sequence takes.
            Defaults to `None`: one chunk on CPUs, 8,192 steps elsewhere.
        conv_size: int, the number of steps of a short causal convolution of queries, keys and
            values, each channel by itself, with SiLU after it. Defaults to `None`, none.
        *args, **kwargs: Other arguments of `Attention`, such as `dropout` and
            `num_key_value_heads`. `seed` is the integer seed of the projection and of the dropout.
            Without it each layer draws another projection.

    Raises:
        ValueError: If `features` or `seed` has another type, if `seed` is negative, or for a
            `position` that is no rotation.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn import PerformerAttention
    >>> layer = PerformerAttention(num_heads=2, key_dim=4, num_random_features=32, seed=0)
    >>> x = np.ones((1, 10, 8), "float32")
    >>> tuple(layer(x, x).shape)
    (1, 10, 8)

    Reference:
        - [Choromanski et al., 2021](https://arxiv.org/abs/2009.14794), lemma 1 and section 2.4
        - [Peng et al., 2021](https://arxiv.org/abs/2103.02143), section 3.1, for
          `TrigonometricFeatures`
    """

    accepts_positions = ("rotation",)
    queries_are_independent = True

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        *args: Any,
        num_random_features: int = 256,
        features: PositiveFeatures | TrigonometricFeatures | None = None,
        chunk_size: int | None = None,
        block_size: int | None = None,
        **kwargs: Unpack[SumsOptions],
    ):
        super().__init__(num_heads, key_dim, *args, **kwargs)
        self.num_random_features = positive("num_random_features", num_random_features)
        self.features = (
            PositiveFeatures() if features is None else own_copy(features, self.dtype_policy)
        )
        if not isinstance(self.features, PositiveFeatures | TrigonometricFeatures):
            raise ValueError(
                "`features` must be `PositiveFeatures()` or `TrigonometricFeatures()`. "
                f"Received: features={features!r}"
            )
        self.seed = optional(not_negative, "seed", self.seed)
        self.chunk_size = optional(positive, "chunk_size", chunk_size)
        self.block_size = optional(positive, "block_size", block_size)

    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        self.projection = self.add_weight(
            name="projection",
            shape=(self.key_dim, self.num_random_features),
            initializer=lambda shape, dtype: self._draw(self.seed),
            trainable=False,
            dtype="float32",
            autocast=False,
        )

    def redraw(self, seed: int | None = None) -> None:
        """Draw a new projection, as for a layer with this seed.

        Reset all streams after a redraw. New projections during training improve the estimate over
        many steps (Choromanski et al., 2021, section 4.2).

        Args:
            seed: int, the seed of the projection. Defaults to `None`, another one in each call.
        """
        self.projection.assign(self._draw(seed))

    def _draw(self, seed):
        seed = random.randrange(2**32) if seed is None else seed
        drawn = orthogonal_projection(self.key_dim, self.num_random_features, seed)
        return drawn.astype("float32")

    def _features(self, q, k, positions):
        return [self.features(*self._rotate(q, k, positions), self.projection)]

    def _sums(self, q, k, v, layout, state):
        positions, position_state = self._positions(layout, state)
        mixed, state = linear_attention(
            q,
            k,
            v,
            features=self._features,
            positions=positions,
            causal=layout.causal,
            mask=layout.key_mask,
            segment_ids=layout.segments,
            state=state,
            lengths=(layout.query_steps, layout.key_steps),
            chunk_size=self.chunk_size,
            block_size=self.block_size,
        )
        return mixed, {**state, **position_state}

    def _weights(self, q, k, layout):
        return linear_weights(
            q,
            k,
            features=self._features,
            positions=self._positions(layout, None)[0],
            causal=layout.causal,
            query_mask=layout.query_mask,
            mask=layout.key_mask,
            segment_ids=layout.segments,
        )

    def _state_spec(self):
        size = self.features.size(self.num_random_features)
        sums = (self.num_key_value_heads, size, self.value_dim + 1), self.sum_dtype
        return {"sums": sums, **self._position_spec()}

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_random_features": self.num_random_features,
            "features": saved_form(self.features),
            "chunk_size": self.chunk_size,
            "block_size": self.block_size,
        }
