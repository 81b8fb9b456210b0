"""The options of every Keras layer, for type checkers."""

from __future__ import annotations

from typing import Any, TypedDict


class LayerOptions(TypedDict, total=False):
    """Keyword arguments of `keras.layers.Layer`."""

    name: str | None
    trainable: bool
    dtype: Any
    autocast: bool
    activity_regularizer: Any
