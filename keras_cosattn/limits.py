"""Check the number of valid steps against the limit of a layer, and that of examples."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Mapping
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


def check_batch(x: Any, batch_size: Any, what: str, advice: str) -> Any:
    """Return `x`, after a check that it has `batch_size` examples.

    A TensorFlow graph that does not know both numbers compares them when it runs, before an
    optimizer changes the weights. XLA does so only if `batch_size` is an integer.

    Args:
        x: Tensor `(b, ...)` or a nest of such tensors.
        batch_size: Integer, or a scalar tensor of a graph.
        what: String, a sentence without its stop that says what b must be.
        advice: String, a sentence that says what to do instead.

    Returns:
        `x`. In a TensorFlow graph, its copy that depends on the check.

    Raises:
        ValueError: If both numbers are known and differ.
    """
    first = keras.tree.flatten(x)[0]
    b, known = first.shape[0], isinstance(batch_size, (int, np.integer))
    if known and isinstance(b, int):
        if b != batch_size:
            raise ValueError(f"{what}. Received: a batch of {b}. {advice}")
        return x
    if keras.backend.backend() != "tensorflow":
        return x
    if known:
        return _of_batch(x, batch_size)
    b = ops.shape(first)[0]
    return _after_assertion(
        x, ops.equal(b, batch_size), f"{what}. {advice} Received: a batch of", b
    )


def check_end(
    outputs: Any, state: dict[str, Any], maxima: Mapping[str, int], name: str
) -> tuple[Any, dict[str, Any]]:
    """Return the outputs and the new state of a call, if no layer's state is full.

    Args:
        outputs: of the call.
        state: after the call.
        maxima: dict of the name of a state tensor that counts steps, to the largest number of
            steps that its layer can hold.
        name: the name of the model or layer, for the message.

    Raises:
        ValueError: If a layer has received more steps than it can hold. In TensorFlow graphs this
            is an assertion on which the outputs depend; see `check_steps`.
    """
    result, counts = (outputs, state), state
    for count, limit in maxima.items():
        result = check_steps(
            result,
            counts[count],
            limit,
            f"The stream of '{name}' is full",
            f"`{count}` counts the steps. Build the layer with a larger `max_length`, use a layer "
            "whose streams have no end, such as CosFormerAttention(horizon=...), or start again "
            "from a new state.",
        )
    return result


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
    return _after_assertion(x, tf.reduce_all(longest <= limit), message, longest)


def _after_assertion(x: Any, condition: Any, message: str, value: Any) -> Any:
    import tensorflow as tf

    check = tf.debugging.Assert(condition, [message, value])
    with tf.control_dependencies([check]):
        return keras.tree.map_structure(tf.identity, x)


def _of_batch(x: Any, batch_size: int) -> Any:
    import tensorflow as tf

    name = f"every_batch_must_have_{batch_size}_examples"  # the error has it
    return keras.tree.map_structure(
        lambda part: tf.ensure_shape(part, (batch_size, *part.shape[1:]), name), x
    )
