"""The attention layers of a model, in one order, and their paths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import keras
from keras.layers import Layer

from keras_cosattn.attention import Attention
from keras_cosattn.convert.clones import GRAPHS
from keras_cosattn.convert.equivalents import class_of, equivalent_of
from keras_cosattn.convert.rewired import attributes


def attention_layers(model: keras.Model) -> list[Attention]:
    """Return the attention layers of a model, in the same order for each of its conversions.

    In place of an attention layer or block of Keras or KerasHub are the equal layers of this
    package, which are new.
    """
    return list(_attention_layers(model, set()))


def paths_of(model: keras.Model) -> dict[int, str]:
    """Return the path of each attention layer, by the id of the layer.

    Models inside a model may have layers of the same path. Then the rank of a layer among them
    follows its path.
    """
    parts = (attending_part(x) for x in model._flatten_layers() if equivalent_of(x) is not None)
    of_path: dict[str, list[int]] = {}
    for part in dict.fromkeys(parts):
        of_path.setdefault(part.path, []).append(id(part))
    return {
        layer: path if len(layers) == 1 else f"{path} ({rank})"
        for path, layers in of_path.items()
        for rank, layer in enumerate(layers)
    }


def attending_part(layer: Any) -> Layer:
    """Return the attention layer of a block of this package; another layer as it is."""
    return getattr(layer, "self_attention", layer)


def _attention_layers(layer: Layer, seen: set[Layer]) -> Iterator[Attention]:
    if layer in seen:
        return
    seen.add(layer)
    layer = _as_ours(layer)
    if isinstance(layer, Attention):
        yield layer
        return
    for inner in _inner_layers(layer):
        yield from _attention_layers(inner, seen)


def _as_ours(layer: Layer) -> Layer:
    """An attention layer or block of Keras or KerasHub as its equal; another layer as it is."""
    equivalent, (package, _) = equivalent_of(layer), class_of(layer)
    ours = isinstance(layer, Attention) or package == "keras_cosattn"
    return layer if equivalent is None or ours else equivalent(layer)


def _inner_layers(layer: Any) -> Iterable[Layer]:
    """The layers that a layer calls. A replacement changes the order in which Keras has them."""
    if isinstance(layer, GRAPHS):
        return layer.layers
    found = sorted(attributes(layer, lambda _: True), key=lambda item: (len(item[0]), item[0]))
    return [inner for _, inner in found]
