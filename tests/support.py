"""What the tests share: comparison by the largest magnitude, and gradients on every backend."""

import contextlib

import keras
import numpy as np

from keras_cosattn import Streaming

BACKEND = keras.backend.backend()


def assert_close(actual, expected, tolerance=1e-5):
    """Every difference is at most `tolerance` times the largest magnitude of `expected`.

    So an entry that is small by cancellation is held to the precision of what cancelled.
    """
    actual, expected = map(keras.ops.convert_to_numpy, (actual, expected))
    assert actual.shape == expected.shape
    worst = np.max(np.abs(actual - expected), initial=0.0)
    largest = np.max(np.abs(expected), initial=0.0)
    assert worst <= tolerance * largest, f"{worst:.3g} is more than {tolerance:g} of {largest:.3g}"


def value_and_gradients(function, g, *arrays):
    """`function(*arrays)` and the gradients of `sum(function(*arrays) * g)`, in NumPy."""
    if BACKEND == "tensorflow":
        value, gradients = _by_tape(function, g, arrays)
    elif BACKEND == "jax":
        value, gradients = _by_jax(function, g, arrays)
    else:
        value, gradients = _by_autograd(function, g, arrays)
    to_numpy = keras.ops.convert_to_numpy
    return to_numpy(value), [to_numpy(gradient) for gradient in gradients]


def gradients(function, *arrays):
    """The gradients of the scalar `function(*arrays)`, in NumPy."""
    return value_and_gradients(function, np.float32(1), *arrays)[1]


def compiled(function):
    """`function` of arrays, compiled by XLA; on PyTorch, which Keras does not compile, as it is."""
    if BACKEND == "torch":
        return function
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    import tensorflow as tf

    return tf.function(function, jit_compile=True, autograph=False)


def traced(function):
    """`function` of arrays that are no longer known as one object where they were one.

    On TensorFlow and JAX it is a graph, on PyTorch, which has none, a call with copies.
    """
    if BACKEND == "torch":
        return lambda *arrays: function(*map(keras.ops.copy, arrays))
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    import tensorflow as tf

    return tf.function(function, autograph=False)


def pure(layer, *args, **kwargs):
    """The layer's outputs; with dropout, the same numbers are dropped at every call."""
    trainable = [v.value for v in layer.trainable_variables]
    rest = [v.value for v in layer.non_trainable_variables]
    args = map(keras.ops.convert_to_tensor, args)  # as a call does that is not stateless
    return layer.stateless_call(trainable, rest, *args, **kwargs)[0]


def streamed(model, x, cuts):
    """The outputs of `model` on `x`, read piece by piece in a stream."""
    stream = Streaming(model)
    state, outputs = stream.initial_state(len(x)), []
    for piece in np.split(x, cuts, axis=1):
        y, state = stream(piece, state)
        outputs.append(y)
    return np.concatenate(outputs, axis=1)


def _by_tape(function, g, arrays):
    import tensorflow as tf

    def run(*arrays):
        with tf.GradientTape() as tape:
            tape.watch(arrays)
            value = function(*arrays)
        unused = tf.UnconnectedGradients.ZERO
        return value, tape.gradient(value, arrays, g, unconnected_gradients=unused)

    return run(*map(tf.convert_to_tensor, arrays))


def _by_jax(function, g, arrays):
    import jax

    @jax.jit
    def run(*arrays):
        value, pull_back = jax.vjp(function, *arrays)
        return value, pull_back(jax.numpy.asarray(g, value.dtype))

    return run(*map(jax.numpy.asarray, arrays))


def _by_autograd(function, g, arrays):
    import torch

    tensors = [keras.ops.convert_to_tensor(x).detach().requires_grad_() for x in arrays]
    with torch.enable_grad():
        value = function(*tensors)
    g = keras.ops.broadcast_to(keras.ops.cast(g, value.dtype), value.shape)
    return value, torch.autograd.grad(value, tensors, g, materialize_grads=True)


def compiled_on_jax(function):
    """`function`, compiled where that is quicker than compiling each operation by itself."""
    if BACKEND != "jax":
        return function
    import jax

    return jax.jit(function)


def call(layer, *inputs, **options):
    """The layer's outputs, on JAX from one program: it would compile each operation by itself."""
    if BACKEND != "jax":
        return layer(*inputs, **options)
    if all(x is inputs[0] for x in inputs):
        return compiled_on_jax(lambda x: pure(layer, *[x] * len(inputs), **options))(inputs[0])
    return compiled_on_jax(lambda *inputs: pure(layer, *inputs, **options))(*inputs)


@contextlib.contextmanager
def float64():
    """Where float64 arrays keep their precision: JAX cuts them to float32 elsewhere."""
    if BACKEND != "jax":
        yield
        return
    import jax

    with jax.enable_x64(True):
        yield


def random_mask(rng, kind, b, length):
    """`(b, length)`: real steps with padding "left", "right", as "holes"; or none, "empty".

    None is None. With "empty" the first example has no real step at all.
    """
    if kind is None:
        return None
    step, kept = np.arange(length), rng.integers(1, length + 1, (b, 1))
    mask = {
        "right": step < kept,
        "left": step >= length - kept,
        "holes": rng.random((b, length)) < 0.7,
        "empty": np.broadcast_to(step < kept, (b, length)),
    }[kind].copy()
    if kind == "empty":
        mask[0] = False
    return mask


def random_segments(rng, b, length):
    """`(b, length)` ids of some runs of awkward lengths; the same id comes back later."""
    return (np.cumsum(rng.random((b, length)) < 4 / length, axis=1) % 3).astype("int32")


def layer_weights(layer, trainable=None):
    """The weights of an attention layer as `references.projected` takes them, in float64.

    Pairs of kernel and bias for its projections; all else by its name, in "more"; and a list of
    such dicts for its `paths`, if it has some. `trainable` are arrays to take in place of the
    layer's trainable variables.
    """
    own = [] if trainable is None else layer.trainable_variables
    given = {id(w): x for w, x in zip(own, trainable or (), strict=True)}

    def exact(x):
        x = given.get(id(x), x)
        return np.asarray(keras.ops.convert_to_numpy(x), np.float64)

    return _weights_by_name(layer, exact)


def _weights_by_name(layer, exact):
    if hasattr(layer, "paths"):
        paths = [_weights_by_name(path, exact) for path in layer.paths]
        return {"paths": paths, "more": {"route_kernel": exact(layer.route_kernel)}}
    parts = {
        "query": layer.query_dense,
        "value": layer.value_dense,
        "attention_output": layer.output_dense,
    }
    if not layer.shares_query_and_key:
        parts["key"] = layer.key_dense
    pairs = {
        name: (exact(part.kernel), exact(np.zeros(()) if part.bias is None else part.bias))
        for name, part in parts.items()
    }
    projections = {id(w) for part in parts.values() for w in part.weights}
    rest = [w for w in layer.weights if id(w) not in projections]
    names = [w.name for w in rest]
    # With the name of the layer that they are in, and without it where no other has their name.
    more = {"/".join(w.path.split("/")[-2:]): exact(w) for w in rest}
    more |= {w.name: exact(w) for w in rest if names.count(w.name) == 1}
    return {**pairs, "more": more} if more else pairs
