"""The features of cosFormer's cosine: angles of positions, their cosines and sines."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from keras import ops

Tensor = Any
Span = Any  # M: an int, or an integer tensor `(b, 1)`
Waves = tuple[Tensor, Tensor]  # cosine and sine of angles


def cos_and_sin(x: Tensor) -> Waves:
    """Return cosine and sine of x."""
    return ops.cos(x), ops.sin(x)


def cos_and_sin_by_series(x: Tensor) -> Waves:
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


def waves(
    position: Tensor,
    span: Span,
    dtype: Any,
    functions: Callable[[Tensor], Waves] = cos_and_sin,
) -> Waves:
    """Return cosine and sine of the angles of positions. A loop over the steps reads them.

    In a loop, XLA would compute them for each head and feature. `functions` computes them.
    """
    return functions(cosine_angles(position, span, dtype))


def half_a_horizon_later(cos: Tensor, sin: Tensor) -> Waves:
    """Return the waves of angles that are larger by pi/4."""
    return (cos - sin) * math.sqrt(0.5), (cos + sin) * math.sqrt(0.5)


def cosine_of_difference(rows: Waves, columns: Waves) -> Tensor:
    """Return the cosine of each difference of two angles, from the waves of the angles."""
    return rows[0] * columns[0] + rows[1] * columns[1]


def cosine_features(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return `[x cos, x sin] (..., 2 d)` of `x (..., d)` and waves that broadcast to x."""
    return ops.concatenate([cos * x, sin * x], axis=-1)


def per_example(span: Span) -> Span:
    """Return M in a shape that broadcasts to tensors `(b, ..., ..., ...)`."""
    return span if isinstance(span, int) else ops.reshape(span, (-1, 1, 1, 1))
