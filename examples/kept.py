"""Parts of a run that are made once, and read when the program runs again."""

import numpy as np

from keras_cosattn.atomic_write import atomic_write


def arrays(path, make):
    """Return the arrays that `make()` returned when it was first called for this path.

    Args:
        path: `pathlib.Path` of an npz file. Its folder is made where there is none.
        make: function without arguments that returns a dict of arrays.
    """
    if not path.exists():
        print(f"making {path.stem}, once", flush=True)
        found = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as new, open(new, "wb") as file:
            np.savez_compressed(file, **found)
    with np.load(path) as file:
        return dict(file)


def numbers(path, make):
    """As `arrays`, for a dict of numbers."""
    return {name: float(x) for name, x in arrays(path, make).items()}


def learned(path, model, train):
    """Train a model, or give it the weights that it learned in an earlier run.

    Args:
        path: as in `arrays`.
        model: a Keras model. Its trainable weights are kept.
        train: function without arguments that trains it and returns a dict of numbers.

    Returns:
        What `train` returned when it was called.
    """

    def make():
        found = train()
        weights = enumerate(model.trainable_weights)
        return {**found, **{f"weight {i}": np.asarray(w) for i, w in weights}}

    found = arrays(path, make)
    for i, weight in enumerate(model.trainable_weights):
        weight.assign(found.pop(f"weight {i}"))
    return {name: float(x) for name, x in found.items()}
