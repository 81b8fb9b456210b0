"""Inputs to check an export with, and the names and sizes of a model's inputs."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_cosattn import probe

FEW_STEPS = 12
"""The number of steps that a model should take at least."""


class TensorSize(NamedTuple):
    """The shape of a tensor, `None` where any size is taken, and its dtype."""

    shape: tuple[int | None, ...]
    dtype: str


Sizes = dict[str, TensorSize]
"""The name of each input or output and its size."""


def make_sample(model: keras.Model, steps: int, sample: Any = None) -> Any:
    """Return inputs of the model in NumPy.

    Args:
        model: A built Keras model.
        steps: int. The number of steps of a random sample. A model that does not take as many gets
            fewer.
        sample: Inputs of the user, which are returned in NumPy; `None` draws random ones.

    Raises:
        ValueError: If the user's inputs are no batches, or if the model takes no random input.
    """
    if sample is not None:
        sample = keras.tree.map_structure(ops.convert_to_numpy, sample)
        _check_rank(model, sample)
        return sample
    for length in (steps, FEW_STEPS, 2):
        sample = probe.random_inputs(model, length)
        try:
            model(sample, training=False)
        except ValueError as error:
            refusal = error
        else:
            return keras.tree.map_structure(ops.convert_to_numpy, sample)
    raise ValueError(
        f"'{model.name}' takes no random input of {steps}, {FEW_STEPS} or 2 steps, so an "
        f"export of it could not be checked. Give `sample`. {refusal}"
    )


def _check_rank(model: keras.Model, sample: Any) -> None:
    specs = keras.tree.flatten(probe.declared_input(model))
    for x, spec in zip(keras.tree.flatten(sample), specs, strict=False):
        if spec is not None and x.ndim != len(spec.shape):
            raise ValueError(
                "`sample` and `representative_data` hold batches. Expected shape "
                f"{tuple(spec.shape)}. Received: {x.shape}"
            )


def resize(x: np.ndarray, batch: int, steps: int) -> np.ndarray:
    """Repeat or cut `x (b, t, ...)` to `(batch, steps, ...)`."""
    return x[np.arange(batch) % x.shape[0]][:, np.arange(steps) % x.shape[1]]


def input_sizes(model: keras.Model, sample: Any) -> Sizes:
    """The name of each input and its size, with `None` where the model takes any."""
    flat, declared = keras.tree.flatten(sample), probe.declared_input(model)
    specs = [None] * len(flat) if declared is None else keras.tree.flatten(declared)
    found = {}
    for i, (x, spec) in enumerate(zip(flat, specs, strict=True)):
        name = "x" if len(flat) == 1 else spec.name if spec is not None else f"x_{i}"
        shape = (None, None, *x.shape[2:]) if spec is None else tuple(spec.shape)
        found[name] = TensorSize(shape, keras.backend.standardize_dtype(x.dtype))
    return found
