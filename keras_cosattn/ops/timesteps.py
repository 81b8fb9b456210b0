"""Masks kept in factors: padding `(b, t)`, segments `(b, t)`, causality by position.

True means takes part. A masked step does not exist: positions count the real steps only, so a
padded sequence has the positions, and the outputs, of the same sequence without its padding.
"""

from keras import ops


def combine(first, second):
    """`first and second`, where None stands for all True."""
    if first is None or second is None:
        return first if second is None else second
    return ops.logical_and(first, second)


def segment_numbers(segment_ids):
    """`(b, t)` ids to numbers 0, 1, ... along t: a segment is one run of equal ids."""
    if segment_ids is None:
        return None
    starts = ops.cast(_differs_from_last(segment_ids), "int32")
    return ops.cumsum(starts, axis=1)


def _differs_from_last(ids):
    """`(b, t)`: where a step's id differs from the id before it; False at the first step."""
    differs = ops.not_equal(ids[:, 1:], ids[:, :-1])
    return ops.concatenate([ops.zeros_like(ids[:, :1], dtype="bool"), differs], axis=1)


def count_valid(length, mask=None, segments=None, start=None):
    """How many real steps of its segment there are up to and including each step, int32 `(b, t)`.

    `(1, t)` if no example differs. `start (b,)` is the count with which the first segment goes
    on. O(t log t) with segments, else O(t).
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


def positions(length, mask=None, segments=None, start=None):
    """The position of each real step in its segment, from 0; arguments and shapes as `counts`.

    A masked step takes the position of the real step before it.
    """
    return ops.maximum(count_valid(length, mask, segments, start) - 1, 0)


def _before_segment(count, mask, segments):
    """How many real steps lie before each step's segment, `(b, t)`."""
    new = _differs_from_last(segments)
    before = count - (1 if mask is None else ops.cast(mask, "int32")) + ops.zeros_like(segments)
    # Counts never fall, so sorted they stand in the order of their segments.
    firsts = ops.sort(ops.where(new, before, ops.shape(segments)[1]), axis=1)
    firsts = ops.concatenate([ops.zeros_like(firsts[:, :1]), firsts[:, :-1]], axis=1)
    return ops.take_along_axis(firsts, segments, axis=1)


def valid_first(mask):
    """The order of steps that puts the valid ones first, and its inverse, int32 `(b, t)` both."""
    valid = ops.cast(mask, "int32")
    before = ops.cumsum(valid, axis=1) - valid
    count = ops.sum(valid, axis=1, keepdims=True)
    index = ops.arange(ops.shape(mask)[1], dtype="int32")
    inverse = ops.where(mask, before, count + index - before)
    return ops.argsort(inverse, axis=1), inverse


def stable_argsort(numbers):
    """The order that sorts integers `(b, t)` along t. Equal numbers keep their order.

    Every backend's `argsort` is stable for integers, and so is TFLite's TOPK_V2. A key that holds
    the number and the step would overflow int32.
    """
    return ops.argsort(numbers, axis=1)


def last_valid(x, mask, length):
    """The last `length` of steps `x (b, n + t, ...)`: n that count, then those real in `mask`.

    `mask (b, t)` has its real steps first; None is all of them.
    """
    if mask is None:
        return x[:, ops.shape(x)[1] - length :]
    n = ops.shape(x)[1] - ops.shape(mask)[1]
    real = ops.sum(ops.cast(mask, "int32"), axis=1, keepdims=True)
    return take_steps(x, n - length + real + ops.arange(length, dtype="int32"))


def take_steps(x, order):
    """`x (b, t, ...)` at the steps `order (b or 1, n)`: `(b, n, ...)`."""
    b, t = ops.shape(x)[:2]
    first = ops.expand_dims(ops.arange(b, dtype="int32") * t, 1)
    taken = ops.take(ops.reshape(x, (b * t, *x.shape[2:])), first + order, axis=0)
    if 0 in x.shape[:2]:  # from an empty tensor, JAX takes a tensor without the axes of the order
        taken = ops.reshape(taken, (b, ops.shape(order)[1], *x.shape[2:]))
    return taken


def advance(start, length, mask=None):
    """The count `start (b,)` after `length` more steps, of which those in `mask (b, t)` count."""
    if mask is None:
        return start + ops.cast(length, "int32")
    return start + ops.sum(ops.cast(mask, "int32"), axis=1)


LARGEST_COUNT = 2**30
"""Counters of a stream stay near this number, so that int32 never overflows."""


def wrap(count, unit):
    """`count (b,)`, held within `unit` steps of 2^30 at the same place in its unit.

    Below 2^30 nothing changes. A counter that is only used inside a unit is right for ever.
    """
    last = LARGEST_COUNT // unit * unit
    return ops.where(count < last, count, last + ops.mod(count - last, unit))


def pair_mask(
    t, s, *, query_mask=None, key_mask=None, segments=None, causal=False, attention_mask=None
):
    """All factors multiplied out: which key each query may see, bool `(b, 1, t, s)`.

    None if every key may be seen. This is the O(t s) tensor that linear attention never makes.
    `attention_mask` is `(s)`, `(t, s)`, `(b, t, s)` or `(b, h, t, s)`, each axis possibly 1.
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
    return ops.expand_dims(ops.expand_dims(x, 1), 3)


def _as_columns(x):
    """`(b, s) -> (b, 1, 1, s)`."""
    return ops.expand_dims(ops.expand_dims(x, 1), 1)


def window_mask(query_positions, key_positions, window):
    """Which keys are less than `window` steps from each query, bool `(b or 1, 1, t, s)`."""
    return ops.abs(_as_rows(query_positions) - _as_columns(key_positions)) < window
