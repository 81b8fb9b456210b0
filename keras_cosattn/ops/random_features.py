"""Random features: `phi(q) . phi(k)` estimates a kernel of q and k, the better the more there are.

A projection `(d, m)` holds m directions w_i; m is also the number of random features.
"""

import math

import numpy as np
from keras import ops

from keras_cosattn.ops import arrays, pointwise_features

SMALLEST_SQUARE = 1e-12
"""A vector shorter than the root of this does not become a unit vector."""


def orthogonal_projection(d, num_features, seed):
    """`(d, num_features)`: normal columns w_i, orthogonal to each other in blocks of d.

    Each column alone is a draw from N(0, I): a uniform direction, and the length of a normal
    vector. The same seed gives the same numbers on every backend. Choromanski et al., 2021,
    section 2.4.
    """
    rng = np.random.default_rng(seed)
    blocks = [_rotation(rng, d) for _ in range(-(-num_features // d))]
    directions = np.concatenate(blocks, axis=1)[:, :num_features]
    return directions * np.linalg.norm(rng.normal(size=(d, num_features)), axis=0)


def _rotation(rng, d):
    """A uniformly random orthogonal matrix."""
    q, r = np.linalg.qr(rng.normal(size=(d, d)))
    return q * np.where(np.diag(r) < 0, -1.0, 1.0)  # without the signs it is not uniform


def positive_query_features(q, projection):
    """FAVOR+ of queries, `exp(w_i . y)` with `y = q / d^(1/4)`, up to a factor for each row.

    `(b, t, h, d) -> (b, t, h, m)`. The paper's `exp(-|y|^2 / 2)` is such a factor; for the one
    that remains see `pointwise_features.exp_of_queries`. Choromanski et al., 2021, lemma 1.
    """
    return pointwise_features.exp_of_queries(ops.matmul(*_scaled(q, projection)))


def positive_key_features(k, projection):
    """FAVOR+ of keys, `exp(w_i . y - |y|^2 / 2)` with `y = k / d^(1/4)`.

    The mean over i of these, times `exp(w_i . y - |y|^2 / 2)` of a query, is an unbiased estimate
    of `exp(q . k / sqrt(d))`, but for the range of `pointwise_features.exp_of_keys`.
    """
    k, projection = _scaled(k, projection)
    half_square = ops.sum(ops.square(k), axis=-1, keepdims=True) / 2
    return pointwise_features.exp_of_keys(ops.matmul(k, projection) - half_square)


def trigonometric_features(x, projection, sigma=1.0):
    """`[sin(w_i . y), cos(w_i . y)] / sqrt(m)` with `y = x / (sigma |x|)`, `(b, t, h, 2 m)`.

    `phi(q) . phi(k)` is an unbiased estimate of `exp(-|q/|q| - k/|k||^2 / (2 sigma^2))`.
    Peng et al., 2021, theorem 1 and section 3.1.
    """
    x = arrays.accumulate(x)
    square = ops.maximum(ops.sum(ops.square(x), axis=-1, keepdims=True), SMALLEST_SQUARE)
    angles = ops.matmul(x / (sigma * ops.sqrt(square)), ops.cast(projection, x.dtype))
    both = ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)
    return both / math.sqrt(projection.shape[-1])


def _scaled(x, projection):
    x = arrays.accumulate(x)
    return x / math.sqrt(math.sqrt(x.shape[-1])), ops.cast(projection, x.dtype)
