"""What is needed of a model's outputs, computed batch by batch inside the compiled call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

Tensor = Any
Nest = Any  # a tensor, or lists, tuples and dicts of tensors


def read_outputs(
    model: keras.Model, read: Callable[..., Tensor], x: Nest, *more: Any, batch_size: int
) -> np.ndarray:
    """Return `read(model(x), *more)` of all examples, so that large outputs are not kept.

    Args:
        model: The model. It is called without dropout.
        read: Function from the outputs and `more` of a batch to a tensor `(b, ...)`.
        x: Inputs of the model.
        *more: Tensors `(b, ...)`, cut into batches as `x`.
        batch_size: int.
    """
    reader = _Reader(model, read)
    # XLA would compile each model and length anew. Without it, JAX would compile nothing.
    reader.compile(jit_compile=keras.backend.backend() == "jax")
    return np.asarray(reader.predict([x, *more], batch_size=batch_size, verbose=0))


def perplexity(
    model: keras.Model, x: Nest, y: Any, *, mask: Any = None, batch_size: int = 8
) -> float:
    """Return the perplexity of a language model, `exp(mean of -log p(y))`.

    Args:
        model: A model from tokens to logits `(b, t, V)`.
        x: Inputs of the model.
        y: Integers `(b, t)`, the token that each step should predict.
        mask: Boolean `(b, t)`, `False` where `y` does not count and may hold anything. Defaults to
            `None`, all count.
        batch_size: int. Defaults to `8`.

    Raises:
        ValueError: If nothing counts, or the shapes do not fit together.
    """
    y = np.asarray(ops.convert_to_numpy(y))
    counts = np.ones(y.shape, "bool") if mask is None else ops.convert_to_numpy(mask).astype("bool")
    steps = tuple(keras.tree.flatten(x)[0].shape[:2])
    if not steps == y.shape == counts.shape:
        raise ValueError(
            "`x`, `y` and `mask` must have the same examples and steps (b, t). Received: "
            f"x of shape {steps}, y of shape {y.shape}, mask of shape {counts.shape}"
        )
    if not counts.any():
        raise ValueError(f"No token of `y` counts. Received: y of shape {y.shape}")
    known = np.where(counts, y, 0)  # what does not count is often marked by -100, no token
    losses = read_outputs(model, _losses, x, known, batch_size=batch_size)
    return float(np.exp(np.mean(losses[counts], dtype="float64")))


class _Reader(keras.Model):
    """A model followed by a function of its outputs."""

    def __init__(self, model: keras.Model, read: Callable[..., Tensor]) -> None:
        super().__init__(name="reader", autocast=False)
        self.model, self.read = model, read
        self.built = True

    def call(self, inputs: list[Any]) -> Tensor:
        x, *more = inputs
        return self.read(self.model(x, training=False), *more)


def _losses(logits: Tensor, y: Tensor) -> Tensor:
    logits = ops.cast(logits, "float32")
    return keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
