"""Identify a model by its architecture and its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

IGNORED = {"name", "trainable", "seed", "dropout", "rate", "build_config", "compile_config"}
IGNORED_ENDINGS = ("initializer", "regularizer", "constraint")
REFERENCES = {"keras_history", "input_layers", "output_layers"}
"""Entries of a configuration that name layers."""


def fingerprint(model: keras.Model) -> dict[str, str]:
    """Return what identifies a model's outputs.

    Args:
        model: a built model.

    Returns:
        A dict of two strings. `"architecture"` depends on the layers and their connections, not
        on names and on what only acts in training, such as dropout. `"weights"` depends on the
        values of all weights.
    """
    return {"architecture": _architecture(model), "weights": weights_digest(model)}


def _architecture(model: keras.Model) -> str:
    try:
        config = keras.saving.serialize_keras_object(model)
    except NotImplementedError:  # a subclassed model without `get_config`
        config = [type(layer).__name__ for layer in model._flatten_layers()]
    numbers: dict[str, str] = {}
    for name in _names(config):
        numbers.setdefault(name, f"layer {len(numbers)}")
    text = json.dumps(_without_names(config, numbers), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _names(config: Any) -> Iterator[str]:
    """Yield the names of all layers in a configuration, in their order."""
    if isinstance(config, dict):
        inner = config.get("config")
        if isinstance(inner, dict) and isinstance(inner.get("name"), str):
            yield inner["name"]
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for value in config:
            yield from _names(value)


def _without_names(config: Any, numbers: dict[str, str], refers: bool = False) -> Any:
    """Return a configuration with numbers for names, and without what only acts in training."""
    if isinstance(config, dict):
        return {
            key: _without_names(value, numbers, refers or key in REFERENCES)
            for key, value in config.items()
            if key not in IGNORED and not key.endswith(IGNORED_ENDINGS)
        }
    if isinstance(config, (list, tuple)):
        return [_without_names(value, numbers, refers) for value in config]
    return numbers.get(config, config) if refers and isinstance(config, str) else config


def weights_digest(model: keras.Model) -> str:
    """Return the sha256 of the values of all weights of a built model."""
    digest = hashlib.sha256()
    for weight in model.weights:
        value = np.ascontiguousarray(ops.convert_to_numpy(weight))
        digest.update(f"{value.dtype} {value.shape} ".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
