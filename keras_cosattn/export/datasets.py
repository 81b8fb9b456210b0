"""Examples of what a model will read, from a `tf.data.Dataset` or any iterable of batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np


def batches(data: Iterable[Any]) -> Iterator[tuple[Any, np.ndarray | None]]:
    """Yield the inputs and the labels, or `None`, of every batch, in NumPy.

    An element is the inputs, or a tuple that begins with the inputs and the labels, as for
    `model.fit`.
    """
    for element in data:
        x, y = element[:2] if isinstance(element, tuple) else (element, None)
        yield keras.tree.map_structure(np.asarray, x), y if y is None else np.asarray(y)


def representative_data(dataset: Iterable[Any], count: int = 16) -> list[Any]:
    """Return the inputs of the first examples of a dataset, for `to_tflite`.

    Args:
        dataset: A `tf.data.Dataset` or another iterable of batches, as for `model.fit`.
        count: int. The largest number of examples. Defaults to `16`.

    Returns:
        A list of inputs, each of shape `(1, t, ...)`.

    Raises:
        ValueError: If the dataset is empty, or `count` is less than 1.

    Example:
    >>> batch = np.zeros((3, 5, 2), "float32")
    >>> [x.shape for x in representative_data([batch], count=2)]
    [(1, 5, 2), (1, 5, 2)]
    """
    if count < 1:
        raise ValueError(f"`count` must be at least 1. Received: {count}")

    def examples() -> Iterator[Any]:
        for x, _ in batches(dataset):
            for i in range(len(keras.tree.flatten(x)[0])):
                yield keras.tree.map_structure(lambda array, i=i: array[i : i + 1], x)

    found = list(itertools.islice(examples(), count))
    if not found:
        raise ValueError("The representative data are empty. Give at least one batch of inputs.")
    return found
