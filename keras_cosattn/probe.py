"""Does a model give the same in pieces as in one call? If not, which layer is the reason?"""

import contextlib

import keras
import numpy as np
from keras import ops

TOLERANCES = {"float16": 2e-2, "bfloat16": 1e-1}  # 11 and 8 bits, through a few layers
FLOAT_TOLERANCE = 1e-4  # some hundred roundings of float32


def random_inputs(model, steps):
    """Two examples of random steps for a functional or sequential model.

    As many steps as asked for, unless the model fixes their number. Integers are zeros and ones.
    Raises ValueError if the model does not tell its inputs.
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


def declared_input(model):
    """What a functional or sequential model takes; None for a subclassed one."""
    if isinstance(model, keras.Sequential):
        return model.inputs[0]  # its `input` raises, though it has been called (Keras 3.15)
    return model.input if getattr(model, "inputs", None) else None


def difference(whole, pieces):
    """The largest difference between outputs and their pieces, relative to the largest output.

    inf where the pieces do not add up to the whole in time, the second axis.
    """
    worst = 0.0
    for x, *parts in zip(*(keras.tree.flatten(nest) for nest in (whole, *pieces)), strict=True):
        if any(len(part.shape) < 2 for part in parts):
            return np.inf
        joined = np.concatenate([_numpy(part) for part in parts], axis=1)
        if joined.shape != tuple(x.shape):
            return np.inf
        x = _numpy(x)
        worst = max(worst, np.abs(joined - x).max() / max(np.abs(x).max(), 1e-6))
    return worst


def tolerance(model):
    """How far pieces may be from the whole, for the model's precision."""
    return TOLERANCES.get(model.compute_dtype, FLOAT_TOLERANCE)


def reason(model, run_whole, run_pieces):
    """The first layer that gets the same input in pieces as in one call, and gives another output.

    Args:
        model: the model.
        run_whole: function that calls it once.
        run_pieces: generator function that calls it on one piece after the other.

    Returns the layer, or None if it is none of `model.layers` (nor of models among them).
    """
    with _recorded(model) as calls:
        run_whole()
    whole, pieces = list(calls), []
    with _recorded(model) as calls:
        for _ in run_pieces():
            pieces.append(list(calls))
            calls.clear()
    for (layer, inputs, outputs), *parts in zip(whole, *pieces, strict=False):
        limit = tolerance(model)
        if difference(inputs, [part[1] for part in parts]) > limit:
            continue
        if difference(outputs, [part[2] for part in parts]) > limit:
            return layer
    return None


@contextlib.contextmanager
def _recorded(model):
    """A list that fills with (layer, tensors in, tensors out) while the model is called."""
    calls = []

    def recorder(layer, call):
        def record(*args, **kwargs):
            outputs = call(*args, **kwargs)
            calls.append((layer, [x for x in args if ops.is_tensor(x)], outputs))
            return outputs

        return record

    layers = list(_layers(model))
    for layer in layers:
        layer.call = recorder(layer, layer.call)
    try:
        yield calls
    finally:
        for layer in layers:
            del layer.call


def _layers(model):
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer)
        elif not isinstance(layer, keras.layers.InputLayer):
            yield layer


def _numpy(x):
    return ops.convert_to_numpy(ops.cast(x, "float64"))
