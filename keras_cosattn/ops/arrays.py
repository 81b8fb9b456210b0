"""Small tensor helpers shared by the ops: precision, time padding, head groups."""

import math

from keras import backend, ops

SMALLEST_SUM = 1e-12
"""A row whose weights sum to far less than this attends to nothing and gives zero."""


def accumulate(x):
    """`x` in the precision of sums: float32, or float64 where it came as float64."""
    wide = backend.standardize_dtype(x.dtype) == "float64"
    return ops.cast(x, "float64" if wide else "float32")


def zero_masked(x, mask):
    """`x (b, t, ...)` with exact zeros, also for NaN, where `mask (b, t)` is False."""
    if mask is None:
        return x
    for _ in range(len(x.shape) - 2):
        mask = ops.expand_dims(mask, -1)
    return ops.where(mask, x, ops.zeros((), x.dtype))


def maximum(first, second):
    """The larger of two sizes: an integer if both are."""
    if isinstance(first, int) and isinstance(second, int):
        return max(first, second)
    return ops.maximum(first, second)


def append_ones(v):
    """`[v, 1]`, so that one sum carries the numerator and, last, the normaliser."""
    return ops.concatenate([v, ops.ones_like(v[..., :1])], axis=-1)


def sums_and_totals(k, v):
    """`sum_s k_s [v_s, 1]^T`: `(b, s, h, f)`, `(b, s, h, e)` -> `(b, h, f, e + 1)`."""
    totals = ops.expand_dims(ops.sum(k, axis=1), -1)
    return ops.concatenate([ops.einsum("bshf,bshe->bhfe", k, v), totals], axis=-1)


def divide(sums):
    """`(..., e + 1) -> (..., e)`: numerator by normaliser, zero where that is zero.

    Without a comparison or a choice, which would cut a TFLite graph into two delegated parts:
    `total / size` is the sign.
    """
    total = sums[..., -1:]
    size = ops.maximum(ops.abs(total), SMALLEST_SUM)
    return sums[..., :-1] / size * (total / size)


def shares_of_mean(before, new):
    """What a mean of `before (b,)` terms keeps when there are `new` more, and each one's share.

    `new mean = keep * mean + share * sum of new`, `(b, 1, 1, 1)` both. Counts that a device takes
    for infinite in float16 leave the mean as it is.
    """
    after = ops.cast(ops.maximum(before + new, 1), "float32")
    share = ops.reshape(1.0 / after, (-1, 1, 1, 1))
    keep = ops.reshape(1.0 - ops.cast(new, "float32") / after, (-1, 1, 1, 1))
    return keep, share


def zeros_in_time(x, length):
    """Zeros like `x (b, t, ...)` with `length` steps, which may be a tensor."""
    return ops.zeros((ops.shape(x)[0], length, *x.shape[2:]), x.dtype)


def pad_end(x, amount):
    """`x (b, t, ...)` followed by `amount` zero steps."""
    if isinstance(amount, int) and amount == 0:
        return x
    return ops.concatenate([x, zeros_in_time(x, amount)], axis=1)


def pad_start(x, amount):
    """`x (b, t, ...)` behind `amount` zero steps."""
    if isinstance(amount, int) and amount == 0:
        return x
    return ops.concatenate([zeros_in_time(x, amount), x], axis=1)


def fit_length(x, length):
    """`x (b, s, ...)` cut, or followed by zeros, to `length` steps."""
    s = ops.shape(x)[1]
    if isinstance(s, int) and isinstance(length, int):
        return x[:, :length] if s >= length else pad_end(x, length - s)
    return pad_end(x[:, :length], ops.maximum(length - s, 0))


def pad_with_last(x, amount):
    """`x (b, t)` followed by `amount` copies of its last step."""
    if isinstance(amount, int) and amount == 0:
        return x
    last = ops.broadcast_to(x[:, -1:], (ops.shape(x)[0], amount))
    return ops.concatenate([x, last], axis=1)


def ceil_sqrt(n):
    """The smallest integer whose square is at least `n`, an int or a tensor."""
    if isinstance(n, int):
        return math.isqrt(n - 1) + 1
    return ops.cast(ops.ceil(ops.sqrt(ops.cast(n, "float32"))), "int32")


def group_size(q, k):
    """Query heads per key head. Raises ValueError if they do not divide."""
    heads, shared = q.shape[2], k.shape[2]
    if heads % shared:
        raise ValueError(
            "The number of query heads must be a multiple of the number of key heads. "
            f"Received: q with {heads} heads, k with {shared} heads"
        )
    return heads // shared


def fold_groups(q, group):
    """`(b, t, h * group, d) -> (b, t * group, h, d)`: grouped heads become more rows.

    Here and below without a fifth axis, which GPU delegates do not take.
    """
    if group == 1:
        return q
    b, t = ops.shape(q)[:2]
    h, d = q.shape[2] // group, q.shape[3]
    q = ops.transpose(ops.reshape(q, (-1, h, group, d)), (0, 2, 1, 3))
    return ops.reshape(q, (b, t * group, h, d))


def repeat_rows(x, group, axis=1):
    """`x` with every step repeated for the `group` rows that it has."""
    return x if group == 1 else ops.repeat(x, group, axis=axis)


def repeat_heads(x, group):
    """`(b, t, h, d) -> (b, t, h * group, d)`: every head `group` times."""
    if group == 1:
        return x
    b, t, h, d = ops.shape(x)
    return ops.reshape(ops.concatenate([x] * group, axis=-1), (b, t, h * group, d))


def unfold_groups(x, group):
    """The inverse of `fold_groups`."""
    if group == 1:
        return x
    b, rows = ops.shape(x)[:2]
    h, d = x.shape[2:]
    x = ops.transpose(ops.reshape(x, (-1, group, h, d)), (0, 2, 1, 3))
    return ops.reshape(x, (b, rows // group, h * group, d))
