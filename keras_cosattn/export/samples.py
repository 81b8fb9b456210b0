"""Inputs to check an export with: as many steps as the model takes, or repeated."""

import keras
import numpy as np
from keras import ops

from keras_cosattn import probe

FEW = 12
"""Steps that a model should take at least."""


def longest(model, steps, sample):
    """`sample`, or random inputs of as many steps as the model takes, up to `steps`, in NumPy."""
    if sample is not None:
        sample = keras.tree.map_structure(ops.convert_to_numpy, sample)
        specs = keras.tree.flatten(probe.declared_input(model))
        for x, spec in zip(keras.tree.flatten(sample), specs, strict=False):
            if spec is not None and x.ndim != len(spec.shape):
                raise ValueError(
                    "`sample` and `representative_data` hold batches. Expected shape "
                    f"{tuple(spec.shape)}. Received: {x.shape}"
                )
        return sample
    for length in (steps, FEW, 2):
        sample = probe.random_inputs(model, length)
        try:
            model(sample, training=False)
        except ValueError as error:
            refusal = error
        else:
            return keras.tree.map_structure(ops.convert_to_numpy, sample)
    raise ValueError(
        f"'{model.name}' takes no random input of {steps}, {FEW} or 2 steps, so an "
        f"export of it could not be checked. Give `sample`. {refusal}"
    )


def with_size(x, batch, steps):
    """`x (b, t, ...)` repeated, or cut, to `(batch, steps, ...)`."""
    return x[np.arange(batch) % x.shape[0]][:, np.arange(steps) % x.shape[1]]


def sizes(model, sample):
    """Input name -> (shape with None where any size will do, dtype)."""
    flat, declared = keras.tree.flatten(sample), probe.declared_input(model)
    specs = [None] * len(flat) if declared is None else keras.tree.flatten(declared)
    found = {}
    for i, (x, spec) in enumerate(zip(flat, specs, strict=True)):
        name = "x" if len(flat) == 1 else spec.name if spec is not None else f"x_{i}"
        shape = (None, None, *x.shape[2:]) if spec is None else tuple(spec.shape)
        found[name] = shape, keras.backend.standardize_dtype(x.dtype)
    return found
