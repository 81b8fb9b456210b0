"""Small tensor helpers that the ops share: precision, padding in time, groups of heads."""

from __future__ import annotations

import math
from typing import Any

from keras import backend, ops

Tensor = Any
Size = Any  # an int, or an integer tensor in a graph with dynamic shapes

SMALLEST_SUM = 1e-12
"""A row whose weights sum to far less than this attends to nothing and gives zero."""


def sum_dtype(x: Tensor) -> str:
    """Return the dtype of sums of `x`: float32, or float64 for a float64 tensor."""
    return "float64" if backend.standardize_dtype(x.dtype) == "float64" else "float32"


def accumulate(x: Tensor) -> Tensor:
    """Return `x` in the dtype of sums."""
    return ops.cast(x, sum_dtype(x))


def zero_masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return `x (b, t, ...)` with zeros where `mask (b, t)` is False, also in place of NaN."""
    if mask is None:
        return x
    mask = ops.expand_dims(mask, tuple(range(2, len(x.shape))))
    return ops.where(mask, x, ops.zeros((), x.dtype))


def without_none(tensors: dict[str, Any]) -> dict[str, Any]:
    """Return the entries that are not None."""
    return {name: x for name, x in tensors.items() if x is not None}


def heads_first(x: Tensor) -> Tensor:
    """`(b, t, h, d) -> (b, h, t, d)`, and back."""
    return ops.transpose(x, (0, 2, 1, 3))


def maximum(first: Size, second: Size) -> Size:
    """Return the larger of two sizes, an integer if both are integers."""
    if isinstance(first, int) and isinstance(second, int):
        return max(first, second)
    return ops.maximum(first, second)


def append_ones(v: Tensor) -> Tensor:
    """Return `[v, 1]`. Sums of it have the numerator and, as last column, the normaliser."""
    return ops.concatenate([v, ops.ones_like(v[..., :1])], axis=-1)


def sums_and_totals(k: Tensor, v: Tensor) -> Tensor:
    """Return `sum_s k_s [v_s, 1]^T`: `(b, s, h, f)`, `(b, s, h, e)` -> `(b, h, f, e + 1)`."""
    totals = ops.expand_dims(ops.sum(k, axis=1), -1)
    return ops.concatenate([ops.einsum("bshf,bshe->bhfe", k, v), totals], axis=-1)


def divide(sums: Tensor) -> Tensor:
    """Divide numerator by normaliser, `(..., e + 1) -> (..., e)`. A normaliser of 0 gives 0.

    `total / size` is the sign of the normaliser. A comparison or a selection would cut a TFLite
    graph into two delegated parts.
    """
    total = sums[..., -1:]
    size = ops.maximum(ops.abs(total), SMALLEST_SUM)
    return sums[..., :-1] / size * (total / size)


def shares_of_mean(before: Tensor, new: Size) -> tuple[Tensor, Tensor]:
    """Return the factors `(keep, share)` of a mean of `before (b,)` terms that gets `new` more.

    `new mean = keep * mean + share * sum of new terms`. Both have shape `(b, 1, 1, 1)`. The mean
    stays as it is if a device that computes in float16 takes the counts for infinite.
    """
    after = ops.cast(ops.maximum(before + new, 1), "float32")
    share = ops.reshape(1.0 / after, (-1, 1, 1, 1))
    keep = ops.reshape(1.0 - ops.cast(new, "float32") / after, (-1, 1, 1, 1))
    return keep, share


def zeros_in_time(x: Tensor, length: Size) -> Tensor:
    """Return zeros like `x (b, t, ...)`, with `length` steps."""
    return ops.zeros((ops.shape(x)[0], length, *x.shape[2:]), x.dtype)


def pad_end(x: Tensor, amount: Size) -> Tensor:
    """Append `amount` steps of zeros to `x (b, t, ...)`."""
    if isinstance(amount, int) and amount == 0:
        return x
    return ops.concatenate([x, zeros_in_time(x, amount)], axis=1)


def pad_start(x: Tensor, amount: Size) -> Tensor:
    """Prepend `amount` steps of zeros to `x (b, t, ...)`."""
    if isinstance(amount, int) and amount == 0:
        return x
    return ops.concatenate([zeros_in_time(x, amount), x], axis=1)


def fit_length(x: Tensor, length: Size) -> Tensor:
    """Return the first `length` steps of `x (b, s, ...)`, with zeros appended if s is smaller."""
    s = ops.shape(x)[1]
    if isinstance(s, int) and isinstance(length, int):
        return x[:, :length] if s >= length else pad_end(x, length - s)
    return pad_end(x[:, :length], ops.maximum(length - s, 0))


def clip_index(index: Tensor, count: Size) -> Tensor:
    """Return the index, at least 0 and at most that of the last of `count` elements.

    TFLite's converter makes RELU6 of `ops.clip(index, 0, 6)`, which takes floats only.
    """
    return ops.minimum(ops.maximum(index, 0), count - 1)


def align_keys(k: Tensor, v: Tensor, mask: Tensor | None, t: Size, s: Size) -> tuple:
    """Return the first t of s keys, values and flags of the valid ones.

    Missing keys are zero and not valid.
    """
    known = isinstance(t, int) and isinstance(s, int)
    if t is s or (known and t == s):
        return k, v, mask
    if mask is None and not (known and t < s):
        mask = ops.expand_dims(ops.arange(s, dtype="int32") >= 0, 0)
    mask = None if mask is None else fit_length(mask, t)
    return fit_length(k, t), fit_length(v, t), mask


def pad_with_last(x: Tensor, amount: Size) -> Tensor:
    """Append `amount` copies of the last step to `x (b, t)`."""
    if isinstance(amount, int) and amount == 0:
        return x
    last = ops.broadcast_to(x[:, -1:], (ops.shape(x)[0], amount))
    return ops.concatenate([x, last], axis=1)


def ceil_sqrt(n: Size) -> Size:
    """Return the smallest integer whose square is at least `n`."""
    if isinstance(n, int):
        return math.isqrt(n - 1) + 1
    return ops.cast(ops.ceil(ops.sqrt(ops.cast(n, "float32"))), "int32")


def group_size(q: Tensor, k: Tensor) -> int:
    """Return the number of query heads per key head.

    Raises:
        ValueError: If the number of query heads is no multiple of the number of key heads.
    """
    heads, shared = q.shape[2], k.shape[2]
    if heads % shared:
        raise ValueError(
            "The number of query heads must be a multiple of the number of key heads. "
            f"Received: q with {heads} heads, k with {shared} heads"
        )
    return heads // shared


def groups_to_rows(q: Tensor, group: int) -> Tensor:
    """Make the heads of a group rows of one head: `(b, h * g, t, d) -> (b, h, g * t, d)`.

    Nothing is copied. This and the functions below need no fifth axis, which GPU delegates do not
    support.
    """
    if group == 1:
        return q
    h, d = q.shape[1] // group, q.shape[3]
    return ops.reshape(q, (ops.shape(q)[0], h, group * ops.shape(q)[2], d))


def rows_to_groups(x: Tensor, group: int) -> Tensor:
    """Return the inverse of `groups_to_rows`: `(b, h, g * t, d) -> (b, h * g, t, d)`."""
    if group == 1:
        return x
    h, d = x.shape[1], x.shape[3]
    return ops.reshape(x, (ops.shape(x)[0], h * group, ops.shape(x)[2] // group, d))


def tile_rows(x: Tensor, group: int, axis: int) -> Tensor:
    """Return `group` copies of x one after the other along `axis`, as `groups_to_rows`."""
    return x if group == 1 else ops.concatenate([x] * group, axis=axis)


def fold_groups(q: Tensor, group: int) -> Tensor:
    """Make the heads of a group rows of one head: `(b, t, h * group, d) -> (b, t * group, h, d)`.

    This and the functions below need no fifth axis, which GPU delegates do not support.
    """
    if group == 1:
        return q
    b, t = ops.shape(q)[:2]
    h, d = q.shape[2] // group, q.shape[3]
    q = ops.transpose(ops.reshape(q, (-1, h, group, d)), (0, 2, 1, 3))
    return ops.reshape(q, (b, t * group, h, d))


def unfold_groups(x: Tensor, group: int) -> Tensor:
    """Return the inverse of `fold_groups`: `(b, t * group, h, d) -> (b, t, h * group, d)`."""
    if group == 1:
        return x
    b, rows = ops.shape(x)[:2]
    h, d = x.shape[2:]
    x = ops.transpose(ops.reshape(x, (-1, group, h, d)), (0, 2, 1, 3))
    return ops.reshape(x, (b, rows // group, h * group, d))


def repeat_rows(x: Tensor, group: int, axis: int = 1) -> Tensor:
    """Repeat each step `group` times, as the rows of `fold_groups`."""
    return x if group == 1 else ops.repeat(x, group, axis=axis)


def repeat_heads(x: Tensor, group: int) -> Tensor:
    """Repeat each head `group` times: `(b, t, h, d) -> (b, t, h * group, d)`."""
    if group == 1:
        return x
    b, t, h, d = ops.shape(x)
    return ops.reshape(ops.concatenate([x] * group, axis=-1), (b, t, h * group, d))
