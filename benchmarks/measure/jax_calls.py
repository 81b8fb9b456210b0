"""Calls of functions on JAX, compiled."""

import jax
import jax.numpy as jnp

from measure import clock


def build(cell, function, inputs, g, variables=(), eager=False):
    """As `tensorflow_calls.build`, for a function of the inputs and the variables."""
    inputs = [*(jnp.asarray(x, cell["dtype"]) for x in inputs), *variables]
    g = jnp.asarray(g, cell["dtype"])

    def forward(inputs, _):
        return [function(*inputs)]

    def gradients(inputs, g):
        output, pull_back = jax.vjp(function, *inputs)
        return pull_back(g.astype(output.dtype))

    step = gradients if cell["gradient"] else forward
    if not eager:
        step = jax.jit(step)
    return (
        lambda: jax.block_until_ready(step(inputs, g)),
        lambda found: [jax.device_get(x.astype("float32")) for x in found],
    )


def device():
    """The name of the GPU, or None."""
    return jax.devices()[0].device_kind if jax.default_backend() == "gpu" else None


def device_memory():
    """Bytes in use and at most in use on the GPU, or None without one."""
    if device() is None:
        return None
    found = jax.devices()[0].memory_stats()
    return {"in_use": found["bytes_in_use"], "peak": found["peak_bytes_in_use"]}


def rates(dtype):
    """On a GPU the product is larger, and the copy is the device's."""
    size = 2048 if device() is None else 8192
    a, product, add = jnp.ones((size, size), dtype), jax.jit(jnp.matmul), jax.jit(lambda x: x + 1)
    flops = clock.best_rate(lambda: jax.block_until_ready(product(a, a)), 2 * size**3)
    if device() is None:
        return {"flops": flops, "bytes": clock.numpy_copy_rate()}
    x = jnp.ones(1 << 28, "float32")
    copied = clock.best_rate(lambda: jax.block_until_ready(add(x)), 8 << 28)
    return {"flops": flops, "bytes": copied}
