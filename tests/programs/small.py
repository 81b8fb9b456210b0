"""The small model that the programs train, and its data."""

import keras
import numpy as np

from keras_cosattn import CosFormerAttention, TransformerDecoder

STEPS, CHANNELS, CLASSES, BATCH = 12, 6, 3, 4


def build(dtype=None):
    """A causal model `(b, t, 6) -> (b, t, 3)` with the same first weights at every call."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((None, CHANNELS))
    attention = CosFormerAttention(2, 4, horizon=8, dtype=dtype)
    x = TransformerDecoder(16, attention=attention, dtype=dtype)(x)
    return keras.Model(inputs, keras.layers.Dense(CLASSES, dtype="float32")(x))


def data(count=4 * BATCH):
    """Inputs `(count, 12, 6)` and targets that depend on the steps before."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, STEPS, CHANNELS)).astype("float32")
    return x, np.cumsum(x[..., :CLASSES], axis=1) / np.arange(1, STEPS + 1)[:, None]


def fit(model, count=4 * BATCH, epochs=2, **options):
    """The losses of training `model` on the first `count` examples, in this order."""
    if not model.compiled:
        model.compile(keras.optimizers.SGD(0.1), "mse", **options)
    x, y = data(count)
    history = model.fit(x, y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0)
    return history.history["loss"]
