"""Performer: softmax attention estimated by random features."""

import random

import keras

from keras_cosattn.attention.arguments import own_copy, positive
from keras_cosattn.attention.sums import SumsAttention
from keras_cosattn.feature_maps import PositiveFeatures, TrigonometricFeatures
from keras_cosattn.ops.chunked import CHUNK_SIZE
from keras_cosattn.ops.linear import linear_attention, linear_weights
from keras_cosattn.ops.random_features import orthogonal_projection


@keras.saving.register_keras_serializable("keras_cosattn")
class PerformerAttention(SumsAttention):
    """Attention by random features: `out_t = sum_s w_ts v_s / sum_s w_ts`.

    `w_ts = phi(q_t) . phi(k_s)` estimates `exp(q_t . k_s / sqrt(d))`, so this estimates softmax
    attention, with an error that falls as `1 / sqrt(m)`. m directions w_i, normal and orthogonal in
    blocks of d, are drawn once from `seed`. They are a weight, "projection" `(d, m)`, shared by the
    heads, that is saved and exported but not trained. Longer q and k need more features: the
    variance of a weight grows as `exp(|q + k|^2 / sqrt(d))`.

    Both directions, causal, cross, packed; positions that turn q and k (`Rotary`); streams without
    end. O((t + s) m (d + e)) time and O((t + s) m) memory per head, packed another
    O((t / chunk_size)^1.5 m e) time; a streamed step is O(m (d + e)), its float32 state O(m e).
    Choromanski et al., 2021, lemma 1 and section 2.4; with `TrigonometricFeatures` Peng et al.,
    2021, section 3.1, without its gate.

    Where we leave the papers: the largest exponent of each row of queries is taken off, as in the
    Performer's code, but not the largest of the keys: with it padding, the future and the cut into
    pieces would count. The exponents of keys, `w_i . y - |y|^2 / 2` with `y = k / d^(1/4)`, are
    held within -40 and 30 instead, where float32 holds all sums. So keys longer than about
    `9 d^(1/4)` weigh more than they should. No small constant is added to the features. The sigma
    of RFA is fixed, not learned, and its w_i are orthogonal too.

    Args:
        num_heads, key_dim, **kwargs: as `Attention`.
        num_random_features: m.
        features: `PositiveFeatures()`, m features, or `TrigonometricFeatures(sigma)`, 2 m; None is
            the former.
        chunk_size: steps per chunk of the causal form.
        seed: of the projection and of the dropout, an integer; None is another one each time.
    """

    accepts_positions = ("rotation",)
    queries_are_independent = True

    def __init__(
        self,
        num_heads,
        key_dim,
        *,
        num_random_features=256,
        features=None,
        chunk_size=CHUNK_SIZE,
        **kwargs,
    ):
        super().__init__(num_heads, key_dim, **kwargs)
        self.num_random_features = positive("num_random_features", num_random_features)
        self.features = (
            PositiveFeatures() if features is None else own_copy(features, self.dtype_policy)
        )
        if not isinstance(self.features, PositiveFeatures | TrigonometricFeatures):
            raise ValueError(
                "`features` must be `PositiveFeatures()` or `TrigonometricFeatures()`. "
                f"Received: features={features!r}"
            )
        if not isinstance(self.seed, int | None):
            raise ValueError(f"`seed` must be an integer or None. Received: seed={self.seed!r}")
        self.chunk_size = positive("chunk_size", chunk_size)

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

    def redraw(self, seed=None):
        """Draw the projection anew, as for a layer of that seed. Streams then start afresh.

        Redrawing now and then while training improves the estimate over many steps (Choromanski
        et al., 2021, section 4.2).
        """
        self.projection.assign(self._draw(seed))

    def _draw(self, seed):
        seed = random.randrange(2**32) if seed is None else seed
        drawn = orthogonal_projection(self.key_dim, self.num_random_features, seed)
        return drawn.astype("float32")

    def _sums(self, q, k, v, layout, state):
        q, k, position_state = self._apply_rotation(q, k, layout, state)
        mixed, state = linear_attention(
            *self.features(q, k, self.projection),
            v,
            causal=layout.causal,
            mask=layout.key_mask,
            segment_ids=layout.segments,
            state=state,
            chunk_size=self.chunk_size,
        )
        return mixed, {**state, **position_state}

    def _weights(self, q, k, layout):
        q, k, _ = self._apply_rotation(q, k, layout, None)
        return linear_weights(
            *self.features(q, k, self.projection),
            causal=layout.causal,
            query_mask=layout.query_mask,
            mask=layout.key_mask,
            segment_ids=layout.segments,
        )

    def _state_spec(self):
        size = self.features.size(self.num_random_features)
        sums = (self.num_key_value_heads, size, self.value_dim + 1), self.sum_dtype
        return {"sums": sums, **self._position_spec()}

    def get_config(self):
        return {
            **super().get_config(),
            "num_random_features": self.num_random_features,
            "features": keras.saving.serialize_keras_object(self.features),
            "chunk_size": self.chunk_size,
        }
