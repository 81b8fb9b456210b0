"""A cache of keys and values: what attention keeps when its past does not fit into sums."""

from keras import ops


def append(cache, new, position, mask=None):
    """`cache (b, n, h, d)` with `new (b, t, h, d)` in the slots `position (b, t)`.

    Steps that `mask (b, t)` leaves out, and positions from n on, are not stored. The slots must
    be empty: zero. O(t n h d) time, as the scores that follow; one matrix product, so it runs
    where scatter operations do not.
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
