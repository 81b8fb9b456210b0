"""The options and the call of every Keras layer, for type checkers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict, TypeVar

Function = TypeVar("Function")


class LayerOptions(TypedDict, total=False):
    """Keyword arguments of `keras.layers.Layer`."""

    name: str | None
    trainable: bool
    dtype: Any
    autocast: bool
    activity_regularizer: Any


def signature_of(function: Function) -> Callable[[Any], Function]:
    """Return a decorator that gives a method the signature of `function`.

    Keras declares `Layer.__call__` with any arguments. Type checkers read a declared method of a
    subclass, while pyright ignores an assignment such as `__call__ = call`.
    """
    return lambda _: function
