"""A cache of keys and values, for attention whose past does not fit into sums."""

from __future__ import annotations

from typing import Any

from keras import backend, ops

from keras_cosattn.ops import arrays, timesteps

Tensor = Any


def append(cache: Tensor, new: Tensor, position: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the cache with new steps stored in their slots.

    Numbers are moved and not computed: a product with zeros and ones would round them on devices
    whose products round their operands, and would be slower in TFLite. This takes O(n h d) time,
    and O(n t) more with a mask.

    Args:
        cache: Tensor `(b, n, h, d)` with n slots.
        new: Tensor `(b, t, h, d)`.
        position: int32 tensor `(b, t)`, the slot of each new step. Steps with a position of n or
            more are not stored.
        mask: bool tensor `(b, t)`. Masked steps are not stored, and the positions of the others
            must differ. None means that all are valid, and that each position is the one before
            plus 1.

    Returns:
        Tensor `(b, n, h, d)`, in the dtype of the cache.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn.ops import cache
    >>> new, position = np.ones((1, 2, 1, 3), "float32"), np.array([[0, 1]])
    >>> filled = cache.append(np.zeros((1, 5, 1, 3), "float32"), new, position)
    >>> np.asarray(filled)[0, :, 0, 0].tolist()
    [1.0, 1.0, 0.0, 0.0, 0.0]
    """
    if new.shape[1] == 0:
        return cache
    if backend.backend() == "jax":
        return _scatter(cache, new, position, mask)
    n, t = cache.shape[1], ops.shape(new)[1]
    slots, new = ops.expand_dims(ops.arange(n, dtype="int32"), 0), ops.cast(new, cache.dtype)
    if new.shape[1] is None:  # there may be no step: one more, without a slot
        new, position = arrays.pad_end(new, 1), ops.pad(position, ((0, 0), (0, 1)), "constant", n)
        mask = None if mask is None else arrays.pad_end(mask, 1)
    if mask is None:
        step = slots - position[:, :1]  # of each slot, (b, n)
        stored = ops.logical_and(step >= 0, step < t)
    else:
        step = _steps_of_slots(slots, position, mask)
        stored = step >= 0
    if new.shape[1] != 1:
        new = timesteps.take_steps(new, arrays.clip_index(step, ops.shape(new)[1]))
    return ops.where(ops.expand_dims(stored, (2, 3)), new, cache)


def _scatter(cache, new, position, mask):
    """Return what `append` does, for JAX, which drops what it would write outside of the cache.

    This writes into a cache that the caller gives away. With `where`, XLA computes the new cache
    twice on CPUs.
    """
    b, t = ops.shape(position)
    if mask is not None:
        position = ops.where(mask, position, cache.shape[1])
    example = ops.broadcast_to(ops.expand_dims(ops.arange(b, dtype="int32"), 1), (b, t))
    slot = ops.reshape(ops.stack([example, position], axis=2), (b * t, 2))
    new = ops.reshape(ops.cast(new, cache.dtype), (b * t, *new.shape[2:]))
    return ops.scatter_update(cache, slot, new)


def _steps_of_slots(slots, position, mask):
    """Return the step that each slot `(1, n)` gets, int32 `(b, n)`. -1 is none."""
    same = ops.equal(ops.expand_dims(slots, 2), ops.expand_dims(position, 1))  # (b, n, t)
    same = ops.logical_and(same, ops.expand_dims(mask, 1))
    numbers = ops.arange(1, ops.shape(position)[1] + 1, dtype="int32")
    return ops.sum(ops.where(same, numbers, 0), axis=2) - 1
