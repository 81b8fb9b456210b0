"""Feature maps of linear attention: `phi(q) . phi(k)` stands where softmax has `exp(q . k)`."""

import math

import numpy as np
from keras import ops

from keras_cosattn.ops import arrays

LARGEST_QUERY = 20.0
KEY_RANGE = (-40.0, 30.0)
"""Exponents of e. With one step a row sums to at least e^(20 - 40), above `SMALLEST_SUM`; with
e^14 steps, e^6 features and values of e^7 sums stay below e^(20 + 30 + 27), and float32 ends at
e^88."""


def elu_plus_one(x):
    """`elu(x) + 1`: positive everywhere. Katharopoulos et al., 2020, eq. 7."""
    return ops.elu(x) + 1.0


def relu(x):
    """`max(x, 0)`. The map of cosFormer (Qin et al., 2022)."""
    return ops.relu(x)


def squared_relu(x):
    """`max(x, 0)^2`. "Squared ReLU" of So et al., 2021 (Primer)."""
    return ops.square(ops.relu(x))


def identity(x):
    """`x`: weights can be negative, and their sum can be near zero."""
    return x


def taylor(x):
    """`[1, y_i, y_i^2 / sqrt(2), y_i y_j (i < j)]`, `y = x / d^(1/4)`; (d + 1) (d + 2) / 2 of them.

    `phi(q) . phi(k) = 1 + z + z^2 / 2` with `z = q . k / sqrt(d)`: the start of the series of
    `exp(z)`, never less than 1/2. Arora et al., 2024 (Based), section 4.1; where the paper has
    d^2 products we keep each pair once, with the same inner product. Meant for small d: 16 there.
    """
    d = x.shape[-1]
    x = arrays.accumulate(x) / math.sqrt(math.sqrt(d))
    first, second = np.triu_indices(d)
    factors = np.where(first == second, math.sqrt(0.5), 1.0)
    pairs = ops.take(x, first, axis=-1) * ops.take(x, second, axis=-1)
    return ops.concatenate([ops.ones_like(x[..., :1]), x, pairs * ops.cast(factors, x.dtype)], -1)


def dpfp(x, nu=1):
    """`r_i r_(i + j)` for j = 1 ... nu, with `r = relu([x, -x])`: 2 d nu features, mostly zero.

    i + j counts around the 2 d entries of r. Schlag et al., 2021, eq. 37.
    """
    both = ops.relu(ops.concatenate([x, -x], axis=-1))
    turned = (_turn_back(both, j % both.shape[-1]) for j in range(1, nu + 1))
    return ops.concatenate([both * other for other in turned], axis=-1)


def _turn_back(x, steps):
    """`ops.roll(x, -steps, axis=-1)`, for which TFLite has no operation."""
    return ops.concatenate([x[..., steps:], x[..., :steps]], axis=-1)


def exp_of_queries(exponents):
    """`exp(x)` times a factor for each row, which attention divides out: the largest is e^20."""
    largest = ops.stop_gradient(ops.max(exponents, axis=-1, keepdims=True))
    return ops.exp(exponents - largest + LARGEST_QUERY)


def exp_of_keys(exponents):
    """`exp(x)`, x held within -40 and 30.

    A factor like that of queries would have to be one for all keys that are summed, also those
    still to come. Within the range nothing is changed; beyond it float32 sums would be zero or
    overflow.
    """
    return ops.exp(ops.clip(exponents, *KEY_RANGE))


FEATURE_MAPS = {
    "elu+1": elu_plus_one,
    "relu": relu,
    "squared_relu": squared_relu,
    "identity": identity,
    "taylor": taylor,
}


def get(feature_map):
    """The map of that name, or the callable itself.

    Raises ValueError for any other argument, listing the names.
    """
    if callable(feature_map):
        return feature_map
    if feature_map in FEATURE_MAPS:
        return FEATURE_MAPS[feature_map]
    raise ValueError(
        f"`feature_map` must be a callable or one of {sorted(FEATURE_MAPS)}. "
        f"Received: feature_map={feature_map!r}"
    )
