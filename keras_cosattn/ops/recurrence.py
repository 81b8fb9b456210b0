"""A loop over time, for states that are not sums: each step needs the state before it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from keras import ops

from keras_cosattn.ops import arrays
from keras_cosattn.ops.scan import block_scan

Tensor = Any


def states_before_and_after(
    step: Callable[[Any, Tensor], Tensor], inputs: dict[str, Tensor], state: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the state before each of n steps, `(b, n, ...)`, and after the last, `(b, ...)`.

    Args:
        step: function of one step, from its inputs, a dict of tensors `(b, ...)`, and the state to
            the next state.
        inputs: dict of tensors `(b, n, ...)`. A dynamic n can be 0.
        state: tensor `(b, ...)`, the state before the first step.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn.ops.recurrence import states_before_and_after
    >>> inputs, state = {"x": np.ones((2, 5, 3), "float32")}, np.zeros((2, 3), "float32")
    >>> def halve(inputs, state):
    ...     return 0.5 * state + inputs["x"]
    >>> before, after = states_before_and_after(halve, inputs, state)
    >>> tuple(before.shape), tuple(after.shape)
    ((2, 5, 3), (2, 3))
    """
    if next(iter(inputs.values())).shape[1] == 0:
        return arrays.zeros_in_time(ops.expand_dims(state, 1), 0), state

    def body(state, block):
        b = ops.shape(state)[0]
        inputs = {name: ops.reshape(x, (b, *shapes[name])) for name, x in block.items()}
        return step(inputs, state), ops.expand_dims(state, 1)

    # One step is a row here: tflite-micro slices 4 axes at most.
    shapes = {name: x.shape[2:] for name, x in inputs.items()}
    rows = {name: _rows(x) for name, x in inputs.items()}
    after, before = block_scan(body, state, rows, block_size=1)
    return before, after


def _rows(x):
    """`x (b, n, ...)` as `(b, n, width)`."""
    return ops.reshape(x, (*ops.shape(x)[:2], math.prod(x.shape[2:])))
