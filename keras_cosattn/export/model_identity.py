"""What is the same for every file of one model, so that a state can move between them."""

from __future__ import annotations

import hashlib
import json

import keras

from keras_cosattn.fingerprint import weights_digest
from keras_cosattn.streaming import Streaming


def weights_id(model: keras.Model, stream: Streaming | None) -> str:
    """The sha256 of the model's weights and of the layout of its state."""
    digest = hashlib.sha256(weights_digest(model).encode())
    if stream is not None:
        digest.update(json.dumps(stream.state_spec, sort_keys=True).encode())
    return digest.hexdigest()
