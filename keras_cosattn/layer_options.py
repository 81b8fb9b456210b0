"""The options of every Keras layer, for type checkers. Nothing imports this at run time."""

from __future__ import annotations

from typing import Any, TypedDict

from typing_extensions import Unpack

__all__ = ["LayerOptions", "Unpack"]


class LayerOptions(TypedDict, total=False):
    """Keyword arguments of `keras.layers.Layer`."""

    name: str
    trainable: bool
    dtype: Any
    autocast: bool
    activity_regularizer: Any
