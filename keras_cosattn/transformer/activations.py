"""Activations of published models that Keras has no name for."""

from __future__ import annotations

from typing import Any

import keras

Tensor = Any


@keras.saving.register_keras_serializable("keras_cosattn", "gelu_approximate")
def gelu_approximate(x: Tensor) -> Tensor:
    """Return `x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2`.

    Hendrycks and Gimpel, 2016, section 2.
    """
    return keras.activations.gelu(x, approximate=True)
