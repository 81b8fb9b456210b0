"""One loop over the blocks of a sequence, under every causal layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

Tensor = Any
Nest = Any  # a tensor, or lists, tuples and dicts of tensors
Body = Callable[..., tuple[Nest, Nest]]


def block_scan(
    body: Body, state: Nest, xs: Nest, block_size: int | None, constants: Nest | None = None
) -> tuple[Nest, Nest]:
    """Apply `state, y = body(state, block)` to one block of steps after the other.

    A causal layer's whole-sequence form is the scan of its streaming form. Memory is bounded: the
    loop keeps the state before each block. Its gradient goes through the blocks in reverse order,
    and computes each block again to differentiate it alone.

    The graph has the body twice, for the blocks and for what remains after them, so its size does
    not depend on the number of steps.

    Args:
        body: function `(state, block)`, or `(state, block, constants)` if there are constants. It
            returns the next state, and a nest of tensors `(b, n, ...)` for a block of n steps. A
            block can have 0 steps; then the state must stay as it is. On TensorFlow, tensors that
            the body reads from outside have no gradient, except weights: pass them as `constants`.
        state: nest of tensors, the state before the first step. Shapes and dtypes stay the same.
        xs: nest of tensors `(b, t, ...)`, what the steps read. All have the same t, and b can be 1.
        block_size: int, the number of steps in a block. The last block can be shorter. `None` takes
            all steps at once.
        constants: nest of tensors that all blocks read. Defaults to `None`.

    Returns:
        The state after the last step, and the nest of all outputs, `(b, t, ...)`.

    Example:
    >>> import numpy as np
    >>> from keras import ops
    >>> from keras_cosattn.ops.scan import block_scan
    >>> def running_sum(total, x):
    ...     sums = ops.expand_dims(total, 1) + ops.cumsum(x, axis=1)
    ...     return total + ops.sum(x, axis=1), sums
    >>> x = np.ones((1, 5), "float32")
    >>> total, sums = block_scan(running_sum, ops.zeros((1,)), x, block_size=2)
    >>> ops.convert_to_numpy(sums).tolist()
    [[1.0, 2.0, 3.0, 4.0, 5.0]]
    """
    state, xs = (keras.tree.map_structure(ops.convert_to_tensor, x) for x in (state, xs))
    if constants is None:
        constants, with_constants = (), lambda state, block, _: body(state, block)
    else:
        constants = keras.tree.map_structure(ops.convert_to_tensor, constants)
        with_constants = body
    length = ops.shape(keras.tree.flatten(xs)[0])[1]
    if block_size is None or (isinstance(length, int) and length <= block_size):
        return with_constants(state, xs, constants)
    scan = _scan_of_backend()
    return scan(with_constants, state, xs, constants, block_size)


def _scan_of_backend():
    if keras.backend.backend() == "tensorflow":
        from keras_cosattn.ops.scan_tensorflow import scan
    elif keras.backend.backend() == "jax":
        from keras_cosattn.ops.scan_jax import scan
    else:
        from keras_cosattn.ops.scan_torch import scan
    return scan
