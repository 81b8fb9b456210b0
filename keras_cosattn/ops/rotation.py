"""The rotation of feature pairs by angles that grow with the position."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import ops

from keras_cosattn.ops import arrays
from keras_cosattn.ops.angles import angles, frequencies
from keras_cosattn.ops.roll import roll

FrequencyAdjustment = tuple[float, float, float, int]


def adjusted(rates: Any, factor: float, low: float, high: float, length: int) -> np.ndarray:
    """Divide the slow ones of some rates by a factor, as Llama 3.1 does to read longer sequences.

    A rate that makes less than `low` turns in `length` steps is divided by `factor`, one that makes
    more than `high` turns stays, and between them the share of the undivided rate grows linearly.

    Args:
        rates: array of shape `(f,)`, radians per step.
        factor: by which slow rates are divided.
        low, high: turns in `length` steps.
        length: steps of the sequences on which the model was trained.

    Reference:
        - [Dubey et al., 2024](https://arxiv.org/abs/2407.21783), section 3.4.2, and the published
          code of Llama 3.1
    """
    turns = np.asarray(rates) * length / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return share * rates + (1 - share) * rates / factor


def rotation_table(
    positions: Any,
    size: int,
    base: float = 10_000.0,
    *,
    interleaved: bool = True,
    scaling_factor: float = 1.0,
    rotary_dim: int | None = None,
    frequency_adjustment: FrequencyAdjustment | None = None,
    dtype: Any = "float32",
) -> Any:
    """Return the sines and cosines that rotate features by their position, for `apply_rotation`.

    The i-th pair of features rotates by `position base^(-2i/r) / scaling_factor`. r is `rotary_dim`
    or d, less one if it is odd. Features beyond r do not change. O(t d) time.

    Args:
        positions: int32 tensor of shape `(b, t)` or `(1, t)`.
        size: d, the number of features.
        base: base of the frequencies.
        interleaved: whether the pairs are `(x_2i, x_2i+1)`. Otherwise they are `(x_i, x_i+r/2)`.
        scaling_factor: by which positions are divided.
        rotary_dim: number of features that rotate, at most d. Defaults to d.
        frequency_adjustment: as in `adjusted`. Defaults to None.
        dtype: float32 or float64. Defaults to `"float32"`.

    Returns:
        Tensor of shape `(b or 1, t, 3, d)`, three factors for each feature. A feature becomes
        itself times the first factor, plus its partner times the second if the partner is to its
        right, or times the third if it is to its left. The factor that does not apply is zero.

    Reference:
        - [Su et al., 2021](https://arxiv.org/abs/2104.09864), equation 34
        - [Chen et al., 2023](https://arxiv.org/abs/2306.15595), for the scaling factor
    """
    paired = (rotary_dim or size) // 2 * 2
    rates = frequencies(paired, base) / scaling_factor
    if frequency_adjustment is not None:
        rates = adjusted(rates, *frequency_adjustment)
    rates = np.repeat(rates, 2) if interleaved else np.tile(rates, 2)
    rates = np.concatenate([rates, np.zeros(size - paired)])
    angle = ops.expand_dims(angles(positions, rates, dtype), 2)  # (b, t, 1, d)
    sin = ops.sin(angle)
    # 0 for the first feature of a pair, 1 for the second
    second = np.arange(size) % 2 if interleaved else np.arange(size) >= paired // 2
    from_second = sin * ops.convert_to_tensor(second - 1.0, dtype)
    from_first = sin * ops.convert_to_tensor(second * 1.0, dtype)
    return ops.concatenate([ops.cos(angle), from_second, from_first], axis=2)


def apply_rotation(
    x: Any, table: Any, *, interleaved: bool = True, rotary_dim: int | None = None
) -> Any:
    """Rotate features by the table of their positions, in O(t d) time for each head.

    Args:
        x: tensor of shape `(b, t, h, d)`.
        table: what `rotation_table` returned. It has no gradient.
        interleaved, rotary_dim: as in `rotation_table`.

    Returns:
        Tensor of shape `(b, t, h, d)` in float32, or in float64 for float64 inputs.
    """
    x = arrays.accumulate(x)
    table = ops.stop_gradient(table)  # or a loop would compute the gradient of what it reads
    distance = 1 if interleaved else (rotary_dim or x.shape[-1]) // 2
    # Rolling moves the partner of each feature to its place without a product, so without rounding.
    from_second = roll(x, -distance) * table[:, :, 1:2]
    from_first = roll(x, distance) * table[:, :, 2:]
    return x * table[:, :, :1] + from_second + from_first
