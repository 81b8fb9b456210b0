"""Stream a SavedModel over an input: 13 steps at once, then step by step. Save the outputs.

python stream_saved_model.py FOLDER X.npy Y.npy
"""

import sys

import numpy as np
import tensorflow as tf

AT_ONCE = 13

folder, x, y = sys.argv[1:]
signatures, x = tf.saved_model.load(folder).signatures, np.load(x)
state = {
    name: tf.zeros([len(x), *spec.shape[1:]], spec.dtype)
    for name, spec in signatures["step"].structured_input_signature[1].items()
    if name != "x"
}
found = dict(signatures["prefill"](x=tf.constant(x[:, :AT_ONCE]), **state))
outputs = [found.pop("y")]
for i in range(AT_ONCE, x.shape[1]):
    found = dict(signatures["step"](x=tf.constant(x[:, i : i + 1]), **found))
    outputs.append(found.pop("y"))
np.save(y, np.concatenate(outputs, axis=1))
