"""Units of steps, and how things pass between steps and their units.

Shapes: n steps in U units of at most c steps each.
"""

from typing import NamedTuple

from keras import ops

from keras_cosattn.ops import arrays, timesteps
from keras_cosattn.ops.windows import window_attention, window_length


class Units(NamedTuple):
    """Which steps stand in which unit. Real steps come first, and so do units with real steps."""

    size: int  # c
    count: object  # U
    real: object  # (b * U, c) bool: which places of the units are taken
    of: object = None  # (b, n): the unit of each step; None: unit j has the steps from j c on
    steps: object = None  # (b, U c): the step at each place, if there is `of`


def fixed_units(real, size):
    """Units of exactly c steps, but for the last; `real (b, n)`."""
    count = -(-ops.shape(real)[1] // size)
    return Units(size, count, _split(real, count, size))


def given_units(real, numbers, size, capacity):
    """The runs of equal `numbers (b, n)`, cut after c steps each; at most `capacity` of them."""
    n = ops.shape(real)[1]
    step = ops.expand_dims(ops.arange(n, dtype="int32"), 0)
    opens = ops.logical_and(real, timesteps.positions(n, None, numbers) % size == 0)
    of = ops.cumsum(ops.cast(opens, "int32"), axis=1) - 1
    first = ops.sort(ops.where(opens, step, n), axis=1)
    first = arrays.fit_length(first - n, capacity) + n  # where there are fewer: past the end
    steps = ops.expand_dims(first, 2) + ops.arange(size, dtype="int32")
    steps = ops.reshape(steps, (-1, capacity * size))
    rank = ops.repeat(ops.arange(capacity, dtype="int32"), size)
    taken = timesteps.take_steps(arrays.fit_length(of + 1, n + size), steps) == rank + 1
    taken = ops.logical_and(taken, timesteps.take_steps(arrays.fit_length(real, n + size), steps))
    return Units(size, capacity, ops.reshape(taken, (-1, size)), of, steps)


def places(x, units):
    """`x (b, n, ...)` as it stands in the units, `(b * U, c, ...)`; zero where nothing stands."""
    if units.of is None:
        return _split(x, units.count, units.size)
    x = arrays.fit_length(x, ops.shape(x)[1] + units.size)
    x = ops.reshape(timesteps.take_steps(x, units.steps), (-1, units.size, *x.shape[2:]))
    return arrays.zero_masked(x, units.real)


def taken(units):
    """Which units have a step at all, `(b, U)`."""
    return ops.reshape(ops.any(units.real, axis=1), (-1, units.count))


def of_units(numbers, units):
    """The number of each unit's first step, as runs along the units, `(b, U)`."""
    return timesteps.segment_numbers(ops.reshape(places(numbers, units)[:, 0], (-1, units.count)))


def attend_inside(q, k, v, units, *, causal, mask, dropout=None):
    """Softmax attention of each step to the steps of its unit, `(b, n, h, e)`."""
    mixed, _ = window_attention(
        q, k, v, size=units.size, causal=causal, mask=mask, segments=units.of, dropout=dropout
    )
    return mixed


def spread(y, n, units, *, last_finished, segments=None):
    """What each of n steps gets of `y (b, U, h, e)`: its unit's, or that of the unit before it.

    With `segments (b, U)`, a unit has none before it in another segment.
    """
    if last_finished:
        y = ops.concatenate([ops.zeros_like(y[:, :1]), y[:, :-1]], axis=1)
        if segments is not None:
            before = ops.concatenate([segments[:, :1], segments[:, :-1]], axis=1)
            y = arrays.zero_masked(y, segments == before)
    if units.of is None:
        return ops.repeat(y, units.size, axis=1)[:, :n]
    return timesteps.take_steps(y, ops.clip(units.of, 0, units.count - 1))


def finished_units(x, real, window, position, size):
    """The units of c steps that end in a piece `x (b, t, m)` of a stream.

    Args:
        real: `(b, t)`, the real steps, which come first.
        window: `(b, window_length(c, 0), m)`, the last steps before; None if c is 1.
        position: `(b,)`, how many real steps there were before.

    Returns their steps `(b * U, c, m)`, with U = ceil(t / c), zero for those that do not end here;
    them as `Units`; and the new window.
    """
    t, length = ops.shape(x)[1], window_length(size, 0)
    if length:
        x = ops.concatenate([ops.cast(window, x.dtype), x], axis=1)
    count = (t + size - 1) // size
    known = ops.expand_dims(position // size, 1)
    end = (known + ops.arange(1, count + 1, dtype="int32")) * size
    finished = ops.repeat(end <= ops.expand_dims(_after(position, real), 1), size, axis=1)
    first = length + known * size - ops.expand_dims(position, 1)
    steps = ops.minimum(first + ops.arange(count * size, dtype="int32"), length + t - 1)
    parts = arrays.zero_masked(timesteps.take_steps(x, steps), finished)
    units = Units(size, count, ops.reshape(finished, (-1, size)))
    parts = ops.reshape(parts, (-1, size, x.shape[2]))
    return parts, units, timesteps.last_valid(x, real, length)


def spread_in_stream(y, last, real, position, size):
    """What each step of a piece gets: that of the last unit that ended before the step's own.

    Args:
        y: `(b, U, h, e)`, of the units that end in this piece.
        last: `(b, h, e)`, of the last one that ended before.
        real, position: as `finished_units`.

    Returns `(b, t, h, e)`, and what is `last` after this piece.
    """
    y = ops.concatenate([ops.expand_dims(last, 1), y], axis=1)
    step = ops.expand_dims(position, 1) + ops.arange(ops.shape(real)[1], dtype="int32")
    known = ops.expand_dims(position // size, 1)
    after = ops.expand_dims(_after(position, real) // size, 1) - known
    return timesteps.take_steps(y, step // size - known), timesteps.take_steps(y, after)[:, 0]


def _after(position, real):
    """How many real steps there are after a piece, `(b,)`."""
    return position + ops.sum(ops.cast(real, "int32"), axis=1)


def _split(x, count, size):
    return ops.reshape(arrays.fit_length(x, count * size), (-1, size, *x.shape[2:]))
