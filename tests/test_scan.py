"""`block_scan` beside a loop in NumPy: values, gradients, lengths, nesting, weights."""

import keras
import numpy as np
import pytest
from keras import ops
from support import BACKEND, assert_close, compiled, gradients, value_and_gradients

from keras_cosattn.ops.scan import block_scan

WIDTH, BLOCK = 3, 4
tensorflow_only = pytest.mark.skipif(BACKEND != "tensorflow", reason="a trap of TensorFlow only")


def body(state, block, constants):
    """Not linear in anything, so that every gradient matters."""
    inner = block["x"] * constants["scale"] + constants["shift"]
    inner = inner + ops.expand_dims(ops.cast(block["at"], "float32"), 2) * 0.1
    z = ops.tanh(inner + ops.expand_dims(state["sum"], 1))
    z = ops.where(ops.expand_dims(block["mask"], 2), z, 0.0)
    sums = ops.expand_dims(state["sum"], 1) + ops.cumsum(z, axis=1)
    flags = ops.cast(block["mask"], "int32")
    after = {"sum": state["sum"] + ops.sum(z, axis=1), "count": state["count"] + ops.sum(flags, 1)}
    return after, {"square": sums * sums, "flags": flags}


def scan(x, start, scale, shift, mask, size=BLOCK):
    state = {"sum": start, "count": ops.zeros(ops.shape(start)[:1], "int32")}
    constants = {"scale": scale, "shift": shift}
    at = ops.expand_dims(ops.arange(ops.shape(x)[1], dtype="int32"), 0)
    return block_scan(body, state, {"x": x, "mask": mask, "at": at}, size, constants)


def loss(x, start, scale, shift, mask, g, size=BLOCK):
    """One number that depends on every output."""
    after, y = scan(x, start, scale, shift, mask, size)
    return ops.sum(y["square"] * g) + 3.0 * ops.sum(after["sum"])


def in_numpy(x, start, scale, shift, mask, g):
    """The same in a loop over blocks, and its gradients, block by block backwards."""
    state, blocks, square = start, [], [np.zeros((len(x), 0, WIDTH))]
    for first in range(0, x.shape[1], BLOCK):
        steps = slice(first, first + BLOCK)
        inner = x[:, steps] * scale + shift + state[:, None]
        inner = inner + 0.1 * np.arange(x.shape[1])[None, steps, None]
        z = np.where(mask[:, steps, None], np.tanh(inner), 0)
        sums = state[:, None] + np.cumsum(z, axis=1)
        square.append(sums**2)
        blocks.append((steps, z, sums))
        state = state + z.sum(axis=1)
    d_x, d_scale, d_shift, d_state = np.zeros_like(x), 0.0, 0.0, np.full_like(start, 3.0)
    for steps, z, sums in reversed(blocks):
        d_sums = 2.0 * sums * g[:, steps]
        d_z = np.cumsum(d_sums[:, ::-1], axis=1)[:, ::-1] + d_state[:, None]
        d_inner = np.where(mask[:, steps, None], d_z * (1.0 - z**2), 0.0)
        d_x[:, steps] = d_inner * scale
        d_scale = d_scale + (d_inner * x[:, steps]).sum(axis=(0, 1))
        d_shift = d_shift + d_inner.sum(axis=(0, 1))
        d_state = d_state + d_sums.sum(axis=1) + d_inner.sum(axis=1)
    zero = np.zeros(WIDTH)
    gradients = [d_x, d_state, zero + d_scale, zero + d_shift]
    return np.concatenate(square, axis=1), state, mask.sum(axis=1), gradients


def example(length, batch=2):
    rng = np.random.default_rng(length + 1)
    sizes = (batch, length, WIDTH), (batch, WIDTH), WIDTH, WIDTH
    arrays = [rng.normal(size=size).astype("float32") for size in sizes]
    mask, g = rng.random((batch, length)) < 0.8, rng.normal(size=(batch, length, WIDTH))
    return arrays, mask, g.astype("float32")


def dynamic(jit):
    """A function of TensorFlow that knows neither the batch nor the length."""
    import tensorflow as tf

    shapes = [None, None, WIDTH], [None, WIDTH], [WIDTH], [WIDTH]
    signature = [tf.TensorSpec(shape) for shape in shapes]
    signature += [tf.TensorSpec([None, None], tf.bool), tf.TensorSpec([None, None, WIDTH])]

    def compile_(function):
        return tf.function(function, input_signature=signature, jit_compile=jit, autograph=False)

    return compile_


def graph(function):
    import tensorflow as tf

    return tf.function(function, autograph=False)


def plain(function):
    return lambda *arrays: function(*map(ops.convert_to_tensor, arrays))


FORMS = {"plain": plain}
if BACKEND != "torch":
    FORMS["compiled"] = compiled
if BACKEND == "tensorflow":
    FORMS |= {"graph": graph, "dynamic": dynamic(False), "dynamic, compiled": dynamic(True)}


def check(form, length, batch=2, size=BLOCK):
    """Values and gradients of one form beside those of `in_numpy`."""
    arrays, mask, g = example(length, batch)
    wide = (np.float64(x) for x in arrays)
    square, last, count, expected = in_numpy(*wide, mask, np.float64(g))
    after, y = FORMS[form](lambda *arrays: scan(*arrays[:5], size))(*arrays, mask, g)
    assert_close(y["square"], square)
    assert_close(after["sum"], last)
    np.testing.assert_array_equal(ops.convert_to_numpy(after["count"]), count)
    np.testing.assert_array_equal(ops.convert_to_numpy(y["flags"]), mask)
    function = FORMS[form](lambda *arrays: loss(*arrays, size=size))
    for actual, wanted in zip(
        gradients(lambda *arrays: function(*arrays, mask, g), *arrays), expected, strict=True
    ):
        assert_close(actual, wanted)


@pytest.mark.parametrize("length", [0, 1, 4, 5, 8, 19])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.sample(5)
def test_values_and_gradients_are_those_of_a_loop(form, length):
    check(form, length)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.sample(3)
def test_a_batch_may_be_empty(form):
    check(form, 9, batch=0)


def test_without_a_block_size_all_steps_are_one_block():
    arrays, mask, _ = example(3)
    for size in (None, 3, 10):
        _, y = plain(lambda *arrays, size=size: scan(*arrays, size))(*arrays, mask)
        assert_close(y["square"], in_numpy(*arrays, mask, np.zeros_like(arrays[0]))[0])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.sample(3)
def test_scans_nest(form):
    """The body of the outer scan is a scan over pairs of steps, whose state goes on."""
    x = np.random.default_rng(0).normal(size=(2, 11, WIDTH)).astype("float32")
    g, none, padding = np.ones_like(x), np.ones((2, 11), "bool"), np.zeros(WIDTH, "float32")

    def step(state, x):
        sums = ops.expand_dims(state, 1) + ops.cumsum(ops.sin(x), axis=1)
        return state + ops.sum(ops.sin(x), axis=1), sums * sums

    def nested(x):
        def outer(state, x):
            return block_scan(step, state, x, 2)

        return block_scan(outer, ops.zeros_like(x[:, 0]), x, 5)[1]

    def total(x, start, scale, shift, mask, g):
        return ops.sum(nested(x) * g)

    function = FORMS[form](total)
    value, (gradient,) = value_and_gradients(
        lambda x: function(x, padding[None], padding, padding, none, g), np.float32(1), x
    )
    sums = np.cumsum(np.sin(np.float64(x)), axis=1)
    assert_close(value, np.sum(sums**2))
    assert_close(gradient, np.cumsum(2 * sums[:, ::-1], axis=1)[:, ::-1] * np.cos(np.float64(x)))


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("length", [None, 11])
@pytest.mark.sample(3)
def test_weights_that_the_body_reads_are_trained(length, jit_compile):
    """A `fit` step gives the weights what it gives them without blocks."""

    class Running(keras.layers.Layer):
        def __init__(self, size):
            super().__init__()
            self.size, self.dense = size, keras.layers.Dense(WIDTH, activation="tanh")

        def build(self, shape):
            self.dense.build((None, None, WIDTH))

        def call(self, x):
            def step(state, x):
                sums = ops.expand_dims(state, 1) + ops.cumsum(self.dense(x), axis=1)
                return state + ops.sum(self.dense(x), axis=1), sums

            return block_scan(step, ops.zeros_like(x[:, 0]), x, self.size)[1]

    x = np.random.default_rng(1).normal(size=(4, 11, WIDTH)).astype("float32")
    trained = []
    for size in (4, None):
        model = keras.Sequential([keras.Input((length, WIDTH)), Running(size)])
        model.set_weights([np.eye(WIDTH), np.full(WIDTH, 0.1)])
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=jit_compile and length)
        model.fit(x, x, batch_size=2, epochs=2, shuffle=False, verbose=0)
        trained.append(model.get_weights())
    assert np.abs(trained[0][0] - np.eye(WIDTH)).max() > 1e-2
    for actual, expected in zip(*trained, strict=True):
        assert_close(actual, expected)


@tensorflow_only
def test_the_graph_does_not_grow_with_the_length():
    import tensorflow as tf

    def count_nodes(length):
        spec = tf.TensorSpec((1, length, WIDTH))
        function = tf.function(lambda x: block_scan(step, tf.zeros((1, WIDTH)), x, 4)[1])
        return len(function.get_concrete_function(spec).graph.as_graph_def().node)

    def step(state, x):
        return state + ops.sum(x, axis=1), ops.expand_dims(state, 1) + ops.cumsum(x, axis=1)

    assert count_nodes(1_024) == count_nodes(65_536)


@pytest.mark.parametrize("jit", [False, True])
@tensorflow_only
def test_second_derivatives_are_right(jit):
    import tensorflow as tf

    def step(state, x):
        return state + tf.reduce_sum(x**3, axis=1), state[:, None] * x

    @tf.function(jit_compile=jit)
    def curvature(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = tf.reduce_sum(block_scan(step, tf.zeros((1, 1)), x, 2)[1])
            slope = inner.gradient(y, x)
        return outer.gradient(slope, x)

    def slope(x):  # y = sum_(i before j's block) x_i^3 x_j
        blocks = np.arange(len(x)) // 2
        earlier = blocks[:, None] < blocks
        return 3 * x**2 * (earlier @ x) + x**3 @ earlier

    x, h = np.random.default_rng(2).normal(size=6), 1e-6
    steps = [(slope(x + h * d) - slope(x - h * d)).sum() / (2 * h) for d in np.eye(6)]
    expected = np.array(steps)[None, :, None]
    assert_close(curvature(tf.constant(x[None, :, None], "float32")), expected)


def test_a_tensor_that_is_given_twice_has_the_gradients_of_both(rng):
    def twice(x):
        def add(state, block, constants):
            return state, block["a"] * constants["a"] + block["b"] * constants["b"] ** 2

        mean = ops.mean(x, axis=1, keepdims=True)
        constants = {"a": mean, "b": mean}
        return block_scan(add, ops.zeros((2,)), {"a": x, "b": x}, BLOCK, constants)[1]

    def at_once(x):
        mean = ops.mean(x, axis=1, keepdims=True)
        return x * mean + x * mean**2

    x, g = (rng.normal(size=(2, 9, WIDTH)).astype("float32") for _ in range(2))
    found, expected = (value_and_gradients(compiled(f), g, x) for f in (twice, at_once))
    assert_close(found[0], expected[0])
    assert_close(found[1][0], expected[1][0])


@tensorflow_only
def test_a_graph_has_no_tensor_of_more_axes_than_a_stack_of_blocks_needs():
    """TFLite of 2023 slices 5 axes at most, and lists of tensors become slices there."""
    import tensorflow as tf

    def run(x):
        return block_scan(lambda state, x: (state, x), ops.zeros((2,)), x, 1)[1]

    graph = tf.function(run).get_concrete_function(tf.TensorSpec((2, 3, 4, 5, 6))).graph
    stacked = [x.outputs[0] for x in graph.get_operations() if x.type == "TensorListStack"]
    assert stacked
    assert all(len(x.shape) == 3 for x in stacked)
