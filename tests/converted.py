"""What the tests of conversions share."""

import keras
import numpy as np

from keras_cosattn import SoftmaxAttention

EXACT = 1e-5  # float32 through a few blocks
SOFTMAX = SoftmaxAttention(1, 1, max_length=40)


def with_random_weights(model, spread=0.3):
    rng = np.random.default_rng(0)
    for w in model.weights:
        if keras.backend.is_float_dtype(w.dtype):
            w.assign(w + spread * rng.standard_normal(w.shape))
    return model


def kinds(model):
    """The classes of the layers that attend, by the names of the layers."""
    found = {}
    for layer in model._flatten_layers():
        if type(layer).__module__.startswith(
            ("keras_cosattn.attention", "keras.src.layers.attention")
        ):
            found[layer.name] = type(layer).__name__
    return found
