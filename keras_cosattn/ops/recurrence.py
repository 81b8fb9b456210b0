"""A loop over time, for what is no sum: each step needs the state before it."""

import keras
from keras import ops


def states_before(step, inputs, state):
    """The state before each of n steps, `(b, n, w)`.

    Args:
        step: function of one step, `inputs (b, m)` and `state (b, w)`, to the next state.
        inputs: `(b, n, m)`.
        state: `(b, w)`, before the first step.
    """
    if inputs.shape[1] == 1:
        return ops.expand_dims(state, 1)
    # The one loop of Keras that has gradients in TensorFlow's functions compiled by XLA.
    loop = keras.layers.RNN(_Cell(step, state), return_sequences=True, dtype=state.dtype)
    return loop(inputs, initial_state=[state])


class _Cell(keras.layers.Layer):
    """A step that gives the state it found."""

    def __init__(self, step, state):
        super().__init__(dtype=state.dtype)
        self.step = step
        self.state_size = self.output_size = state.shape[1]

    def call(self, inputs, states, training=None):
        found = states[0]
        return found, [ops.reshape(self.step(inputs, found), ops.shape(found))]
