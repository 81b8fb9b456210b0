"""The weights of a layer by name, and from one layer to another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import keras
from keras import ops
from keras.layers import Layer

PROJECTIONS = ("query", "key", "value", "gate", "attention_output", "query_norm", "key_norm")
"""The layers inside an attention layer that a replacement takes over."""


def by_name(layer: Layer) -> dict[str, keras.Variable]:
    """Return the weights of a built layer by their paths inside it, such as `"query/kernel"`."""
    return {variable.path.removeprefix(f"{layer.path}/"): variable for variable in layer.weights}


def keep_frozen(layer: Layer, old: Layer) -> None:
    """Freeze a built layer if the old one is frozen.

    `trainable=False` in a config does not reach the weights that a layer makes later. Nor does an
    assignment that changes nothing.
    """
    if not old.trainable:
        layer.trainable = True
        layer.trainable = False


def freeze_like(layer: Layer, weights: Mapping[str, keras.Variable]) -> None:
    """Freeze those weights of a built layer that are frozen in `weights`, by name."""
    for name, variable in by_name(layer).items():
        if name in weights and not weights[name].trainable:
            variable.trainable = False


def assign(layer: Layer, values: Mapping[str, Any]) -> None:
    """Give a built layer the weights that it shares with `values`, arrays or weights by name.

    Weights that only the layer has keep their initial values. Those whose values are frozen weights
    are frozen.

    Raises:
        ValueError: If a weight has another shape there.
    """
    for name, variable in by_name(layer).items():
        if name in values:
            if tuple(variable.shape) != tuple(values[name].shape):
                raise ValueError(
                    f"'{layer.name}' cannot take over the weight '{name}' of the layer that it "
                    f"replaces. Its shape must be {tuple(values[name].shape)}. Received: "
                    f"{tuple(variable.shape)}. Build it with the sizes of that layer."
                )
            _take(variable, values[name])


def assign_in_order(new: Layer, old: Layer, without: Iterable[tuple[Layer, Layer]] = ()) -> None:
    """Give a built layer the weights of another one of its class, frozen where they are frozen.

    Names would not do: Keras numbers the layers inside that have none of their own.

    Args:
        new, old: The layers.
        without: Pairs of layers inside `new` and `old`, whose weights are left out.

    Raises:
        ValueError: If the layers have other weights.
    """
    left_out = {id(x) for pair in without for layer in pair for x in layer.weights}
    ours, theirs = ([x for x in layer.weights if id(x) not in left_out] for layer in (new, old))
    shapes = [[tuple(x.shape) for x in weights] for weights in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"'{old.name}' ({type(old).__name__}) cannot be copied: when it is made again from its "
            "`get_config()` it has other weights. Make all of them in the constructor or `build`. "
            f"Their shapes must be {shapes[1]}. Received: {shapes[0]}"
        )
    for variable, value in zip(ours, theirs, strict=True):
        _take(variable, value)


def _take(variable: keras.Variable, value: Any) -> None:
    # A copy: JAX would share the array, and end it in both when one of the models trains.
    variable.assign(ops.copy(value))
    if isinstance(value, keras.Variable) and not value.trainable:
        variable.trainable = False


def build_like(new: Layer, old: Layer, values: Mapping[str, Any] | None = None) -> Layer:
    """Build a layer for the inputs of another one, and give it `values`, as `assign` does.

    Without `values` it gets the weights of the other layer, in their order.
    """
    config = old.get_build_config()
    shapes = config.get("shapes_dict") or {"input_shape": config["input_shape"]}
    with_shapes = [shape for shape in shapes.values() if shape is not None]
    new.build(*map(tuple, with_shapes))
    if values is None:
        assign_in_order(new, old)
    else:
        assign(new, values)
    return new
