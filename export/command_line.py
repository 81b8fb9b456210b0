"""What the recipes share: models and arrays out of files, and errors in one line."""

import os
import pathlib
import sys

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read when TensorFlow is imported


def load_model(path):
    """The Keras model in a .keras file. Raises ValueError if it cannot be read."""
    import keras

    import keras_cosattn  # noqa: F401  registers the layers

    try:
        return keras.models.load_model(path)
    except TypeError as error:  # what Keras raises for a class that it does not know
        raise ValueError(
            f"{path} cannot be built again: {error} If it has layers of your own, import them in a "
            "script that calls `keras_cosattn.export`."
        ) from error


def load_array(path):
    """The array in a .npy file. Raises ValueError if it is none."""
    with open(path, "rb") as file:
        try:
            return np.lib.format.read_array(file)
        except ValueError as error:
            raise ValueError(f"{path} is no array. Write it with `numpy.save`.") from error


def number_or_any(text):
    """None for "any", which leaves a size open."""
    return None if text == "any" else int(text)


def run(main):
    """Call `main`. What the library refuses becomes one line, and exit status 1."""
    try:
        main()
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f"{pathlib.Path(sys.argv[0]).name}: {' '.join(str(error).split())}")
