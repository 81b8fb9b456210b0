"""Random features: `phi(q) . phi(k)` estimates a kernel of q and k. More features estimate better.

A projection of shape `(d, m)` holds m directions w_i; m is also the number of random features. All
feature maps compute in float32, or in float64 for float64 inputs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import ops

from keras_cosattn.ops import arrays, pointwise_features

SMALLEST_SQUARE = 1e-12
"""A vector shorter than the square root of this does not become a unit vector."""


def orthogonal_projection(d: int, num_features: int, seed: int) -> np.ndarray:
    """Return normal columns w_i that are orthogonal to each other in blocks of d.

    Each column by itself is a draw from N(0, I): a uniform direction, with the length of a normal
    vector. The same seed gives the same numbers on every backend.

    Args:
        d: int, size of a head.
        num_features: int, number of columns m.
        seed: int.

    Returns:
        NumPy array of shape `(d, num_features)`.

    Example:
    >>> orthogonal_projection(d=4, num_features=6, seed=0).shape
    (4, 6)

    Reference:
        - [Choromanski et al., 2021](https://arxiv.org/abs/2009.14794), section 2.4
    """
    rng = np.random.default_rng(seed)
    blocks = [_orthogonal_matrix(rng, d) for _ in range(-(-num_features // d))]
    directions = np.concatenate(blocks, axis=1)[:, :num_features]
    return directions * np.linalg.norm(rng.normal(size=(d, num_features)), axis=0)


def _orthogonal_matrix(rng: np.random.Generator, d: int) -> np.ndarray:
    """Return an orthogonal matrix, drawn uniformly."""
    q, r = np.linalg.qr(rng.normal(size=(d, d)))
    return q * np.where(np.diag(r) < 0, -1.0, 1.0)  # without the signs it is not uniform


def positive_query_features(q: Any, projection: Any) -> Any:
    """Return FAVOR+ features of queries, `exp(w_i . y)` with `y = q / d^(1/4)`.

    They are scaled by a factor for each row, see `pointwise_features.exp_of_queries`; the paper's
    `exp(-|y|^2 / 2)` is such a factor.

    Args:
        q: tensor of shape `(b, t, h, d)`.
        projection: tensor of shape `(d, m)`.

    Returns:
        Tensor of shape `(b, t, h, m)`.

    Reference:
        - [Choromanski et al., 2021](https://arxiv.org/abs/2009.14794), lemma 1
    """
    return pointwise_features.exp_of_queries(ops.matmul(*_scaled(q, projection)))


def positive_key_features(k: Any, projection: Any) -> Any:
    """Return FAVOR+ features of keys, `exp(w_i . y - |y|^2 / 2)` with `y = k / d^(1/4)`.

    The mean over i of these, times `exp(w_i . y - |y|^2 / 2)` of a query, is an unbiased estimate
    of `exp(q . k / sqrt(d))`, within the range of `pointwise_features.exp_of_keys`.

    Args:
        k: tensor of shape `(b, s, h, d)`.
        projection: tensor of shape `(d, m)`.

    Returns:
        Tensor of shape `(b, s, h, m)`.
    """
    k, projection = _scaled(k, projection)
    half_square = ops.sum(ops.square(k), axis=-1, keepdims=True) / 2
    return pointwise_features.exp_of_keys(ops.matmul(k, projection) - half_square)


def trigonometric_features(x: Any, projection: Any, sigma: float = 1.0) -> Any:
    """Return `[sin(w_i . y), cos(w_i . y)] / sqrt(m)` with `y = x / (sigma |x|)`.

    `phi(q) . phi(k)` is an unbiased estimate of `exp(-|q/|q| - k/|k||^2 / (2 sigma^2))`.

    Args:
        x: tensor of shape `(b, t, h, d)`.
        projection: tensor of shape `(d, m)`.
        sigma: float. Defaults to `1.0`.

    Returns:
        Tensor of shape `(b, t, h, 2 m)`.

    Reference:
        - [Peng et al., 2021](https://arxiv.org/abs/2103.02143), theorem 1 and section 3.1
    """
    x = arrays.accumulate(x)
    square = ops.maximum(ops.sum(ops.square(x), axis=-1, keepdims=True), SMALLEST_SQUARE)
    angles = ops.matmul(x / (sigma * ops.sqrt(square)), ops.cast(projection, x.dtype))
    both = ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)
    return both / math.sqrt(projection.shape[-1])


def _scaled(x: Any, projection: Any) -> tuple[Any, Any]:
    """Return `x / d^(1/4)` and the projection, both in float32 or float64."""
    x = arrays.accumulate(x)
    return x / math.sqrt(math.sqrt(x.shape[-1])), ops.cast(projection, x.dtype)
