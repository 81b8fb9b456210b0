"""Models and arrays from files, with errors that a user understands."""

from __future__ import annotations

from typing import Any

import numpy as np


def load_model(path: str) -> Any:
    """The Keras model in a .keras file.

    Raises:
        ValueError: If the file does not exist, or if Keras cannot build its model.
    """
    import keras

    import keras_cosattn  # noqa: F401  registers the layers

    try:
        return keras.models.load_model(path)
    except TypeError as error:  # Keras raises it for a class that is not registered
        raise ValueError(
            f"The model in {path} cannot be built: {error} If it has layers of your own, import "
            "them in a script that calls `keras_cosattn.export`."
        ) from error


def load_array(path: str) -> np.ndarray:
    """The array in a .npy file.

    Raises:
        ValueError: If the file holds no array.
    """
    with open(path, "rb") as file:
        try:
            return np.lib.format.read_array(file)
        except ValueError as error:
            raise ValueError(f"{path} holds no array. Write it with `numpy.save`.") from error
