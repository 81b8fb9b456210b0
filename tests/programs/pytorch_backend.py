"""Train and stream on the PyTorch backend."""

import os

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
from programs import small

from keras_cosattn import Streaming

assert keras.backend.backend() == "torch"
model = small.build()
losses = small.fit(model, epochs=8)
assert losses[-1] < 0.8 * losses[0], losses

x, _ = small.data(2)
stream = Streaming(model)
state, outputs = stream.initial_state(2), []
for piece in np.split(x, [5, 6, 7], axis=1):
    y, state = stream(piece, state)
    outputs.append(keras.ops.convert_to_numpy(y))
whole = model.predict(x, verbose=0)
np.testing.assert_allclose(np.concatenate(outputs, axis=1), whole, atol=1e-5)
