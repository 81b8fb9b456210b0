"""The features of cosFormer's cosine: angles of positions, their cosines and sines."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from keras import ops

Tensor = Any
Span = Any  # M: an int, or an integer tensor `(b, 1)`


def cos_and_sin(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of x."""
    return ops.cos(x), ops.sin(x)


def cos_and_sin_by_series(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of x in [0, pi/2] by their series, with an error of 1e-7.

    The operations COS and SIN would cut a TFLite graph into two delegated parts.
    """
    square = x * x
    cos: Any = 1.0
    sin: Any = 1.0
    for n in range(14, 0, -2):
        cos = 1.0 - cos * square * (1.0 / (n * (n - 1)))
        sin = 1.0 - sin * square * (1.0 / (n * (n + 1)))
    return cos, x * sin


def cosine_angles(position: Tensor, span: Span, dtype: Any) -> Tensor:
    """Return the angles `pi/2 position / span`.

    Full turns are removed while positions are integers, so the angles are exact.
    """
    position = ops.mod(position, 4 * span)
    return ops.cast(position, dtype) * (math.pi / 2 / ops.cast(span, dtype))


def cosine_of_difference(rows: Tensor, columns: Tensor) -> Tensor:
    """Return the cosine of each difference of two angles, with cosines of the angles alone."""
    (row_cos, row_sin), (column_cos, column_sin) = cos_and_sin(rows), cos_and_sin(columns)
    return row_cos * column_cos + row_sin * column_sin


def cosine_features(
    x: Tensor,
    angles: Tensor,
    functions: Callable[[Tensor], tuple[Tensor, Tensor]] = cos_and_sin,
) -> Tensor:
    """Return `[x cos, x sin] (..., 2 d)` of `x (..., d)` and angles that broadcast to x.

    `functions` computes cosine and sine.
    """
    cos, sin = functions(angles)
    return ops.concatenate([cos * x, sin * x], axis=-1)


def per_example(span: Span) -> Span:
    """Return M in a shape that broadcasts to tensors `(b, ..., ..., ...)`."""
    return span if isinstance(span, int) else ops.reshape(span, (-1, 1, 1, 1))
