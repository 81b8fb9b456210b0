"""Steps of masked and packed sequences: their positions, their order, and masks of pairs.

Masks are kept in factors: valid steps `(b, t)`, segments `(b, t)`, and causality by positions. True
means valid. Masked steps do not exist: positions count valid steps only, so a padded sequence has
the positions, and the outputs, of the same sequence without padding.
"""

from __future__ import annotations

from typing import Any

from keras import ops

Tensor = Any
Size = Any  # an int, or an integer tensor in a graph with dynamic shapes

LARGEST_COUNT = 2**30
"""Counters of a stream stay near this number, so that int32 never overflows."""


def combine(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Return `first and second`. None stands for True everywhere."""
    if first is None or second is None:
        return first if second is None else second
    return ops.logical_and(first, second)


def queries_take_mask_of_keys(
    query_mask: Tensor | None, key_mask: Tensor | None, causal: bool
) -> bool:
    """Whether the mask of the keys is also that of the queries: a causal call gives no other."""
    return causal and query_mask is None and key_mask is not None


def segment_numbers(segment_ids: Tensor | None) -> Tensor | None:
    """Number the segments 0, 1, ... along t, int32 `(b, t)`.

    A segment is one run of equal ids.
    """
    if segment_ids is None:
        return None
    starts = ops.cast(_differs_from_last(segment_ids), "int32")
    return ops.cumsum(starts, axis=1)


def _differs_from_last(ids):
    """Return where an id `(b, t)` differs from the one before it. It is False at the first step."""
    differs = ops.not_equal(ids[:, 1:], ids[:, :-1])
    return ops.concatenate([ops.zeros_like(ids[:, :1], dtype="bool"), differs], axis=1)


def count_valid(
    length: Size,
    mask: Tensor | None = None,
    segments: Tensor | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Count the valid steps of each step's segment up to and including that step.

    This takes O(t log t) time with segments, and O(t) without.

    Args:
        length: int or tensor, t.
        mask: bool tensor `(b, t)`, the valid steps. None means that all are valid.
        segments: int32 tensor `(b, t)`, of `segment_numbers`. None means one segment.
        start: int32 tensor `(b,)`, the number of earlier steps of the first segment.

    Returns:
        int32 tensor `(b, t)`, or `(1, t)` if all examples have the same counts.
    """
    if mask is None:
        count = ops.expand_dims(ops.arange(1, length + 1, dtype="int32"), 0)
    else:
        count = ops.cumsum(ops.cast(mask, "int32"), axis=1)
    if segments is not None:
        count = count - _before_segment(count, mask, segments)
    if start is not None:
        start = ops.expand_dims(start, 1)
        count = count + (start if segments is None else ops.where(segments == 0, start, 0))
    return count


def positions(
    length: Size,
    mask: Tensor | None = None,
    segments: Tensor | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Return the position of each valid step in its segment, from 0.

    A masked step has the position of the valid step before it. Arguments and shapes are those of
    `count_valid`.
    """
    return ops.maximum(count_valid(length, mask, segments, start) - 1, 0)


def _before_segment(count, mask, segments):
    """Return how many valid steps there are before each step's segment, `(b, t)`."""
    new = _differs_from_last(segments)
    before = count - (1 if mask is None else ops.cast(mask, "int32")) + ops.zeros_like(segments)
    # Counts never fall, so sorting them puts them into the order of their segments.
    firsts = ops.sort(ops.where(new, before, ops.shape(segments)[1]), axis=1)
    firsts = ops.concatenate([ops.zeros_like(firsts[:, :1]), firsts[:, :-1]], axis=1)
    return ops.take_along_axis(firsts, segments, axis=1)


def valid_first(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the order that puts valid steps first, and its inverse, int32 `(b, t)` both."""
    valid = ops.cast(mask, "int32")
    before = ops.cumsum(valid, axis=1) - valid
    count = ops.sum(valid, axis=1, keepdims=True)
    index = ops.arange(ops.shape(mask)[1], dtype="int32")
    inverse = ops.where(mask, before, count + index - before)
    return ops.argsort(inverse, axis=1), inverse


def stable_argsort(numbers: Tensor) -> Tensor:
    """Return the order that sorts integers `(b, t)` along t. Equal numbers keep their order.

    Every backend's `argsort` is stable for integers, and so is TFLite's TOPK_V2. A key that holds
    the number and the step would overflow int32.
    """
    return ops.argsort(numbers, axis=1)


def last_valid(x: Tensor, mask: Tensor | None, length: int) -> Tensor:
    """Return the last `length` valid steps of `x (b, n + t, ...)`.

    The first n steps are all valid. `mask (b, t)` has the valid ones of the other t, which come
    first among them. None means that all are valid.
    """
    if mask is None:
        return x[:, ops.shape(x)[1] - length :]
    n = ops.shape(x)[1] - ops.shape(mask)[1]
    valid = ops.sum(ops.cast(mask, "int32"), axis=1, keepdims=True)
    return take_steps(x, n - length + valid + ops.arange(length, dtype="int32"))


def take_steps(x: Tensor, order: Tensor) -> Tensor:
    """Return the steps `order (b or 1, n)` of `x (b, t, ...)`, a tensor `(b, n, ...)`."""
    b, t = ops.shape(x)[:2]
    first = ops.expand_dims(ops.arange(b, dtype="int32") * t, 1)
    taken = ops.take(ops.reshape(x, (b * t, *x.shape[2:])), first + order, axis=0)
    if 0 in x.shape[:2]:  # from an empty tensor, JAX takes a tensor without the axes of the order
        taken = ops.reshape(taken, (b, ops.shape(order)[1], *x.shape[2:]))
    return taken


def advance(start: Tensor, length: Size, mask: Tensor | None = None) -> Tensor:
    """Return the count `start (b,)` after `length` more steps. `mask (b, t)` has the valid ones."""
    if mask is None:
        return start + ops.cast(length, "int32")
    return start + ops.sum(ops.cast(mask, "int32"), axis=1)


def wrap(count: Tensor, unit: int) -> Tensor:
    """Return `count (b,)`, reduced by whole units so that it stays near 2^30.

    Counts below 2^30 do not change. A counter that is only used inside a unit is right for ever.
    """
    last = LARGEST_COUNT // unit * unit
    return ops.where(count < last, count, last + ops.mod(count - last, unit))


def pair_mask(
    t: Size,
    s: Size,
    *,
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    segments: Tensor | None = None,
    causal: bool = False,
    attention_mask: Tensor | None = None,
) -> Tensor | None:
    """Return the product of all factors: the keys to which each query may attend.

    This is the O(t s) tensor that linear attention never makes.

    Args:
        t, s: int or tensor, the numbers of queries and keys.
        query_mask, key_mask: bool tensors `(b, t)` and `(b, s)`, the valid steps.
        segments: int32 tensor `(b, t)`, t = s, of `segment_numbers`.
        causal: bool. If True, a query attends to keys of its own and earlier positions only.
        attention_mask: tensor `(s)`, `(t, s)`, `(b, t, s)` or `(b, h, t, s)`. Each axis may be 1.

    Returns:
        bool tensor that broadcasts to `(b, h, t, s)`, or None if all pairs are allowed.
    """
    mask = None if query_mask is None else _as_rows(query_mask)
    if key_mask is not None:
        mask = combine(mask, _as_columns(key_mask))
    if segments is not None:
        mask = combine(mask, ops.equal(_as_rows(segments), _as_columns(segments)))
    if causal:
        past = _as_rows(positions(t, query_mask)) >= _as_columns(positions(s, key_mask))
        mask = combine(mask, past)
    if attention_mask is not None:
        attention_mask = ops.cast(attention_mask, "bool")
        if len(attention_mask.shape) == 3:
            attention_mask = ops.expand_dims(attention_mask, 1)
        mask = combine(mask, attention_mask)
    return mask


def _as_rows(x):
    """`(b, t) -> (b, 1, t, 1)`."""
    return ops.expand_dims(x, (1, 3))


def _as_columns(x):
    """`(b, s) -> (b, 1, 1, s)`."""
    return ops.expand_dims(x, (1, 2))


def window_mask(query_positions: Tensor, key_positions: Tensor, window: int) -> Tensor:
    """Which keys are less than `window` steps from each query, bool `(b or 1, 1, t, s)`."""
    return ops.abs(_as_rows(query_positions) - _as_columns(key_positions)) < window
