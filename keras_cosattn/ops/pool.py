"""Several steps as one."""

from keras import ops

from keras_cosattn.ops import arrays, dense


def pool(x, real, query=None):
    """`sum_s a_s x_s`, `a_s = softmax_s(u . x_s / sqrt(d))`, over c steps.

    Args:
        x: `(z, c, h, d)`, finite.
        real: `(z, c)`, the steps that take part; without one the sum is zero.
        query: u, `(h, d)`; None is the plain mean.

    Returns `(z, h, d)` and a, `(z, h, 1, c)`, float32. O(c d) time for each head.
    """
    u = arrays.accumulate(x[:, :1]) * 0.0
    if query is not None:
        u = u + arrays.accumulate(query)
    allowed = ops.expand_dims(ops.expand_dims(real, 1), 1)
    pooled, weights = dense.attend(u, x, x, allowed)[:2]
    return pooled[:, 0], weights
