"""Train in `keras.RematScope` on JAX, which computes activations again for the gradient."""

import os

os.environ["KERAS_BACKEND"] = "jax"

import keras
import numpy as np
from programs import small

assert keras.backend.backend() == "jax"
with keras.RematScope(mode="full"):
    model = small.build()
np.testing.assert_allclose(small.fit(model), small.fit(small.build()), rtol=1e-5)
