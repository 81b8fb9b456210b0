"""The inverse of a unit lower triangular matrix, in a few products of whole matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

Tensor = Any


def unit_lower_inverse(lower: Tensor, largest: int) -> Tensor:
    """Return `(I + lower)^-1` for strictly lower triangular matrices `(..., C, C)`.

    The inverse of the diagonal blocks of w steps gives that of the blocks of 2 w steps: with
    `L21` the lower left quarter of a block, `X <- X - X L21 X`. So it takes `2 ceil(log2(C)) - 2`
    products of whole matrices, and no loop over rows. The result is exact up to rounding, because
    no power of the matrix is computed.

    Args:
        lower: tensor of shape `(..., C, C)`, zero on and above the diagonal.
        largest: int, a number that C is known not to exceed.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn.ops.triangular import unit_lower_inverse
    >>> lower = np.array([[0.0, 0.0], [3.0, 0.0]], "float32")
    >>> np.asarray(unit_lower_inverse(lower, 2)).tolist()
    [[1.0, 0.0], [-3.0, 1.0]]
    """
    inverse, width = None, 1
    while inverse is None or width < largest:
        quarters = _lower_left_quarters(ops.shape(lower)[-1], width, lower.dtype)
        if inverse is None:
            inverse = _identity(ops.shape(lower)[-1], lower.dtype) - lower * quarters
        else:
            inverse = inverse - ops.matmul(ops.matmul(inverse, lower * quarters), inverse)
        width *= 2
    return inverse


def _steps(size):
    """Return 0, 1, ..., as a constant where the size is known: TFLite has no op for it."""
    return np.arange(size) if isinstance(size, int) else ops.arange(size, dtype="int32")


def _identity(size, dtype):
    step: Any = _steps(size)
    return ops.cast(ops.equal(step[:, None], step[None, :]), dtype)


def _lower_left_quarters(size, width, dtype):
    """Return 1 in the lower left `w x w` quarter of each diagonal block of 2 w steps."""
    step: Any = _steps(size)
    block, is_second = step // (2 * width), step // width % 2
    row, column = is_second[:, None] * block[:, None], (1 - is_second)[None, :] * block[None, :]
    chosen = ops.cast(is_second[:, None] * (1 - is_second)[None, :], dtype)
    return chosen * ops.cast(ops.equal(row, column), dtype)
