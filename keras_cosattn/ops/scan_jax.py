"""The loop of `block_scan` on JAX: `lax.scan` of a body that the gradient computes again."""

from __future__ import annotations

from typing import Any


def scan(body: Any, state: Any, xs: Any, constants: Any, size: int) -> tuple[Any, Any]:
    """See `block_scan`."""
    import jax
    from jax import numpy as jnp

    length = jax.tree.leaves(xs)[0].shape[1]
    count, rest = divmod(length, size)

    def split(x):  # (b, t, ...) -> (n, b, size, ...)
        x = jnp.reshape(x[:, : count * size], (x.shape[0], count, size, *x.shape[2:]))
        return jnp.moveaxis(x, 1, 0)

    def join(y):
        y = jnp.moveaxis(y, 0, 1)
        return jnp.reshape(y, (y.shape[0], count * size, *y.shape[3:]))

    # The barriers against common subexpressions are not needed in a loop.
    step = jax.checkpoint(lambda state, block: body(state, block, constants), prevent_cse=False)
    state, ys = jax.lax.scan(step, state, jax.tree.map(split, xs))
    ys = jax.tree.map(join, ys)
    if rest == 0:
        return state, ys
    state, last = body(state, jax.tree.map(lambda x: x[:, count * size :], xs), constants)
    return state, jax.tree.map(lambda y, last: jnp.concatenate([y, last], axis=1), ys, last)
