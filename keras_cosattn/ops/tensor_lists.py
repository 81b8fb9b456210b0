"""Lists of tensors of one shape in a TensorFlow graph, which the iterations of a loop write.

A `tf.TensorArray` without elements cannot be stacked if its shape is dynamic. Here the elements are
rows `(b, width)`: the versions of TFLite until 2024 slice tensors of 5 axes at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Tensor = Any
TensorList = Any
Shape = Sequence[Any]  # integers, and tensors where a size is not known


def known_shape(x: Tensor) -> Shape:
    """Return the sizes of the axes of x, as integers where they are known."""
    import tensorflow as tf

    return [tf.shape(x)[i] if n is None else n for i, n in enumerate(x.shape)]


def reserve(count: Any, shape: Shape, dtype: Any) -> TensorList:
    """Return a list for `count` tensors of a shape."""
    import tensorflow as tf

    return tf.raw_ops.TensorListReserve(
        element_shape=_rows(shape), num_elements=count, element_dtype=dtype
    )


def write(lists: Sequence[TensorList], i: Any, tensors: Sequence[Tensor]) -> list[TensorList]:
    """Return the lists with a tensor each at index i."""
    import tensorflow as tf

    return [
        tf.raw_ops.TensorListSetItem(
            input_handle=of_tensors, index=i, item=tf.reshape(x, _rows(known_shape(x)))
        )
        for of_tensors, x in zip(lists, tensors, strict=True)
    ]


def stack(of_tensors: TensorList, shape: Shape, dtype: Any) -> Tensor:
    """Return the tensors of a list in one, `(n, *shape)`."""
    import tensorflow as tf

    rows = stack_rows(of_tensors, shape, dtype)
    return tf.reshape(rows, [known_shape(rows)[0], *shape])


def stack_rows(of_tensors: TensorList, shape: Shape, dtype: Any) -> Tensor:
    """Return the tensors of a list in one, `(n, b, width)`."""
    import tensorflow as tf

    return tf.raw_ops.TensorListStack(
        input_handle=of_tensors, element_shape=_rows(shape), element_dtype=dtype
    )


def _rows(shape):
    import tensorflow as tf

    return tf.stack([shape[0] if shape else 1, math.prod(shape[1:])])
