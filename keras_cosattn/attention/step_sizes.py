"""Decays from step sizes: `log a = -exp(A_log) softplus(z + dt_bias)` (Dao and Gu, 2024)."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

Tensor = Any

LARGEST_RATE = 16.0
SMALLEST_STEP, LARGEST_STEP = 1e-3, 1e-1


def log_rates() -> Any:
    """Return an initializer of A_log: logs of rates between 1 and 16, all equally likely."""
    uniform = keras.initializers.RandomUniform(1.0, LARGEST_RATE)

    def initialise(shape: Any, dtype: Any = None) -> Tensor:
        return ops.log(uniform(shape, dtype))

    return initialise


def step_biases() -> Any:
    """Return an initializer of dt_bias: step sizes of 0.001 to 0.1, their logs equally likely."""
    uniform = keras.initializers.RandomUniform(math.log(SMALLEST_STEP), math.log(LARGEST_STEP))

    def initialise(shape: Any, dtype: Any = None) -> Tensor:
        step = ops.exp(uniform(shape, dtype))
        return step + ops.log(-ops.expm1(-step))  # the inverse of softplus

    return initialise


def step_size(z: Tensor, bias: Tensor) -> Tensor:
    """Return `softplus(z + dt_bias)`, larger than zero."""
    return ops.softplus(z + bias)


def log_decay(size: Tensor, log_rate: Tensor) -> Tensor:
    """Return `-exp(A_log) size`."""
    return -ops.exp(log_rate) * size
