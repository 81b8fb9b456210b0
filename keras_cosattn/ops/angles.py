"""Angles that grow with the position, each feature pair at its own frequency."""

import math

import numpy as np
from keras import ops

_STEP = 1024


def frequencies(size, base=10_000.0):
    """`base^(-2 i / size)` for i = 0 .. ceil(size / 2) - 1, in NumPy. Vaswani et al., 2017, 3.5."""
    return base ** (-2.0 * np.arange(-(-size // 2)) / size)


def angles(positions, rates):
    """`position * rate`, up to whole turns: int32 `(b, t)`, f rates -> float32 `(b, t, f)`.

    A position is split at 1,024, and what 1,024 steps turn is reduced to one turn beforehand, so
    the float32 error is below 5e-4 at position 1,000,000, where the plain product's is 0.02.
    """
    rates = np.asarray(rates, "float64")
    positions = ops.expand_dims(positions, -1)
    coarse = np.mod(_STEP * rates + math.pi, 2 * math.pi) - math.pi
    high = ops.cast(ops.floor_divide(positions, _STEP), "float32") * coarse.astype("float32")
    low = ops.cast(ops.mod(positions, _STEP), "float32") * rates.astype("float32")
    return high + low
