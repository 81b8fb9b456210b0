"""Routing: the share that each of several paths has in the output of a step.

Shapes: p paths.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_cosattn.ops import arrays

Tensor = Any

SMALL = 1e-12  # keeps the gradient of a length finite where the vector is zero


def route(logits: Tensor, paths: Tensor, iterations: int = 0) -> Tensor:
    """Return weights of the paths, which rise for paths that agree with the weighted sum.

    In each iteration, from the logits b and the outputs u of the paths:
    `r = softmax(b)`, `v = squash(sum_p r_p u_p)`, `b_p += u_p . v`. It takes O(t p m) time.

    Args:
        logits: tensor `(b, t, p)`.
        paths: tensor `(b, t, p, m)`, the outputs of the paths.
        iterations: int, the number of iterations. Without any, the result is `softmax(logits)`.
            Defaults to `0`.

    Returns:
        Tensor `(b, t, p)`, which sums to one over the paths.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn.ops.route import route
    >>> tuple(route(np.ones((2, 5, 3)), np.ones((2, 5, 3, 4)), iterations=2).shape)
    (2, 5, 3)

    Reference:
        - [Sabour et al., 2017](https://arxiv.org/abs/1710.09829), procedure 1
    """
    for _ in range(iterations):
        v = squash(mix(ops.softmax(logits), paths))
        logits = logits + ops.sum(paths * ops.expand_dims(v, 2), axis=-1)
    return ops.softmax(logits)


def mix(weights: Tensor, paths: Tensor) -> Tensor:
    """Return `sum_p r_tp u_tp`: `(b, t, p)`, `(b, t, p, m)` -> `(b, t, m)`."""
    return ops.sum(ops.expand_dims(weights, -1) * paths, axis=2)


def squash(x: Tensor) -> Tensor:
    """Return `|x|^2 / (1 + |x|^2) x / |x|` along the last axis.

    Reference:
        - [Sabour et al., 2017](https://arxiv.org/abs/1710.09829), equation 1
    """
    square = ops.sum(ops.square(x), axis=-1, keepdims=True)
    return x * ops.sqrt(square + SMALL) / (1 + square)


def largest(weights: Tensor, k: int) -> Tensor:
    """Return 1 at the k largest weights of each step and 0 elsewhere, `(b, t, p)`.

    There are exactly k ones, also where weights are equal.
    """
    chosen = ops.top_k(weights, k)[1]
    return ops.sum(ops.one_hot(chosen, weights.shape[-1], dtype=weights.dtype), axis=2)


def keep(weights: Tensor, chosen: Tensor) -> Tensor:
    """Return the chosen weights `(b, t, p)`, divided by their sum."""
    weights = weights * chosen
    return weights / ops.sum(weights, axis=-1, keepdims=True)


def load_balance(weights: Tensor, chosen: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return `p sum_p f_p P_p`, a scalar: 1 if all paths are used equally, and at most p.

    f_p is the share of path p in all choices, and P_p the mean of its weights.

    Args:
        weights: tensor `(b, t, p)`.
        chosen: tensor `(b, t, p)`, 1 where a path is chosen and 0 elsewhere.
        mask: bool tensor `(b, t)`. Masked steps do not count.

    Reference:
        - [Fedus et al., 2022](https://arxiv.org/abs/2101.03961), equations 4-6
    """
    share, mean = (_mean_of_steps(x, mask) for x in (chosen, weights))
    share = share / ops.maximum(ops.sum(share), SMALL)
    return weights.shape[-1] * ops.sum(ops.stop_gradient(share) * mean)


def _mean_of_steps(x, mask):
    if mask is None:
        mask = ops.ones(ops.shape(x)[:2], "bool")
    count = ops.maximum(ops.sum(ops.cast(mask, x.dtype)), 1)
    return ops.sum(arrays.zero_masked(x, mask), axis=(0, 1)) / count
