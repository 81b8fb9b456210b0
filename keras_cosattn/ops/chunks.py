"""Sequences cut into chunks of equal length, and sums over the steps of a chunk.

Shapes: n chunks of C steps each, z = b * n.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_cosattn.ops import arrays

Tensor = Any


def split(x: Tensor, size: int) -> Tensor:
    """Cut `x (b, t, ...)` into chunks of `size` steps, `(z, size, ...)`.

    Zeros fill the last chunk.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn.ops import chunks
    >>> tuple(chunks.split(np.ones((2, 10, 3), "float32"), 4).shape)
    (6, 4, 3)
    """
    x = arrays.pad_end(x, -ops.shape(x)[1] % size)
    return ops.reshape(x, (-1, size, *x.shape[2:]))


def join(x: Tensor, length: int | Tensor, b: int | Tensor) -> Tensor:
    """Join chunks `(z, C, ...)` to `b` sequences of `length` steps, `(b, length, ...)`.

    This is the inverse of `split`.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn.ops import chunks
    >>> tuple(chunks.join(np.ones((6, 4, 3), "float32"), 10, 2).shape)
    (2, 10, 3)
    """
    padded = -(-length // x.shape[1]) * x.shape[1]
    return ops.reshape(x, (b, padded, *x.shape[2:]))[:, :length]


def split_ids(ids: Tensor, size: int) -> Tensor:
    """Cut ids `(b, t)` into chunks, `(b, n, size)`. Copies of the last id fill the last chunk."""
    b, t = ops.shape(ids)
    return ops.reshape(arrays.pad_with_last(ids, -t % size), (b, -(-t // size), size))


def outer_sum(k: Tensor, v: Tensor) -> Tensor:
    """Return `sum_s k_s v_s^T`: `(z, s, h, f)`, `(z, s, h, e)` -> `(z, h, f, e)`."""
    return ops.einsum("zshf,zshe->zhfe", k, v)


def read(q: Tensor, sums: Tensor) -> Tensor:
    """Return `q_t sums`: `(z, t, h, f)`, `(z, h, f, e)` -> `(z, t, h, e)`."""
    return ops.einsum("zthf,zhfe->zthe", q, sums)
