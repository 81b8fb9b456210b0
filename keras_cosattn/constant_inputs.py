"""The inputs of a model that are the same at every step of a stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

Tensor = Any
Nest = Any


class ConstantInputs:
    """The constant inputs of a functional model, such as an encoder's outputs.

    Args:
        model: The model.
        names: Strings, the names of the constant inputs. None of them if the model has none.

    Raises:
        ValueError: If the model has no input of a name, or no other input.
    """

    def __init__(self, model: keras.Model, names: Sequence[str]) -> None:
        self.names = (names,) if isinstance(names, str) else tuple(names)
        if not self.names:
            return
        self._specs = {spec.name: spec for spec in getattr(model, "inputs", None) or ()}
        self._others = [name for name in self._specs if name not in self.names]
        if set(self.names) - set(self._specs) or not self._others:
            raise ValueError(
                f"`constants` must name some, not all, of the inputs {list(self._specs)} of the "
                f"functional model '{model.name}'. Received: constants={list(self.names)}"
            )
        self._structure = model.input

    def split(self, inputs: Nest) -> tuple[Nest, dict[str, Tensor]]:
        """Return the inputs of the stream, one tensor or a dict by name, and the constant ones."""
        if not self.names:
            return inputs, {}
        given = dict(zip(self._specs, keras.tree.flatten(inputs), strict=True))
        constants = {name: given.pop(name) for name in self.names}
        return (given if len(given) > 1 else given[self._others[0]]), constants

    def join(self, inputs: Nest, constants: Mapping[str, Tensor] | None) -> Nest:
        """Return the inputs of the model. Without constants, one step of zeros stands for each."""
        given = dict(inputs) if isinstance(inputs, Mapping) else self._by_name(inputs)
        batch = ops.shape(next(iter(given.values())))[0]
        for name in self.names:
            given[name] = self._zeros(name, batch) if constants is None else constants[name]
        flat = [ops.convert_to_tensor(given[name]) for name in self._specs]
        return keras.tree.pack_sequence_as(self._structure, flat)

    def first_step(self, batch: int) -> Nest:
        """Return one step of zeros for the inputs of the stream."""
        zeros = {name: self._zeros(name, batch) for name in self._others}
        return zeros if len(zeros) > 1 else zeros[self._others[0]]

    def check(self, constants: Mapping[str, Tensor], batch: int) -> dict[str, Tensor]:
        """Return the constant inputs. Raises ValueError unless there is one for each name."""
        if set(constants) != set(self.names):
            raise ValueError(
                f"`constants` must have a value for each of {list(self.names)}. "
                f"Received: {sorted(constants)}"
            )
        for name, x in constants.items():
            if x.shape[0] != batch:
                raise ValueError(
                    f"`constants['{name}']` must have batch size {batch}. "
                    f"Received: shape {tuple(x.shape)}"
                )
        return dict(constants)

    def _by_name(self, inputs):
        found = inputs if isinstance(inputs, list | tuple) else [inputs]
        if len(found) != len(self._others):
            raise ValueError(
                f"The stream reads the inputs {self._others}: give a list of them, or a dict. "
                f"Received: {len(found)} inputs"
            )
        return dict(zip(self._others, found, strict=True))

    def _zeros(self, name, batch):
        spec = self._specs[name]
        return ops.zeros((batch, spec.shape[1] or 1, *spec.shape[2:]), spec.dtype)
