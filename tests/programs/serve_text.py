"""Tokenize and serve texts with a SavedModel, and save the ids and the outputs.

python serve_text.py FOLDER TEXTS.npy FOUND.npz [MODULE ...]

The modules are imported before the model is loaded.
"""

import importlib
import sys

import numpy as np
import tensorflow as tf

folder, texts, found, *modules = sys.argv[1:]
for name in modules:
    importlib.import_module(name)
signatures = tf.saved_model.load(folder).signatures
texts = tf.constant(np.load(texts, allow_pickle=True))
(ids,) = signatures["tokenize"](text=texts).values()
np.savez(found, ids=ids, y=signatures["serve_text"](text=texts)["y"])
