"""A cache of keys and values, for attention whose past does not fit into sums."""

from __future__ import annotations

from typing import Any

from keras import ops

Tensor = Any


def append(cache: Tensor, new: Tensor, position: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the cache with new steps stored in their slots.

    This takes O(t n h d) time, as the scores that follow. It is one matrix product, so it runs on
    devices without scatter operations.

    Args:
        cache: Tensor `(b, n, h, d)` with n slots. Empty slots are zero.
        new: Tensor `(b, t, h, d)`.
        position: int32 tensor `(b, t)`, the slot of each new step, which must be empty. Steps with
            a position of n or more are not stored.
        mask: bool tensor `(b, t)`. Masked steps are not stored. None means that all are valid.

    Returns:
        Tensor `(b, n, h, d)`.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn.ops import cache
    >>> new, position = np.ones((1, 2, 1, 3), "float32"), np.array([[0, 1]])
    >>> filled = cache.append(np.zeros((1, 5, 1, 3), "float32"), new, position)
    >>> np.asarray(filled)[0, :, 0, 0].tolist()
    [1.0, 1.0, 0.0, 0.0, 0.0]
    """
    n, h, d = cache.shape[1:]
    slots = ops.equal(
        ops.expand_dims(ops.arange(n, dtype="int32"), 1), ops.expand_dims(position, 1)
    )
    if mask is not None:
        slots = ops.logical_and(slots, ops.expand_dims(mask, 1))
    stored = ops.matmul(
        ops.cast(slots, new.dtype), ops.reshape(new, (-1, ops.shape(new)[1], h * d))
    )
    return cache + ops.reshape(stored, (-1, n, h, d))
