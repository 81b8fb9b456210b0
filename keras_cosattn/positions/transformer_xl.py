"""Transformer-XL's relative positions."""

import math

import keras
from keras import ops

from keras_cosattn.ops.angles import angles, frequencies
from keras_cosattn.positions.base import Position


@keras.saving.register_keras_serializable("keras_cosattn")
class TransformerXL(Position):
    """`((q_t + u) . k_s + (q_t + v) . W r_(t-s)) / sqrt(d)`, r the sinusoid of the distance.

    u and v `(h, d)` and W `(h, d, d)` are learned; `r_n = [sin n w_i, cos n w_i]`,
    `w_i = base^(-2i/d)`. A sine of a difference is a sum of products of sines and cosines, so the
    second term is an inner product of one vector for each query and one for each key: O(t s d)
    time for each head, and no vector for each pair. Dai et al., 2019, section 3.3, terms (a)-(d).

    Args:
        base: of the frequencies.
        initializer: of u, v and W.
    """

    kind = "bias"

    def __init__(self, base=10_000.0, initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        self.base = base
        self.initializer = keras.initializers.get(initializer)

    def build(self, query_shape):
        h, d = query_shape[2:]
        size = 2 * len(frequencies(d))
        shapes = {"content": (h, d), "distance": (h, d), "kernel": (h, d, size)}
        for name, shape in shapes.items():
            weight = self.add_weight(name=name, shape=shape, initializer=self.initializer)
            setattr(self, name, weight)

    def encode(self, q, k, q_positions, k_positions):
        return ops.cast(q, "float32") + self.content, k

    def bias(self, q, q_positions, k_positions):
        q = ops.cast(q, "float32")
        start = q_positions[:, :1]  # near the keys: large angles would lose precision
        rates = frequencies(q.shape[-1], self.base)
        q_angle, k_angle = (angles(p - start, rates) for p in (q_positions, k_positions))
        # The weights of sin and cos of the distance, and what they become for each key.
        sines, cosines = ops.split(
            ops.einsum("bthd,hdf->bthf", q + self.distance, self.kernel), 2, axis=-1
        )
        sin, cos = (ops.expand_dims(f(q_angle), 2) for f in (ops.sin, ops.cos))
        of_query = ops.concatenate(
            [sines * sin + cosines * cos, cosines * sin - sines * cos], axis=-1
        )
        of_key = ops.concatenate([ops.cos(k_angle), ops.sin(k_angle)], axis=-1)
        of_key = ops.expand_dims(ops.transpose(of_key, (0, 2, 1)), 1)  # (b, 1, f, s)
        of_query = ops.transpose(of_query, (0, 2, 1, 3))
        return ops.matmul(of_query, of_key) / math.sqrt(q.shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "base": self.base,
            "initializer": keras.initializers.serialize(self.initializer),
        }
