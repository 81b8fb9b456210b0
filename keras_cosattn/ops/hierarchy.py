"""Units of steps, and how tensors pass between steps and their units.

Shapes: n steps in U units of at most c steps each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from keras import ops

from keras_cosattn.ops import arrays, timesteps
from keras_cosattn.ops.windows import window_attention, window_length

Tensor = Any


class Units(NamedTuple):
    """The unit of each step. Valid steps come first, and so do units with valid steps."""

    size: int
    """c."""
    batch: Any
    """b."""
    count: Any
    """U."""
    valid: Tensor
    """`(b * U, c)` bool: the places of the units that hold a valid step."""
    of: Tensor | None = None
    """`(b, n)`: the unit of each step. `None`: unit j has the steps from j c on."""
    steps: Tensor | None = None
    """`(b, U c)`: the step at each place. `None` if `of` is."""


def fixed_units(valid: Tensor, size: int) -> Units:
    """Return units of exactly c steps, but for the last. `valid (b, n)` has the valid steps."""
    count = -(-ops.shape(valid)[1] // size)
    return Units(size, ops.shape(valid)[0], count, _split(valid, count, size))


def given_units(valid: Tensor, numbers: Tensor, size: int, capacity: int | Tensor) -> Units:
    """Return the runs of equal `numbers (b, n)`, cut after c steps each, at most `capacity`."""
    n = ops.shape(valid)[1]
    step = ops.expand_dims(ops.arange(n, dtype="int32"), 0)
    begins = ops.logical_and(valid, timesteps.positions(n, None, numbers) % size == 0)
    of = ops.cumsum(ops.cast(begins, "int32"), axis=1) - 1
    first = ops.sort(ops.where(begins, step, n), axis=1)
    first = arrays.fit_length(first - n, capacity) + n  # n, past the end, for a missing unit
    steps = ops.expand_dims(first, 2) + ops.arange(size, dtype="int32")
    steps = ops.reshape(steps, (-1, capacity * size))
    rank = ops.repeat(ops.arange(capacity, dtype="int32"), size)
    held = timesteps.take_steps(arrays.fit_length(of + 1, n + size), steps)
    held = ops.equal(held, rank + 1)
    held = ops.logical_and(held, timesteps.take_steps(arrays.fit_length(valid, n + size), steps))
    held = ops.reshape(held, (-1, size))
    return Units(size, ops.shape(valid)[0], capacity, held, of, steps)


def gather_units(x: Tensor, units: Units) -> Tensor:
    """Return `x (b, n, ...)` by units, `(b * U, c, ...)`. Places without a valid step are zero.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn.ops import hierarchy
    >>> units = hierarchy.fixed_units(np.ones((2, 10), "bool"), size=4)
    >>> tuple(hierarchy.gather_units(np.ones((2, 10, 3), "float32"), units).shape)
    (6, 4, 3)
    """
    if units.of is None:
        return _split(x, units.count, units.size)
    x = arrays.fit_length(x, ops.shape(x)[1] + units.size)
    x = ops.reshape(timesteps.take_steps(x, units.steps), (-1, units.size, *x.shape[2:]))
    return arrays.zero_masked(x, units.valid)


def by_example(x: Tensor, units: Units) -> Tensor:
    """Return `x (b * U, ...)` as `(b, U, ...)`."""
    # There may be no unit where their number is dynamic: then -1 would have no meaning.
    batch = -1 if isinstance(units.count, int) else units.batch
    return ops.reshape(x, (batch, units.count, *x.shape[1:]))


def not_empty(units: Units) -> Tensor:
    """Return the bool `(b, U)`, True for units with a valid step."""
    return by_example(ops.any(units.valid, axis=1), units)


def segments_of_units(segments: Tensor, units: Units) -> Tensor:
    """Return segment numbers of units, `(b, U)`, from those of their first steps."""
    return timesteps.segment_numbers(by_example(gather_units(segments, units)[:, 0], units))


def attend_inside(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    units: Units,
    *,
    causal: bool,
    mask: Tensor | None,
    dropout: Callable | None = None,
) -> Tensor:
    """Softmax attention of each step to the steps of its unit, `(b, n, h, e)`."""
    mixed, _ = window_attention(
        q, k, v, size=units.size, causal=causal, mask=mask, segments=units.of, dropout=dropout
    )
    return mixed


def spread(
    y: Tensor,
    n: int | Tensor,
    units: Units,
    *,
    last_finished: bool,
    segments: Tensor | None = None,
) -> Tensor:
    """Give each of n steps the result of its unit in `y (b, U, h, e)`: `(b, n, h, e)`.

    With `last_finished` it is the result of the unit before, and zero if there is none. With
    `segments (b, U)` it is zero, too, if the unit before is of another segment.
    """
    if last_finished:
        y = ops.concatenate([ops.zeros_like(y[:, :1]), y[:, :-1]], axis=1)
        if segments is not None:
            before = ops.concatenate([segments[:, :1], segments[:, :-1]], axis=1)
            y = arrays.zero_masked(y, ops.equal(segments, before))
    if units.of is None:
        return ops.repeat(y, units.size, axis=1)[:, :n]
    return timesteps.take_steps(y, arrays.clip_index(units.of, units.count))


def finished_units(
    x: Tensor, valid: Tensor, window: Tensor | None, position: Tensor, size: int
) -> tuple[Tensor, Units, Tensor]:
    """Return the units of c steps that end in one call `x (b, t, m)` of a stream.

    Args:
        x: `(b, t, m)`, the steps of the call.
        valid: `(b, t)`, the valid steps, which come first.
        window: `(b, window_length(c, 0), m)`, the last steps before. `None` if c is 1.
        position: `(b,)`, the number of valid steps before.
        size: c.

    Returns:
        The units' steps `(b * U, c, m)` with U = ceil(t / c), zero for units that do not end in
        this call; the `Units`; and the new window.
    """
    t, length = ops.shape(x)[1], window_length(size, 0)
    if length:
        x = ops.concatenate([ops.cast(window, x.dtype), x], axis=1)
    count = (t + size - 1) // size
    finished_before = ops.expand_dims(position // size, 1)
    end = (finished_before + ops.arange(1, count + 1, dtype="int32")) * size
    steps_after = ops.expand_dims(timesteps.advance(position, t, valid), 1)
    finished = ops.repeat(end <= steps_after, size, axis=1)
    first = length + finished_before * size - ops.expand_dims(position, 1)
    steps = ops.minimum(first + ops.arange(count * size, dtype="int32"), length + t - 1)
    parts = arrays.zero_masked(timesteps.take_steps(x, steps), finished)
    units = Units(size, ops.shape(valid)[0], count, ops.reshape(finished, (-1, size)))
    parts = ops.reshape(parts, (-1, size, x.shape[2]))
    return parts, units, timesteps.last_valid(x, valid, length)


def spread_in_stream(
    y: Tensor, last: Tensor, valid: Tensor, position: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Give each step the result of the last unit that was finished before the step's own unit.

    Args:
        y: `(b, U, h, e)`, the results of the units that end in this call.
        last: `(b, h, e)`, the result of the last unit that ended before the call.
        valid: `(b, t)`, the valid steps, which come first.
        position: `(b,)`, the number of valid steps before.
        size: c.

    Returns:
        `(b, t, h, e)`, and `last` for the next call.
    """
    y = ops.concatenate([ops.expand_dims(last, 1), y], axis=1)
    t = ops.shape(valid)[1]
    step = ops.expand_dims(position, 1) + ops.arange(t, dtype="int32")
    finished_before = ops.expand_dims(position // size, 1)
    steps_after = ops.expand_dims(timesteps.advance(position, t, valid), 1)
    finished_here = steps_after // size - finished_before
    of_steps = timesteps.take_steps(y, step // size - finished_before)
    return of_steps, timesteps.take_steps(y, finished_here)[:, 0]


def _split(x, count, size):
    return ops.reshape(arrays.fit_length(x, count * size), (-1, size, *x.shape[2:]))
