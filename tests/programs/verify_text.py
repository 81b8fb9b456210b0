"""Verify the text signature of a SavedModel, with the Keras model from its own file.

python verify_text.py MODEL.keras FOLDER
"""

import sys

import keras

from keras_cosattn import export

path, folder = sys.argv[1:]
model = keras.models.load_model(path)
assert export.verify(model, folder, verbose=0).differences["serve_text"] < 1e-5
