"""The rotation of feature pairs by angles that grow with the position."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from keras_cosattn.ops import arrays
from keras_cosattn.ops.angles import angles, frequencies
from keras_cosattn.ops.roll import roll


def apply_rotation(x: Any, positions: Any, base: float = 10_000.0) -> Any:
    """Rotate each pair of features `(x_2i, x_2i+1)` by the angle `position base^(-2i/d)`.

    If d is odd, the last feature does not change. O(t d) time for each head.

    Args:
        x: tensor of shape `(b, t, h, d)`.
        positions: int32 tensor of shape `(b, t)` or `(1, t)`.
        base: base of the frequencies.

    Returns:
        Tensor of shape `(b, t, h, d)` in float32, or in float64 for float64 inputs.

    Reference:
        - [Su et al., 2021](https://arxiv.org/abs/2104.09864), equation 34
    """
    x = arrays.accumulate(x)
    d = x.shape[-1]
    paired = d // 2 * 2
    rates = np.concatenate([np.repeat(frequencies(paired, base), 2), np.zeros(d - paired)])
    angle = ops.expand_dims(angles(positions, rates, x.dtype), 2)  # (b, t, 1, d)
    sin = ops.sin(angle)
    second = np.arange(d) % 2  # 0 for the first feature of a pair, 1 for the second
    # Rolling moves the partner of each feature to its place without a product, so without rounding.
    from_second = roll(x, -1) * (sin * ops.convert_to_tensor(second - 1, x.dtype))
    from_first = roll(x, 1) * (sin * ops.convert_to_tensor(second, x.dtype))
    return x * ops.cos(angle) + from_second + from_first
