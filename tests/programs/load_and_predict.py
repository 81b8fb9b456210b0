"""Load a Keras model in a process that has imported nothing else, and write its outputs.

python load_and_predict.py model.keras x.npy y.npy
"""

import sys

import keras
import numpy as np

import keras_cosattn  # noqa: F401  registers the layers

model, x, y = sys.argv[1:]
np.save(y, keras.ops.convert_to_numpy(keras.models.load_model(model)(np.load(x))))
