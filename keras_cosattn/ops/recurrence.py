"""A loop over time, for states that are not sums: each step needs the state before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_cosattn.ops import arrays

Tensor = Any


def states_before(
    step: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, state: Tensor
) -> Tensor:
    """Return the state before each of n steps, `(b, n, w)`.

    Args:
        step: Function of one step, from `inputs (b, m)` and `state (b, w)` to the next state.
        inputs: `(b, n, m)`.
        state: `(b, w)`, the state before the first step.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn.ops.recurrence import states_before
    >>> inputs, state = np.ones((2, 5, 3), "float32"), np.zeros((2, 3), "float32")
    >>> tuple(states_before(lambda x, state: 0.5 * state + x, inputs, state).shape)
    (2, 5, 3)
    """
    if inputs.shape[1] == 1:
        return ops.expand_dims(state, 1)
    # The one loop of Keras that has gradients in TensorFlow's functions compiled by XLA.
    loop = keras.layers.RNN(_Cell(step, state), return_sequences=True, dtype=state.dtype)
    return loop(inputs, initial_state=[state])


def states_before_and_after(
    step: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the state before each of n steps, `(b, n, w)`, and after the last, `(b, w)`.

    Arguments as in `states_before`. A dynamic n may be 0.
    """
    if inputs.shape[1] is not None:
        before = states_before(step, inputs, state)
        return before, step(inputs[:, -1], before[:, -1])
    before = states_before(step, arrays.pad_end(inputs, 1), state)
    return before[:, :-1], before[:, -1]


class _Cell(keras.layers.Layer):
    """One step of the loop, whose output is the state before it."""

    def __init__(self, step, state):
        super().__init__(dtype=state.dtype)
        self.step = step
        self.state_size = self.output_size = state.shape[1]

    def call(self, inputs, states, training=None):
        state = states[0]
        return state, [ops.reshape(self.step(inputs, state), ops.shape(state))]
