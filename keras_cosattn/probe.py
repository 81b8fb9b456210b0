"""Compare a model's outputs on a whole input and in pieces, and find the layer that differs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, NoReturn

import keras
import numpy as np
from keras import ops

Tensor = Any
Nest = Any  # a tensor, or lists, tuples and dicts of tensors

TOLERANCES = {"float16": 2e-2, "bfloat16": 1e-1}  # 11 and 8 bits, through a few layers
FLOAT_TOLERANCE = 1e-4  # some hundred roundings of float32


class Call(NamedTuple):
    """One call of a layer."""

    layer: keras.layers.Layer
    args: tuple
    kwargs: dict[str, Any]
    outputs: Nest

    @property
    def inputs(self) -> list[Tensor]:
        """The tensors among the arguments."""
        return list(filter(ops.is_tensor, keras.tree.flatten((self.args, self.kwargs))))


def random_inputs(model: keras.Model, steps: int) -> Nest:
    """Return a random input of two examples for a functional or sequential model.

    Args:
        model: the model. Where it fixes a size, the input has that size.
        steps: int, the number of steps, where the model does not fix it.

    Returns:
        Tensors as the model takes them. Integers are zeros and ones.

    Raises:
        ValueError: If the model is subclassed, so that its inputs are unknown.
    """
    if not getattr(model, "inputs", None):
        raise ValueError(
            f"The inputs of '{model.name}', a subclassed model, are not known. Give `sample`, an "
            f"input with 2 examples and {steps} steps."
        )
    rng = np.random.default_rng(0)

    def draw(spec):
        defaults = (2, steps, *(1 for _ in spec.shape[2:]))
        shape = [n or default for n, default in zip(spec.shape, defaults, strict=False)]
        if keras.backend.is_float_dtype(spec.dtype):
            return ops.convert_to_tensor(rng.standard_normal(shape), dtype=spec.dtype)
        return ops.convert_to_tensor(rng.integers(0, 2, shape), dtype=spec.dtype)

    return keras.tree.map_structure(draw, declared_input(model))


def declared_input(model: keras.Model) -> Nest | None:
    """Return the symbolic inputs of a functional or sequential model, `None` for a subclassed."""
    if isinstance(model, keras.Sequential):
        return model.inputs[0]  # its `input` raises, though it has been called (Keras 3.15)
    return model.input if getattr(model, "inputs", None) else None


def token_inputs(model: keras.Model, tokens: Tensor, mask: Tensor) -> Nest:
    """Return token ids as a language model takes them.

    Args:
        model: a model from ids, or from a dict of ids and a padding mask as KerasHub's.
        tokens: integers `(b, t)`.
        mask: boolean `(b, t)`, `False` for padding.

    Raises:
        ValueError: If the model declares other inputs.
    """
    declared = declared_input(model)
    if isinstance(declared, dict) and set(declared) == {"token_ids", "padding_mask"}:
        return {"token_ids": tokens, "padding_mask": mask.astype("int32")}
    if declared is not None and keras.tree.is_nested(declared):
        raise ValueError(
            f"'{model.name}' must take token ids, alone or with a padding mask as models of "
            f"KerasHub do. Received: inputs {declared}"
        )
    return tokens


def difference(whole: Nest, pieces: Iterable[Nest]) -> float:
    """Return the largest difference, relative to the largest output.

    Args:
        whole: tensors `(b, t, ...)`.
        pieces: parts of the same tensors, cut along the second axis.

    Returns:
        A float; infinity where one of the two has NaN, or infinity and the other has not, and
        where the pieces do not have the length of the whole.
    """
    worst = 0.0
    for x, *parts in zip(*(keras.tree.flatten(nest) for nest in (whole, *pieces)), strict=True):
        if any(len(part.shape) < 2 for part in parts):
            return np.inf
        joined = np.concatenate([_numpy(part) for part in parts], axis=1)
        if joined.shape != tuple(x.shape):
            return np.inf
        x = _numpy(x)
        differ = joined != x
        largest = np.abs(x[np.isfinite(x)]).max(initial=1e-6)
        error = np.abs(joined[differ] - x[differ]).max(initial=0.0) / largest
        worst = max(worst, error if np.isfinite(error) else np.inf)
    return worst


def has_nan(nest: Nest) -> bool:
    """Return whether a tensor holds NaN."""
    return any(np.isnan(_numpy(x)).any() for x in keras.tree.flatten(nest))


def tolerance(model: keras.Model) -> float:
    """Return the largest difference that the precision of the model's layers explains."""
    dtypes = {layer.compute_dtype for layer in model._flatten_layers()}
    return max(TOLERANCES.get(dtype, FLOAT_TOLERANCE) for dtype in dtypes)


def refuse(
    model: keras.Model,
    whole: Nest,
    run_whole: Callable[[], Any],
    run_pieces: Callable[[], Iterable[Any]],
) -> NoReturn:
    """Raise ValueError with the reason why the outputs in pieces differ.

    Args:
        model: the model.
        whole: its outputs on the whole input.
        run_whole, run_pieces: as for `reason`.
    """
    if has_nan(whole):
        raise ValueError(
            f"'{model.name}' cannot be checked: its outputs on the test input hold NaN. "
            "Check its weights, or give a `sample`."
        )
    layer = reason(model, run_whole, run_pieces)
    where = (
        f"its layer '{layer.name}' ({type(layer).__name__})"
        if layer
        else "an operation outside its layers"
    )
    raise ValueError(
        f"'{model.name}' cannot stream: {where} gives other outputs step by step than on "
        "the whole input, so it looks ahead or forgets. Use this package's causal layers "
        "(attention with `use_causal_mask=True`, TransformerDecoder, CausalConv1D, "
        "CausalDepthwiseConv1D, PositionEmbedding, RunningMean) where steps are mixed."
    )


def reason(
    model: keras.Model, run_whole: Callable[[], Any], run_pieces: Callable[[], Iterable[Any]]
) -> keras.layers.Layer | None:
    """Return the first layer with the same input, but another output, in pieces.

    Args:
        model: the model.
        run_whole: function that calls it once.
        run_pieces: generator function that calls it once for each piece.

    Returns:
        A layer among `model.layers`, or among those of its submodels. `None` if none differs.
    """
    limit = tolerance(model)
    layers = list({id(layer): layer for layer in _layers(model)}.values())  # each one once
    with recorded(layers) as calls:
        run_whole()
    whole, pieces = list(calls), []
    with recorded(layers) as calls:
        for _ in run_pieces():
            pieces.append(list(calls))
            calls.clear()
    for call, *parts in zip(whole, *pieces, strict=False):
        if difference(call.inputs, [part.inputs for part in parts]) > limit:
            continue
        if difference(call.outputs, [part.outputs for part in parts]) > limit:
            return call.layer
    return None


def original(error: BaseException) -> BaseException:
    """Return the error that a layer raised. Keras puts its message into a longer one."""
    while error.__context__ is not None and str(error.__context__) in str(error):
        error = error.__context__
    return error


@contextlib.contextmanager
def recorded(layers: Iterable[keras.layers.Layer]) -> Iterator[list[Call]]:
    """Yield a list that fills with the calls of some layers.

    Args:
        layers: each layer once.
    """
    calls: list[Call] = []

    def recorder(layer, call):
        def record(*args, **kwargs):
            outputs = call(*args, **kwargs)
            calls.append(Call(layer, args, kwargs, outputs))
            return outputs

        return record

    layers = list(layers)
    own = {id(layer): vars(layer)["call"] for layer in layers if "call" in vars(layer)}
    for layer in layers:
        layer.call = recorder(layer, layer.call)
    try:
        yield calls
    finally:
        for layer in layers:
            del layer.call
            if id(layer) in own:
                layer.call = own[id(layer)]


def _layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer)
        elif not isinstance(layer, keras.layers.InputLayer):
            yield layer


def _numpy(x: Tensor) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(x)).astype("float64")
