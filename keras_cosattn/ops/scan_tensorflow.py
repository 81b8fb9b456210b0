"""The loop of `block_scan` on TensorFlow: a while loop with a gradient of its own.

`keras.ops.scan` has no gradient under XLA, and the gradient of `tf.while_loop` keeps every tensor
of every block. Here the forward loop keeps the state before each block. The backward loop goes
through the blocks in reverse order, computes each one again on a tape, and asks the tape for the
gradients of that block.

Shapes: n blocks of `size` steps, and a last block of what remains.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_cosattn.ops import tensor_lists

Tensor = Any
Leaves = list[Any]  # the tensors of a nest, in the order of `keras.tree.flatten`


def scan(body: Any, state: Any, xs: Any, constants: Any, size: int) -> tuple[Any, Any]:
    """See `block_scan`."""
    import tensorflow as tf

    if tf.executing_eagerly():
        return _eager_scan(body, state, xs, constants, size)
    return _Scan(body, state, xs, constants, size)()


def _eager_scan(body, state, xs, constants, size):
    import tensorflow as tf

    outputs = []
    for start in range(0, keras.tree.flatten(xs)[0].shape[1], size):
        block = keras.tree.map_structure(lambda x, a=start: x[:, a : a + size], xs)
        state, y = body(state, block, constants)
        outputs.append(y)
    return state, keras.tree.map_structure(lambda *y: tf.concat(y, axis=1), *outputs)


class _Scan:
    """One scan in a graph. The nests are handled as lists of their tensors."""

    def __init__(self, body, state, xs, constants, size):
        import tensorflow as tf

        self.body, self.size = body, size
        self.nests = state, xs, constants
        self.leaves = [keras.tree.flatten(nest) for nest in self.nests]
        first = self.leaves[1][0]
        self.length = tf.shape(first)[1] if first.shape[1] is None else first.shape[1]
        known = isinstance(self.length, int)
        self.has_rest = size > 1 and not (known and self.length % size == 0)
        # If the length is not known, one step at least remains: XNNPACK takes no empty tensors.
        in_blocks = self.length if known or size == 1 else tf.maximum(self.length - 1, 0)
        self.count = in_blocks // size
        self.y, self.y_specs = self._learn_outputs()

    def __call__(self):
        import tensorflow as tf

        state, xs, constants = self.leaves
        sizes = len(state), len(xs), len(constants)

        @tf.custom_gradient
        def run(*tensors):
            leaves = _split(tensors, sizes)
            after, ys, states = self._forward(*leaves)

            def gradient(*upstream, variables=None):
                d_after, d_ys = _split(upstream, (len(state), len(ys)))
                grads, variable_grads = self._backward(
                    leaves, states, d_after, d_ys, list(variables or ())
                )
                return grads if variables is None else (grads, variable_grads)

            return [*after, *ys], gradient

        outputs = run(*state, *xs, *constants)
        after, ys = _split(outputs, (len(state), len(self.y_specs)))
        for new, old in zip(after, state, strict=True):
            new.set_shape(old.shape)
        after = keras.tree.pack_sequence_as(self.nests[0], after)
        return after, keras.tree.pack_sequence_as(self.y, ys)

    def _run_body(self, *leaves):
        nests = (
            keras.tree.pack_sequence_as(nest, list(of_nest))
            for nest, of_nest in zip(self.nests, leaves, strict=True)
        )
        state, y = self.body(*nests)
        return keras.tree.flatten(state), keras.tree.flatten(y), y

    def _learn_outputs(self):
        """Return the nest of the outputs of a block, and the specs of its tensors."""
        import tensorflow as tf

        @tf.function(autograph=False)
        def trace(state, xs, constants):
            return self._run_body(state, xs, constants)[2]

        state, xs, constants = ([tf.TensorSpec(x.shape, x.dtype) for x in x] for x in self.leaves)
        xs = [tf.TensorSpec([x.shape[0], self.size, *x.shape[2:]], x.dtype) for x in xs]
        y = trace.get_concrete_function(state, xs, constants).structured_outputs
        return y, [tf.TensorSpec(x.shape, x.dtype) for x in keras.tree.flatten(y)]

    def _forward(self, state, xs, constants):
        """Return the state after all steps, the outputs, and the states before each block.

        The last of these is the state before what remains.
        """
        import tensorflow as tf

        whole = [self._at_least_a_block(x) for x in xs]

        def step(i, state, ys, states):
            states = tensor_lists.write(states, i, state)
            block = [self._block(x, i) for x in whole]
            state, y, _ = self._run_body(state, block, constants)
            return i + 1, state, tensor_lists.write(ys, i, y), states

        y_specs = [(self._shape(x), x.dtype) for x in self.y_specs]
        ys = [tensor_lists.reserve(self.count, *y) for y in y_specs]
        of_states = [(tensor_lists.known_shape(x), x.dtype) for x in state]
        states = [tensor_lists.reserve(self.count + 1, *x) for x in of_states]
        _, state, ys, states = tf.while_loop(
            lambda i, *_: i < self.count,
            step,
            (0, state, ys, states),
            maximum_iterations=self.count,
        )
        states = tensor_lists.write(states, self.count, state)
        states = [tensor_lists.stack(x, *of) for x, of in zip(states, of_states, strict=True)]
        ys = [self._join(y, *of) for y, of in zip(ys, y_specs, strict=True)]
        if self.has_rest:
            state, last, _ = self._run_body(state, [self._rest(x) for x in xs], constants)
            ys = [tf.concat([y, x], axis=1) for y, x in zip(ys, last, strict=True)]
        return state, ys, states

    def _backward(self, leaves, states, d_state, d_ys, variables):
        """Return the gradients of all leaves, and those of the variables."""
        import tensorflow as tf

        state, xs, constants = leaves
        constants = [tf.identity(x) for x in constants]  # one tensor can be there twice
        floats = [[x.dtype.is_floating for x in leaves] for leaves in (state, xs, constants)]
        y_floats = [x.dtype.is_floating for x in self.y_specs]

        def gradients(state, block, d_state, d_y):
            """Return the gradients of one block: of its state, its steps, and what is shared."""
            sources = [
                _where(flags, x) for flags, x in zip(floats, (state, block, constants), strict=True)
            ]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([*sources, variables])
                after, y, _ = self._run_body(state, block, constants)
            return tape.gradient(
                [*_where(floats[0], after), *_where(y_floats, y)],
                (sources[0], sources[1], [*sources[2], *variables]),
                [*d_state, *d_y],
                unconnected_gradients="zero",
            )

        d_state, d_ys = _where(floats[0], d_state), _where(y_floats, d_ys)
        shared = [tf.zeros_like(x) for x in (*_where(floats[2], constants), *variables)]
        whole = [[self._at_least_a_block(x) for x in of_nest] for of_nest in (xs, d_ys)]
        d_rest = None
        if self.has_rest:
            rest = [[self._rest(x) for x in of_nest] for of_nest in (xs, d_ys)]
            d_state, d_rest, shared = gradients([s[-1] for s in states], rest[0], d_state, rest[1])
            shared = [tf.convert_to_tensor(x) for x in shared]

        def step(i, d_state, lists, shared):
            block, d_y = ([self._block(x, i) for x in of_nest] for of_nest in whole)
            before = [of_blocks[i] for of_blocks in states]
            d_state, d_block, d_shared = gradients(before, block, d_state, d_y)
            shared = [a + b for a, b in zip(shared, d_shared, strict=True)]
            return i - 1, d_state, tensor_lists.write(lists, i, d_block), shared

        specs = [
            ([tensor_lists.known_shape(x)[0], self.size, *x.shape[2:]], x.dtype)
            for x in _where(floats[1], xs)
        ]
        lists = [tensor_lists.reserve(self.count, *x) for x in specs]
        _, d_state, lists, shared = tf.while_loop(
            lambda i, *_: i >= 0,
            step,
            (self.count - 1, d_state, lists, shared),
            maximum_iterations=self.count,
        )
        d_xs = [self._join(x, *spec) for x, spec in zip(lists, specs, strict=True)]
        if d_rest is not None:
            d_xs = [tf.concat([d, x], axis=1) for d, x in zip(d_xs, d_rest, strict=True)]
        d_constants, d_variables = _split(shared, (sum(floats[2]), len(variables)))
        return [
            *_fill(floats[0], d_state),
            *_fill(floats[1], d_xs),
            *_fill(floats[2], d_constants),
        ], d_variables

    def _shape(self, spec):
        """Return the shape of a block, with the batch size of the call."""
        import tensorflow as tf

        b = spec.shape[0]
        if b is None:
            leaves = [*self.leaves[0], *self.leaves[1]]
            unknown = [tf.shape(x)[0] for x in leaves if x.shape[0] is None]
            b = unknown[0] if unknown else max(x.shape[0] for x in leaves)
        return [b, *spec.shape[1:]]

    def _block(self, x, i):
        """Return block i of `x (b, t, ...)`. XLA needs a size that is known, not an end."""
        import tensorflow as tf

        rank = len(x.shape)
        sizes = [x.shape[0], self.size, *x.shape[2:]]
        sizes = [tf.shape(x)[axis] if n is None else n for axis, n in enumerate(sizes)]
        block = tf.slice(x, [0, i * self.size] + [0] * (rank - 2), sizes)
        block.set_shape([x.shape[0], self.size, *x.shape[2:]])
        return block

    def _at_least_a_block(self, x):
        """Return x, with zeros to the length of a block if it is shorter.

        XLA checks the size of a slice also in a loop of no iterations.
        """
        import tensorflow as tf

        if isinstance(self.length, int):
            return x
        missing = tf.maximum(self.size - self.length, 0)  # without zeros, nothing is copied
        if x.dtype == tf.bool:  # TFLite of 2023 pads numbers only
            flags = tf.zeros([*tensor_lists.known_shape(x)[:1], missing, *x.shape[2:]], tf.bool)
            return tf.concat([x, flags], axis=1)
        return tf.pad(x, [[0, 0], [0, missing]] + [[0, 0]] * (len(x.shape) - 2))

    def _rest(self, x):
        return x[:, self.count * self.size :]

    def _join(self, of_blocks, shape, dtype):
        """Return the blocks of a list as one tensor, `(b, n * size, ...)`."""
        import tensorflow as tf

        x = tf.transpose(tensor_lists.stack_rows(of_blocks, shape, dtype), [1, 0, 2])
        return tf.reshape(x, [shape[0], self.count * self.size, *shape[2:]])


def _split(leaves: Sequence[Tensor], sizes: tuple[int, ...]) -> list[Leaves]:
    parts, start = [], 0
    for size in sizes:
        parts.append(list(leaves[start : start + size]))
        start += size
    return parts


def _where(flags, leaves):
    return [x for flag, x in zip(flags, leaves, strict=True) if flag]


def _fill(flags, leaves):
    """Put the leaves where a flag is True, and `None` elsewhere."""
    leaves = iter(leaves)
    return [next(leaves) if flag else None for flag in flags]
