"""Differentiate a function that `keras.remat` computes again for its gradient, on JAX."""

import os

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np
from programs import small

from keras_cosattn import CosFormerAttention

assert keras.backend.backend() == "jax"
layer = CosFormerAttention(2, 4, horizon=8)
x, _ = small.data(2)


def attend(x):
    return layer(x, x, use_causal_mask=True)


def loss(x, function):
    return (function(x) ** 2).sum()


attend(x)
gradient = jax.jit(jax.grad(loss), static_argnums=1)
np.testing.assert_allclose(gradient(x, keras.remat(attend)), gradient(x, attend), atol=1e-5)
