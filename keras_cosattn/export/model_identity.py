"""What is the same for every file of one model, so that a state can move between them."""

from __future__ import annotations

import hashlib
import json

import keras
import numpy as np
from keras import ops

from keras_cosattn.streaming import Streaming


def weights_id(model: keras.Model, stream: Streaming | None) -> str:
    """The sha256 of the model's weights and of the layout of its state."""
    digest = hashlib.sha256()
    for weight in model.weights:
        digest.update(np.ascontiguousarray(ops.convert_to_numpy(weight)).tobytes())
    if stream is not None:
        digest.update(json.dumps(stream.state_spec, sort_keys=True).encode())
    return digest.hexdigest()
