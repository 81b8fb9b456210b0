"""Calls of functions and layers on TensorFlow, of Keras 3 and Keras 2 alike."""

import tensorflow as tf

from measure import clock

tf.get_logger().setLevel("ERROR")  # each cell is a new function, which TensorFlow warns of
for _device in tf.config.list_physical_devices("GPU"):
    tf.config.experimental.set_memory_growth(_device, True)


def build(cell, function, inputs, g, variables=(), eager=False):
    """`run()`, which waits for its results, and how to read them as a list of arrays.

    The results are the output, or the gradients of `sum(output * g)` with respect to the inputs
    and the variables.
    """
    inputs = [tf.constant(x, cell["dtype"]) for x in inputs]
    g = tf.constant(g, cell["dtype"])

    def forward(inputs, _):
        return [function(*inputs)]

    def gradients(inputs, g):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            output = function(*inputs)
        g = tf.cast(g, output.dtype)
        return tape.gradient(output, [*inputs, *variables], g, unconnected_gradients="zero")

    step = gradients if cell["gradient"] else forward
    if not eager:
        step = tf.function(step, jit_compile=cell["xla"], autograph=False)

    def run():
        found = step(inputs, g)
        tf.test.experimental.sync_devices()
        return found

    return run, lambda found: [tf.cast(x, "float32").numpy() for x in found]


def device():
    """The name of the GPU, or None."""
    found = tf.config.list_physical_devices("GPU")
    return tf.config.experimental.get_device_details(found[0])["device_name"] if found else None


def device_memory():
    """Bytes in use and at most in use on the GPU, or None without one."""
    if device() is None:
        return None
    found = tf.config.experimental.get_memory_info("GPU:0")
    tf.config.experimental.reset_memory_stats("GPU:0")
    return {"in_use": found["current"], "peak": found["peak"]}


def rates(dtype):
    """On a GPU the product is larger, and the copy is the device's."""
    size = 2048 if device() is None else 8192
    a = tf.random.stateless_normal((size, size), (0, 0), dtype=dtype)
    product, add = tf.function(lambda a: tf.matmul(a, a)), tf.function(lambda x: x + 1)

    def wait(call, x):
        call(x)
        tf.test.experimental.sync_devices()

    flops = clock.best_rate(lambda: wait(product, a), 2 * size**3)
    if device() is None:
        return {"flops": flops, "bytes": clock.numpy_copy_rate()}
    x = tf.ones(1 << 28)
    return {"flops": flops, "bytes": clock.best_rate(lambda: wait(add, x), 8 << 28)}
