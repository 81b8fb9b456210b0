"""Layers and models of a user's own class, with other attention layers in their attributes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
from keras.layers import Layer

from keras_cosattn.convert.clones import GRAPHS

Path = tuple[str, ...]


@keras.saving.register_keras_serializable("keras_cosattn")
class Rewired(keras.Model):
    """A layer of another class, in whose attributes other layers stand than its class puts there.

    A class that makes attention layers in its constructor makes them again when Keras loads it.
    This wrapper saves which layers take their place.

    Args:
        layer: The layer or model, not built.
        replaced: dict of the path of an attribute, such as `"blocks.0.attention"`, to the layer
            that takes its place, not built. A functional model is built.
        **kwargs: As for `keras.Model`, such as `name`.
    """

    def __init__(
        self, layer: Layer, replaced: Mapping[str, Layer] | None = None, **kwargs: Any
    ) -> None:
        policy = {"dtype": layer.dtype_policy, "autocast": layer.autocast}
        super().__init__(**{**policy, **kwargs})
        self._paths = [*(replaced or {})]
        for path, new in (replaced or {}).items():
            _put(layer, _parsed(path), new)
        self.layer = layer
        self.supports_masking = layer.supports_masking
        self.built = True  # the layer builds itself when it is called

    def call(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer(*args, **kwargs)

    def compute_mask(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer.compute_mask(*args, **kwargs)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        if not self.layer.built:
            self.layer(*args, **kwargs)
        return self.layer.compute_output_spec(*args, **kwargs)

    @property
    def replaced(self) -> dict[str, Layer]:
        """The layers that its class does not make, by the paths of their attributes."""
        return {path: attribute(self.layer, path) for path in self._paths}

    def get_config(self) -> dict[str, Any]:
        first: dict[int, str] = {}  # of the paths of a layer
        for path, new in self.replaced.items():
            first.setdefault(id(new), path)
        return {
            "layer": _saved(self.layer),
            "replaced": {
                path: _saved(new) if first[id(new)] == path else first[id(new)]
                for path, new in self.replaced.items()
            },
            "build_config_of_layer": self.layer.get_build_config(),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Rewired:
        layers: dict[str, Any] = {}
        for path, saved in {"": config["layer"], **config["replaced"]}.items():
            layers[path] = (
                layers[saved]
                if isinstance(saved, str)
                else keras.saving.deserialize_keras_object(saved, custom_objects)
            )
        new = cls(layers.pop(""), layers, name=config["name"])
        if config["build_config_of_layer"]:
            new.layer.build_from_config(config["build_config_of_layer"])
        return new


def attributes(layer: Layer, chosen: Callable[[Layer], bool]) -> Iterator[tuple[str, Layer]]:
    """Yield the path and the layer of each attribute of a layer that is a chosen layer.

    It looks into the attributes of other layers, and into lists, tuples and dicts.
    """
    yield from _attributes(layer, chosen, (), set())


def is_place(layer: Layer, selected: set[int]) -> bool:
    """Return whether the id of a layer is selected, or that of one in a functional model.

    Such a model is one place: its layers are in its graph, so a copy of it takes its place.
    """
    inside = layer._flatten_layers() if isinstance(layer, GRAPHS) else [layer]
    return not selected.isdisjoint(map(id, inside))


def attribute(layer: Layer, path: str) -> Any:
    """Return the attribute of a layer at a path."""
    return _get(layer, _parsed(path))


def why_fixed(layer: Layer, copy: Layer, path: str) -> str | None:
    """Return why nothing can take the place of the attribute of a layer; `None` if it can.

    Args:
        layer: The layer that has the attribute.
        copy: The layer made again by its constructor, in which something is to take the place.
        path: The path of the attribute.
    """
    name = f"`{path}` of a {type(layer).__name__}"
    if not _has(copy, path):
        return (
            f"it is the attribute {name}, which its constructor does not make. Make it there, not "
            "in `build`"
        )
    if isinstance(_get(copy, _parsed(path)[:-1]), tuple):
        return f"it is {name}, which is in a tuple. Keep it in a list"
    inner = attribute(layer, path)
    if isinstance(inner, GRAPHS) and _shares(layer, inner):
        return (
            f"it is {name}, and has layers that are in other attributes, too, which Keras would "
            "save as others. Keep them in one attribute"
        )
    return None


def _has(layer: Layer, path: str) -> bool:
    """Whether there is a layer at a path."""
    try:
        return isinstance(attribute(layer, path), Layer)
    except (AttributeError, IndexError, KeyError, ValueError):
        return False


def _shares(layer: Layer, model: keras.Model) -> bool:
    """Whether attributes of a layer outside a model inside lead to layers with weights in it."""
    within = {id(x) for x in model._flatten_layers(include_self=False) if x.weights}
    found = attributes(layer, lambda x: x is model or id(x) in within)
    return any(x is not model for _, x in found)


def _attributes(value, chosen, path, seen):
    if id(value) in seen:
        return
    seen.add(id(value))
    for key, item in _items(value):
        here = (*path, key)
        if isinstance(item, Layer) and chosen(item):
            yield ".".join(map(str, here)), item
        elif isinstance(item, (Layer, list, tuple, dict)):
            yield from _attributes(item, chosen, here, seen)


def _items(value):
    """The parts of a layer or a container with their names, without what Keras keeps for itself."""
    if isinstance(value, Layer):
        held = {**vars(value), **vars(value).get("_modules", {})}  # where PyTorch has the layers
        return [item for item in held.items() if not item[0].startswith(KERAS_OWN)]
    return list(value.items() if isinstance(value, dict) else enumerate(value))


KERAS_OWN = (
    "_tracker", "_layers", "_self_", "_inbound_nodes", "_outbound_nodes", "_auto_config",
    "_modules",
)  # fmt: skip
"""Attributes that begin so are those in which Keras keeps the same layers once more."""


def _parsed(path: str) -> Path:
    return tuple(path.split("."))


def _get(value: Any, path: Path) -> Any:
    for key in path:
        value = getattr(value, key) if isinstance(value, Layer) else value[_key(value, key)]
    return value


def _key(container: Any, key: str) -> Any:
    """The key of a list, tuple or dict that a part of a path names."""
    if isinstance(container, Mapping):
        return next((x for x in container if str(x) == key), key)
    return int(key)


def _put(value: Any, path: Path, new: Layer) -> None:
    *before, last = path
    owner = holder = value  # the layer that leads to the place, and what has the place
    for key in before:
        holder = _get(holder, (key,))
        owner = holder if isinstance(holder, Layer) else owner
    # A container inside a container does not tell Keras what it loses and gets.
    owner._tracker.untrack(_get(holder, (last,)))
    if isinstance(holder, Layer):
        setattr(holder, last, new)
    else:
        holder[_key(holder, last)] = new
        owner._tracker.track(new)


def _saved(layer: Layer) -> dict[str, Any]:
    """The saved form of a layer that is to be built later."""
    config = keras.saving.serialize_keras_object(layer)
    config.pop("build_config", None)
    return config
