"""Feature maps of linear attention: `phi(q) . phi(k)` takes the place of softmax's `exp(q . k)`.

All of them compute in float32, or in float64 for float64 inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from keras import ops

from keras_cosattn.ops import arrays
from keras_cosattn.ops.roll import roll

FeatureMapName = Literal["elu+1", "relu", "squared_relu", "identity", "taylor"]

LARGEST_QUERY = 20.0
KEY_RANGE = (-40.0, 30.0)
"""Exponents of e. With one step a row sums to at least e^(20 - 40), above `SMALLEST_SUM`; with
e^14 steps, e^6 features and values of e^7 sums stay below e^(20 + 30 + 27), and float32 ends at
e^88."""

SMALLEST_NUMBER = float(np.finfo("float32").min)


def elu_plus_one(x: Any) -> Any:
    """Return `elu(x) + 1`, which is `x + 1` for x > 0, and `exp(x)` otherwise.

    The features are positive down to x = -87, where float32 ends: nothing is subtracted, as the
    sum of `elu(x)`, close to -1, and 1 would do.

    Args:
        x: tensor of any shape.

    Returns:
        Tensor of the same shape, in float32 or float64.

    Example:
    >>> from keras_cosattn.ops import elu_plus_one
    >>> [round(float(y), 4) for y in elu_plus_one(np.array([-2.0, 0.0, 3.0]))]
    [0.1353, 1.0, 4.0]

    Reference:
        - [Katharopoulos et al., 2020](https://arxiv.org/abs/2006.16236), equation 7
    """
    x = arrays.accumulate(x)
    positive = ops.relu(x)
    return positive + ops.exp(x - positive)


def relu(x: Any) -> Any:
    """Return `max(x, 0)` in float32 or float64: the feature map of cosFormer.

    Example:
    >>> from keras_cosattn.ops import relu
    >>> [float(y) for y in relu(np.array([-2.0, 3.0]))]
    [0.0, 3.0]

    Reference:
        - [Qin et al., 2022](https://arxiv.org/abs/2202.08791)
    """
    return ops.relu(arrays.accumulate(x))


def squared_relu(x: Any) -> Any:
    """Return `max(x, 0)^2` in float32 or float64.

    Example:
    >>> from keras_cosattn.ops import squared_relu
    >>> [float(y) for y in squared_relu(np.array([-2.0, 3.0]))]
    [0.0, 9.0]

    Reference:
        - [So et al., 2021 (Primer)](https://arxiv.org/abs/2109.08668), "Squared ReLU"
    """
    return ops.square(relu(x))


def identity(x: Any) -> Any:
    """Return `x` in float32 or float64: weights can be negative, and their sum can be near zero.

    Example:
    >>> from keras_cosattn.ops import identity
    >>> [float(y) for y in identity(np.array([-2.0, 3.0]))]
    [-2.0, 3.0]
    """
    return arrays.accumulate(x)


def taylor(x: Any) -> Any:
    """Return `[1, y_i, y_i^2 / sqrt(2), y_i y_j (i < j)]` with `y = x / d^(1/4)`.

    `phi(q) . phi(k) = 1 + z + z^2 / 2` with `z = q . k / sqrt(d)`: the first terms of the series of
    `exp(z)`, never less than 1/2. There are (d + 1) (d + 2) / 2 features: the paper has d^2
    products, here each pair is kept once, with the same inner product. It is meant for small d; the
    paper uses 16.

    Args:
        x: tensor of shape `(..., d)`.

    Returns:
        Tensor of shape `(..., (d + 1) (d + 2) / 2)`, in float32 or float64.

    Reference:
        - [Arora et al., 2024 (Based)](https://arxiv.org/abs/2402.18668), section 4.1
    """
    d = x.shape[-1]
    x = arrays.accumulate(x) / math.sqrt(math.sqrt(d))
    first, second = (index.astype("int32") for index in np.triu_indices(d))
    pairs = ops.take(x, first, axis=-1) * ops.take(x, second, axis=-1)
    factors = np.where(first == second, math.sqrt(0.5), 1.0)
    pairs = pairs * ops.convert_to_tensor(factors, x.dtype)
    return ops.concatenate([ops.ones_like(x[..., :1]), x, pairs], axis=-1)


def dpfp(x: Any, nu: int = 1) -> Any:
    """Return `r_i r_(i + j)` for j = 1 .. nu, with `r = relu([x, -x])`.

    i + j counts around the 2 d entries of r. Most of the 2 d nu features are zero.

    Args:
        x: tensor of shape `(..., d)`.
        nu: int, the largest j. Defaults to `1`.

    Returns:
        Tensor of shape `(..., 2 d nu)`, in float32 or float64.

    Reference:
        - [Schlag et al., 2021](https://arxiv.org/abs/2102.11174), equation 37
    """
    x = arrays.accumulate(x)
    both = ops.relu(ops.concatenate([x, -x], axis=-1))
    return ops.concatenate([both * roll(both, -j) for j in range(1, nu + 1)], axis=-1)


def exp_of_queries(exponents: Any) -> Any:
    """Return `exp(x)` times a factor for each row, with which the largest feature is e^20.

    Attention divides the factor out.
    """
    # With an initial value Keras also takes the maximum of a tensor without rows.
    largest = ops.max(exponents, axis=-1, keepdims=True, initial=SMALLEST_NUMBER)
    largest = ops.stop_gradient(largest)
    return ops.exp(exponents - largest + LARGEST_QUERY)


def exp_of_keys(exponents: Any) -> Any:
    """Return `exp(x)`, with x clipped to the range from -40 to 30.

    A factor like that of the queries would have to be the same for all keys that are summed, also
    for future ones. Inside the range nothing changes; outside, float32 sums would be zero or
    overflow.
    """
    return ops.exp(ops.clip(exponents, *KEY_RANGE))


FEATURE_MAPS: dict[str, Callable[[Any], Any]] = {
    "elu+1": elu_plus_one,
    "relu": relu,
    "squared_relu": squared_relu,
    "identity": identity,
    "taylor": taylor,
}


def get(feature_map: FeatureMapName | Callable[..., Any]) -> Callable[..., Any]:
    """Return the feature map of that name, or the callable itself.

    Raises:
        ValueError: for any other argument. The message lists the names.
    """
    if callable(feature_map):
        return feature_map
    if feature_map in FEATURE_MAPS:
        return FEATURE_MAPS[feature_map]
    raise ValueError(
        f"`feature_map` must be a callable or one of {sorted(FEATURE_MAPS)}. "
        f"Received: feature_map={feature_map!r}"
    )
