"""The step of a stream, compiled once for pieces of any length."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import keras
from keras import ops

Tensor = Any
Nest = Any  # a tensor, or lists, tuples and dicts of tensors
State = dict[str, Tensor]
Step = Callable[..., tuple[Nest, State]]

BASE = 4
"""JAX compiles for pieces of `BASE**k` steps: with 2 twice as many, with 8 more calls."""


class CompiledStep:
    """A step `(inputs, state, mask) -> (outputs, state)`, compiled where it is called eagerly.

    The first calls compile. The weights are read at each call. If the model gets other variables,
    as by `quantize` or `enable_lora`, the next call compiles again. Inside `tf.function`,
    `jax.jit`, a gradient of JAX and `keras.StatelessScope` the step runs as it is.

    A step that cannot be compiled, for example because a layer asks for the length as a number,
    runs as it is from then on, after a warning. An error of the compiled step is that of the step
    as it is, which names the layer.

    Args:
        model: The model that the step calls.
        step: Function of the inputs `(b, t, ...)`, the state and a mask `(b, t)` or `None`. It
            returns outputs `(b, t, ...)` and the new state, and is pure but for variables.
    """

    def __init__(self, model: keras.Model, step: Step) -> None:
        self._model, self._step = model, step
        self._fails = False
        self._start()

    def __call__(self, inputs: Nest, state: State, mask: Tensor | None) -> tuple[Nest, State]:
        if self._fails or not _is_eager((inputs, state, mask)):
            return self._step(inputs, state, mask)
        try:
            return self._current()(inputs, state, mask)
        except Exception as error:
            result = self._step(inputs, state, mask)
            self._fails = True
            warnings.warn(
                f"The stream of '{self._model.name}' runs without compilation, which is slower: "
                f"its step cannot be compiled ({type(error).__name__}: {error}). Build the stream "
                "with `run_eagerly=True` to avoid this warning.",
                RuntimeWarning,
                stacklevel=3,
            )
            return result

    def __getstate__(self) -> dict[str, Any]:
        """Copies compile by themselves: a compiled function cannot be copied."""
        return {name: x for name, x in vars(self).items() if name not in ("_compiled", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def _start(self) -> None:
        self._compiled: _Backend | None = None
        self._lock = threading.Lock()

    def _current(self) -> _Backend:
        """Return the compiled step for the variables that the model has now."""
        variables = self._model.variables
        with self._lock:
            if self._compiled is None or not _same(self._compiled.variables, variables):
                self._compiled = _BACKENDS[keras.backend.backend()](self._step, variables)
            return self._compiled


class _Backend(Protocol):
    """A step compiled for a list of variables."""

    variables: list[keras.Variable]

    def __init__(self, step: Step, variables: list[keras.Variable]) -> None: ...

    def __call__(self, inputs: Nest, state: State, mask: Tensor | None) -> tuple[Nest, State]: ...


class _TensorFlowStep:
    """Graphs for any batch size: one for single steps, and one for any number of steps."""

    def __init__(self, step: Step, variables: list[keras.Variable]) -> None:
        self.variables, self._step = variables, step
        self._graphs: dict[str, Step] = {}
        self._lock = threading.Lock()

    def __call__(self, inputs: Nest, state: State, mask: Tensor | None) -> tuple[Nest, State]:
        inputs = keras.tree.map_structure(ops.convert_to_tensor, inputs)
        state = {name: ops.convert_to_tensor(x) for name, x in state.items()}
        steps = 1 if keras.tree.flatten(inputs)[0].shape[1] == 1 else None
        kind = keras.tree.map_structure(lambda x: (x.dtype.name, tuple(x.shape[2:])), inputs)
        key = repr((kind, steps, mask is None))
        arguments = (inputs, state) if mask is None else (inputs, state, mask)
        with self._lock:
            if key not in self._graphs:
                self._graphs[key] = self._graph(arguments, steps)
        return self._graphs[key](*arguments)

    def _graph(self, arguments, steps):
        import tensorflow as tf

        def of_steps(x):
            return tf.TensorSpec((None, steps, *x.shape[2:]), x.dtype)

        inputs, state, *mask = arguments
        state = {name: tf.TensorSpec((None, *x.shape[1:]), x.dtype) for name, x in state.items()}
        specs = (keras.tree.map_structure(of_steps, inputs), state, *map(of_steps, mask))
        return tf.function(self._step, input_signature=specs, autograph=False)


class _JaxStep:
    """A program for each batch size and each length `BASE**k`. A piece is cut into such lengths.

    The variables are arguments, so that a program holds no weights.
    """

    def __init__(self, step: Step, variables: list[keras.Variable]) -> None:
        import jax

        self.variables = variables

        @jax.jit
        def program(values, inputs, state, mask):
            with keras.StatelessScope(list(zip(variables, values, strict=True))) as stateless:
                before = [stateless.get_current_value(v) for v in variables]
                outputs, state = step(inputs, state, mask)
                after = [stateless.get_current_value(v) for v in variables]
            changed = enumerate(zip(before, after, strict=True))
            return outputs, state, {i: new for i, (old, new) in changed if new is not old}

        self._program = program

    def __call__(self, inputs: Nest, state: State, mask: Tensor | None) -> tuple[Nest, State]:
        parts, start = [], 0
        length = keras.tree.flatten(inputs)[0].shape[1]
        for steps in _powers(length):
            piece = inputs, mask
            if steps < length:
                piece = _cut(piece, start, start + steps)
            outputs, state, changed = self._program(
                [v.value for v in self.variables], piece[0], state, piece[1]
            )
            for i, value in changed.items():
                self.variables[i].assign(value)
            parts.append(outputs)
            start += steps
        if len(parts) == 1:
            return parts[0], state
        return keras.tree.map_structure(lambda *ys: ops.concatenate(ys, axis=1), *parts), state


class _TorchStep:
    """The step without gradients, not compiled: `torch.compile` needs a C++ compiler on a CPU."""

    def __init__(self, step: Step, variables: list[keras.Variable]) -> None:
        self.variables, self._step = variables, step

    def __call__(self, inputs: Nest, state: State, mask: Tensor | None) -> tuple[Nest, State]:
        import torch

        with torch.no_grad():
            return self._step(inputs, state, mask)


_BACKENDS: dict[str, type[_Backend]] = {
    "tensorflow": _TensorFlowStep,
    "jax": _JaxStep,
    "torch": _TorchStep,
}


def _same(old: list[keras.Variable], new: list[keras.Variable]) -> bool:
    return len(old) == len(new) and all(a is b for a, b in zip(old, new, strict=True))


def _is_eager(arguments: Nest) -> bool:
    """Return whether a call runs now, outside all tracing, with the variables' own values."""
    with keras.StatelessScope(initialize_variables=False) as stateless:
        pass
    if stateless.original_scope is not None:
        return False
    leaves = keras.tree.flatten(arguments)
    if any(isinstance(x, keras.KerasTensor) for x in leaves):
        return False
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.executing_eagerly()
    if keras.backend.backend() == "jax":
        import jax

        return not any(isinstance(x, jax.core.Tracer) for x in leaves)
    return True


def _cut(nest: Nest, start: int, end: int) -> Nest:
    return keras.tree.map_structure(lambda x: None if x is None else x[:, start:end], nest)


def _powers(length: int) -> Iterator[int]:
    """Yield powers of `BASE` with the sum `length`, the largest first."""
    steps = 1
    while steps * BASE <= length:
        steps *= BASE
    while length:
        for _ in range(length // steps):
            yield steps
        length, steps = length % steps, steps // BASE
