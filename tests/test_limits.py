"""Too many steps raise where the number is known, and fail before an optimizer step in graphs."""

import keras
import numpy as np
import pytest
from keras import ops
from support import BACKEND, compiled

from keras_cosattn import limits

needs_tensorflow = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="assertions in graphs are TensorFlow's"
)
MESSAGE = r"short: at most 8 steps. Received: 10 steps. Cut it."


class Short(keras.layers.Layer):
    """A layer that adds a vector to each of at most 8 valid steps."""

    def __init__(self, **options):
        super().__init__(name="short", **options)
        self.supports_masking = True

    def build(self, shape):
        self.vectors = self.add_weight(shape=(8, shape[-1]), initializer="ones")

    def compute_output_spec(self, x, mask=None):
        if mask is None:
            limits.check_steps(x, x.shape[1], 8, self.name, "Cut it.")
        return keras.KerasTensor(x.shape, x.dtype)

    def call(self, x, mask=None):
        valid = ops.shape(x)[1] if mask is None else ops.sum(ops.cast(mask, "int32"), axis=1)
        x = limits.check_steps(x, valid, 8, self.name, "Cut it.")
        steps = ops.minimum(ops.arange(ops.shape(x)[1]), 7)
        return x + ops.take(ops.convert_to_tensor(self.vectors), steps, axis=0)


def model_of(length, masked=False):
    x = keras.Input((length, 2))
    y = keras.layers.Masking()(x) if masked else x
    return keras.Model(x, Short()(y))


def test_a_known_number_of_steps_raises():
    x = np.ones((2, 10, 2), "float32")
    with pytest.raises(ValueError, match=MESSAGE):
        model_of(10)
    with pytest.raises(ValueError, match=MESSAGE):
        model_of(None)(x)
    with pytest.raises(ValueError, match=MESSAGE):
        model_of(10, masked=True)(x)
    if BACKEND == "torch":
        return  # `compiled` compiles for TensorFlow and JAX
    with pytest.raises(ValueError, match=MESSAGE):
        compiled(model_of(None))(x)


def test_masked_steps_do_not_count():
    x = np.ones((2, 10, 2), "float32")
    x[:, ::4] = 0
    assert np.isfinite(ops.convert_to_numpy(model_of(10, masked=True)(x))).all()
    assert model_of(10, masked=True)(x[:0]).shape == (0, 10, 2)


def test_limits_are_recorded_with_the_static_number_of_steps():
    with limits.recorded() as outer, limits.recorded() as inner:
        model_of(7)
        model_of(None)
    Short()(np.ones((1, 3, 2)))
    assert outer == inner
    assert set(inner) == {(8, 7), (8, None)}


@pytest.mark.skipif(BACKEND == "torch", reason="`compiled` is for TensorFlow and JAX")
def test_traced_values_are_not_checked():
    def check(x, steps):
        return limits.check_steps(x, steps, 8, "short", "Cut it.")

    x = np.ones((1, 10, 2), "float32")
    assert compiled(check)(x, np.int32(10)).shape == x.shape


@needs_tensorflow
@pytest.mark.parametrize("masked", [False, True])
def test_an_assertion_fails_before_the_optimizer_runs(masked):
    import tensorflow as tf

    model = model_of(None, masked)
    model.compile("sgd", "mse", jit_compile=False)
    x = tf.ones((2, 10, 2))
    data = tf.data.Dataset.from_generator(
        lambda: iter([(x, x)]), output_signature=(tf.TensorSpec((None, None, 2)),) * 2
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"short: more than 8 steps. Cut it."):
        model.fit(data, verbose=0)
    assert np.all(model.get_weights()[0] == 1)


@needs_tensorflow
@pytest.mark.parametrize("length", [None, 8])
@pytest.mark.parametrize("masked", [False, True])
def test_a_model_with_an_assertion_converts_with_builtin_operators(length, masked):
    import tensorflow as tf

    model = model_of(length, masked)
    function = tf.function(lambda x: model(x))
    concrete = function.get_concrete_function(tf.TensorSpec((1, length, 2)))
    assert any(op.type == "Assert" for op in concrete.graph.get_operations()) == (
        masked or length is None
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], function)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    assert converter.convert()
