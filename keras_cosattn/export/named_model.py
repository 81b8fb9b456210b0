"""A Keras model as a function from named tensors to named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_cosattn import limits
from keras_cosattn.export.sample_inputs import Sizes, TensorSize, input_sizes


class NamedModel:
    """A model whose inputs and outputs have the names that an exported file gives them.

    One input is called `x` and one output `y`. Several have their names in the model; outputs in a
    dict have its keys.

    Args:
        model: A built Keras model.
        sample: Inputs of the model, in NumPy.

    Attributes:
        any_size: The name of each input and its size in the model.
        recorded_limits: Pairs (limit, steps) of the layers that limit the number of steps, as
            `keras_cosattn.limits.recorded` gives them for the sample.
    """

    def __init__(self, model: keras.Model, sample: Any) -> None:
        self.model, self.sample = model, sample
        self.any_size = input_sizes(model, sample)
        with limits.recorded() as self.recorded_limits:
            outputs = model(sample, training=False)
        self._outputs = self.numpy_outputs(outputs)

    @property
    def name(self) -> str:
        """The name of the model."""
        return self.model.name

    @property
    def sample_steps(self) -> int:
        """The largest number of steps of an input of the sample."""
        return max(x.shape[1] for x in keras.tree.flatten(self.sample))

    def call(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The model's named outputs for named inputs."""
        return self.name_outputs(self.model(self.nest(inputs), training=False))

    def expected(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The model's named outputs for named inputs, in NumPy."""
        return {name: ops.convert_to_numpy(y) for name, y in self.call(inputs).items()}

    def nest(self, inputs: Mapping[str, Any]) -> Any:
        """Named inputs in the structure that the model takes."""
        return keras.tree.pack_sequence_as(self.sample, [inputs[name] for name in self.any_size])

    def named_inputs(self, nest: Any) -> dict[str, np.ndarray]:
        """Inputs in the structure that the model takes, by name and in NumPy."""
        flat = keras.tree.flatten(nest)
        return {name: np.asarray(x) for name, x in zip(self.any_size, flat, strict=True)}

    def name_outputs(self, nest: Any) -> dict[str, Any]:
        """Outputs of the model by name."""
        flat = keras.tree.flatten(nest)
        if isinstance(nest, dict) and len(nest) == len(flat) > 1:
            return {name: keras.tree.flatten(y)[0] for name, y in nest.items()}
        return dict(zip(self._output_names(len(flat)), flat, strict=True))

    def numpy_outputs(self, nest: Any) -> dict[str, np.ndarray]:
        """Outputs of the model by name and in NumPy."""
        return {name: ops.convert_to_numpy(y) for name, y in self.name_outputs(nest).items()}

    def input_sizes(self, batch_size: int | None, length: int | None) -> Sizes:
        """Sizes of the inputs in a call; `None` is any."""
        return {
            name: TensorSize((shape[0] or batch_size, shape[1] or length, *shape[2:]), dtype)
            for name, (shape, dtype) in self.any_size.items()
        }

    def output_sizes(self, inputs: Sizes) -> Sizes:
        """Sizes of the outputs for inputs of such sizes."""
        (batch, length, *_), _ = next(iter(inputs.values()))
        steps = keras.tree.flatten(self.sample)[0].shape[1]
        sizes = {}
        for name, y in self._outputs.items():
            in_time = y.ndim > 1 and y.shape[1] == steps
            rest = (length, *y.shape[2:]) if in_time else y.shape[1:]
            sizes[name] = TensorSize((batch, *rest), str(y.dtype))
        return sizes

    def _output_names(self, count: int) -> list[str]:
        names = ["y"] if count == 1 else list(getattr(self.model, "output_names", None) or ())
        return names if len(set(names)) == count else [f"y_{i}" for i in range(count)]
