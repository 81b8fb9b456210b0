"""A functional or sequential model again, of other layers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import keras
from keras.layers import Layer

GRAPHS = keras.Sequential, keras.Function
"""The models that `clone` copies."""

STEPS = (
    "call", "compute_loss", "compute_metrics", "train_step", "test_step", "predict_step",
)  # fmt: skip
"""Methods whose own form in a user's class would be lost in a plain functional model."""


def clone(model: Any, layer_of: Callable[[Layer], Any], call: Callable[..., Any]) -> keras.Model:
    """Return a model of the same graph, not compiled.

    Args:
        model: A built functional or sequential model.
        layer_of: Function from a layer of `model` to the layer or function in its place.
        call: Function of such a layer, and the arguments of a call of the old one.

    Raises:
        ValueError: If the class of the model overrides how it computes or trains.
    """

    def again(x):
        layer = x._keras_history.operation
        return type(layer).from_config(layer.get_config()).output

    if isinstance(model, keras.Sequential):
        _refuse_overrides(model)
        layers = map(layer_of, model.layers)
        return keras.Sequential([again(model.inputs[0]), *layers], name=model.name)
    inputs = keras.tree.map_structure(again, model.input)
    outputs = model._run_through_graph(inputs, operation_fn=layer_of, call_fn=call)
    if {"inputs", "outputs"} <= set(inspect.signature(type(model).__init__).parameters):
        return type(model)(inputs, outputs, name=model.name)
    _refuse_overrides(model)
    return keras.Model(inputs, outputs, name=model.name)


def compile_like(copy: keras.Model, model: keras.Model) -> None:
    """Compile a model with the arguments of another one; its optimizer and metrics are new.

    Raises:
        ValueError: If one of them cannot be made again from its config.
    """
    if model.compiled:
        copy.compile(**keras.tree.map_structure(_again, dict(model._compile_config.config)))


def _again(part: Any) -> Any:
    """A new object of the same config, if it has a state; losses, names and numbers as they are."""
    if not isinstance(part, (keras.optimizers.Optimizer, keras.metrics.Metric)):
        return part
    return made_again(part, "The copy cannot be compiled as the model is")


def made_again(part: Any, problem: str) -> Any:
    """Return a new object of the same config. Raise ValueError, which begins with the problem."""
    try:
        return type(part).from_config(part.get_config())
    except Exception as error:  # whatever it is: a copy could not be loaded either
        raise ValueError(
            f"{problem}: '{part.name}' ({type(part).__name__}) cannot be made again from its "
            "own `get_config()`. Give the class one with all arguments of its constructor. Compile "
            "with an optimizer or a metric that lacks one after the conversion. "
            f"{type(error).__name__}: {error}"
        ) from error


def _refuse_overrides(model: keras.Model) -> None:
    for cls in type(model).__mro__:
        own = [name for name in STEPS if name in vars(cls)]
        if own and cls.__module__.split(".")[0] not in ("keras", "keras_hub"):
            raise ValueError(
                f"'{model.name}' cannot be converted: the copy would be a plain Keras model, "
                f"without the `{own[0]}` of {cls.__name__}. Convert "
                "`keras.Model(model.inputs, model.outputs)`, or give the class a constructor with "
                "the arguments `inputs`, `outputs` and `name`."
            )


def sharing_models(model: Any) -> list[Any]:
    """Return the models inside a functional model with layers that it calls itself, too."""
    inner = [layer for layer in model.layers if isinstance(layer, keras.Function)]
    own = {id(layer) for layer in model.layers}
    return [m for m in inner if own & {id(layer) for layer in m._flatten_layers()} - {id(m)}]


def refuse_adapted(model: keras.Model) -> None:
    """Raise ValueError if some weights are not those that a copy would have."""
    for layer in model._flatten_layers():
        lora = getattr(layer, "lora_enabled", False)
        if lora or layer.dtype_policy.quantization_mode is not None:
            done = "has LoRA weights" if lora else "is quantised"
            raise ValueError(
                f"'{model.name}' cannot be converted: its layer '{layer.name}' {done}. Convert the "
                "model before, then call `enable_lora` or `quantize` on the copy."
            )
