"""Routing: how much of each of several paths every step takes."""

from keras import ops

from keras_cosattn.ops import arrays

SMALL = 1e-12  # keeps the slope of a length finite where the vector is zero


def route(logits, paths, iterations=0):
    """Route weights by agreement: `softmax(b)`, b raised for the paths that agree with the sum.

    logits b `(b, t, p)`, paths u `(b, t, p, m)` -> `(b, t, p)` that sum to one. In each iteration
    `r = softmax(b), v = squash(sum_p r_p u_p), b_p += u_p . v`. O(t p m) time for each.
    Sabour et al., 2017, procedure 1.
    """
    for _ in range(iterations):
        v = squash(mix(ops.softmax(logits), paths))
        logits = logits + ops.sum(paths * ops.expand_dims(v, 2), axis=-1)
    return ops.softmax(logits)


def mix(weights, paths):
    """`sum_p r_tp u_tp`: `(b, t, p)`, `(b, t, p, m)` -> `(b, t, m)`."""
    return ops.sum(ops.expand_dims(weights, -1) * paths, axis=2)


def squash(x):
    """`|x|^2 / (1 + |x|^2) x / |x|` along the last axis. Sabour et al., 2017, eq. 1."""
    square = ops.sum(ops.square(x), axis=-1, keepdims=True)
    return x * ops.sqrt(square + SMALL) / (1 + square)


def largest(weights, k):
    """1 at the k largest weights of each step, and 0 elsewhere: `(b, t, p)`.

    Exactly k, also where weights are equal.
    """
    chosen = ops.top_k(weights, k)[1]
    return ops.sum(ops.one_hot(chosen, weights.shape[-1], dtype=weights.dtype), axis=2)


def keep(weights, chosen):
    """The chosen weights `(b, t, p)`, divided by their sum."""
    weights = weights * chosen
    return weights / ops.sum(weights, axis=-1, keepdims=True)


def load_balance(weights, chosen, mask=None):
    """`p sum_p f_p P_p`: 1 where the paths are used alike, up to p where one has everything.

    f_p is the share of the places `chosen (b, t, p)` that path p has, P_p the mean of its
    `weights (b, t, p)`; steps that `mask (b, t)` leaves out do not count. A scalar.
    Fedus et al., 2022, eq. 4-6.
    """
    share, mean = (_mean_of_steps(x, mask) for x in (chosen, weights))
    share = share / ops.maximum(ops.sum(share), SMALL)
    return weights.shape[-1] * ops.sum(ops.stop_gradient(share) * mean)


def _mean_of_steps(x, mask):
    if mask is None:
        return ops.mean(x, axis=(0, 1))
    count = ops.maximum(ops.sum(ops.cast(mask, x.dtype)), 1)
    return ops.sum(arrays.zero_masked(x, mask), axis=(0, 1)) / count
