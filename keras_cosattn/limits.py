"""Check the number of valid steps against the limit of a layer."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

_records: contextvars.ContextVar[tuple[list, ...]] = contextvars.ContextVar(
    "keras_cosattn_limits", default=()
)


def check_steps(x: Any, longest: Any, limit: int, name: str, advice: str) -> Any:
    """Return `x`, after a check that `longest` does not exceed `limit`, a number of steps.

    Where the number is known (an integer, an eager tensor), the check happens at once. In a
    TensorFlow graph it becomes an assertion on which `x` depends, so that it fails before an
    optimizer changes the weights. XLA and the TFLite converter remove the assertion, and `jax.jit`
    checks nothing: there the caller must return finite values for the steps from the limit on.

    Args:
        x: Tensor `(b, t, ...)` that the layer reads, or a nest of such tensors.
        longest: Integer or tensor of integers of any shape, the numbers of valid steps. None, as
            in the shape of a symbolic tensor, is an unknown number.
        limit: Integer, the largest number of valid steps that the layer can hold.
        name: String, the name of the layer, for the message.
        advice: String, a sentence that says what to do instead.

    Returns:
        `x`. In a TensorFlow graph, its copy that depends on the assertion.

    Raises:
        ValueError: If the number of steps is known and exceeds `limit`.
    """
    record = (limit, keras.tree.flatten(x)[0].shape[1])
    for records in _records.get():
        records.append(record)
    return check_count(x, longest, limit, name, "steps", advice)


def check_count(x: Any, count: Any, limit: int, name: str, what: str, advice: str) -> Any:
    """Return `x`, after the check of `check_steps` for a number of other things than steps.

    Args:
        x, limit, name, advice: As in `check_steps`.
        count: Integer or tensor of integers of any shape, the numbers of things.
        what: String, the name of the things, in the plural.
    """
    known = known_value(count)
    if known is None:
        return _assert_in_graph(x, count, limit, f"{name}: more than {limit} {what}. {advice}")
    largest = int(np.max(known, initial=0))
    if largest > limit:
        raise ValueError(f"{name}: at most {limit} {what}. Received: {largest} {what}. {advice}")
    return x


@contextlib.contextmanager
def recorded() -> Iterator[list[tuple[int, int | None]]]:
    """Record the limits of all layers that are called in the context.

    Yields:
        A list. Every call of `check_steps` appends `(limit, steps)` to it, where `steps` is the
        static number of steps of its input, or None where that is dynamic.
    """
    records: list[tuple[int, int | None]] = []
    token = _records.set((*_records.get(), records))
    try:
        yield records
    finally:
        _records.reset(token)


def known_value(x: Any) -> np.ndarray | None:
    """Return `x` as a NumPy array, or None if it is symbolic (in a graph or while tracing).

    A constant of a TensorFlow graph is known.
    """
    if x is None or isinstance(x, keras.KerasTensor):
        return None
    try:
        value = np.asarray(ops.convert_to_numpy(x))
    except (NotImplementedError, TypeError, RuntimeError):
        # TensorFlow's graph tensors, JAX's tracers, and PyTorch's fake tensors.
        return _constant_of_graph(x)
    return None if value.dtype == object else value  # an object is JAX's symbolic dimension


def _constant_of_graph(x: Any) -> np.ndarray | None:
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    return tf.get_static_value(x) if tf.is_tensor(x) else None


def _assert_in_graph(x: Any, longest: Any, limit: int, message: str) -> Any:
    if keras.backend.backend() != "tensorflow":
        return x
    import tensorflow as tf

    if not tf.is_tensor(longest):  # a symbolic call: there is no graph yet
        return x
    longest = tf.cast(longest, "int32")  # Assert prints int32 and strings without a branch
    check = tf.debugging.Assert(tf.reduce_all(longest <= limit), [message, longest])
    with tf.control_dependencies([check]):
        return keras.tree.map_structure(tf.identity, x)
