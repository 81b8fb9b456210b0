"""Several steps as one: a weighted mean."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_cosattn.ops import arrays, dense

Tensor = Any


def pool(x: Tensor, valid: Tensor, query: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Pool c steps into one: `sum_s a_s x_s`, `a_s = softmax_s(u . x_s / sqrt(d))`.

    O(c d) time for each head.

    Args:
        x: `(z, c, h, d)`, finite.
        valid: Boolean `(z, c)`, the valid steps. Without one the sum is zero.
        query: u, `(h, d)`. `None` gives the plain mean.

    Returns:
        The sum `(z, h, d)` and a, `(z, h, 1, c)`, float32.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn.ops.pool import pool
    >>> mean, weights = pool(np.ones((2, 5, 3, 4), "float32"), np.ones((2, 5), "bool"))
    >>> tuple(mean.shape), tuple(weights.shape)
    ((2, 3, 4), (2, 3, 1, 5))
    """
    u = arrays.accumulate(x[:, :1]) * 0.0
    if query is not None:
        u = u + arrays.accumulate(query)
    pooled, weights = dense.attend(u, x, x, ops.expand_dims(valid, (1, 2)))[:2]
    return pooled[:, 0], weights
