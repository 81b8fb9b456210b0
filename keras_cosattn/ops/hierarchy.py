"""Units of steps, and how things pass between steps and their units.

Shapes: n steps in U units of at most c steps each.
"""

from typing import NamedTuple

from keras import ops

from keras_cosattn.ops import arrays, masks
from keras_cosattn.ops.blocks import window_attention


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
    opens = ops.logical_and(real, masks.positions(n, None, numbers) % size == 0)
    of = ops.cumsum(ops.cast(opens, "int32"), axis=1) - 1
    first = ops.sort(ops.where(opens, step, n), axis=1)
    first = arrays.fit_length(first - n, capacity) + n  # where there are fewer: past the end
    steps = ops.expand_dims(first, 2) + ops.arange(size, dtype="int32")
    steps = ops.reshape(steps, (-1, capacity * size))
    rank = ops.repeat(ops.arange(capacity, dtype="int32"), size)
    taken = masks.take_steps(arrays.fit_length(of + 1, n + size), steps) == rank + 1
    taken = ops.logical_and(taken, masks.take_steps(arrays.fit_length(real, n + size), steps))
    return Units(size, capacity, ops.reshape(taken, (-1, size)), of, steps)


def places(x, units):
    """`x (b, n, ...)` as it stands in the units, `(b * U, c, ...)`; zero where nothing stands."""
    if units.of is None:
        return _split(x, units.count, units.size)
    x = arrays.fit_length(x, ops.shape(x)[1] + units.size)
    x = ops.reshape(masks.take_steps(x, units.steps), (-1, units.size, *x.shape[2:]))
    return arrays.zero_masked(x, units.real)


def attend_inside(q, k, v, units, *, causal, mask, dropout=None):
    """Softmax attention of each step to the steps of its unit, `(b, n, h, e)`."""
    mixed, _ = window_attention(
        q, k, v, size=units.size, causal=causal, mask=mask, segments=units.of, dropout=dropout
    )
    return mixed


def spread(y, n, units, *, last_finished):
    """What each of n steps gets of `y (b, U, h, e)`: its unit's, or that of the unit before it."""
    if last_finished:
        y = ops.concatenate([ops.zeros_like(y[:, :1]), y[:, :-1]], axis=1)
    if units.of is None:
        return ops.repeat(y, units.size, axis=1)[:, :n]
    return masks.take_steps(y, ops.clip(units.of, 0, units.count - 1))


def _split(x, count, size):
    return ops.reshape(arrays.fit_length(x, count * size), (-1, size, *x.shape[2:]))
