"""The signatures of a file. Each class is a function of named tensors that tells its sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from keras_cosattn.export.named_model import NamedModel
from keras_cosattn.export.sample_inputs import Sizes, TensorSize
from keras_cosattn.export.stream_state import state_sizes
from keras_cosattn.export.text_input import TextInput
from keras_cosattn.streaming import Streaming


class Signature(Protocol):
    """What every signature has."""

    def inputs(self) -> Sizes:
        """Names and sizes of the inputs."""

    def outputs(self) -> Sizes:
        """Names and sizes of the outputs."""


@dataclasses.dataclass(eq=False)
class Serve:
    """The model on the whole input.

    Args:
        named: The model.
        batch_size: int. `None` is any.
        length: int. The number of steps; `None` is any.
    """

    named: NamedModel
    batch_size: int | None
    length: int | None

    def inputs(self) -> Sizes:
        return self.named.input_sizes(self.batch_size, self.length)

    def outputs(self) -> Sizes:
        return self.named.output_sizes(self.inputs())

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return self.named.call(inputs)


@dataclasses.dataclass(eq=False)
class ServeText:
    """The model on the ids that a tokenizer gives for a text."""

    serve: Serve
    text: TextInput

    def inputs(self) -> Sizes:
        return self.text.sizes

    def outputs(self) -> Sizes:
        return self.serve.outputs()

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return self.serve(self.text.ids(inputs["text"]))


@dataclasses.dataclass(eq=False)
class Tokenize:
    """The tokenizer alone."""

    serve: Serve
    text: TextInput

    def inputs(self) -> Sizes:
        return self.text.sizes

    def outputs(self) -> Sizes:
        return self.serve.inputs()

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return self.text.ids(inputs["text"])


@dataclasses.dataclass(eq=False)
class NextSteps:
    """The next steps of a stream. The state is an input, and the new state an output.

    Args:
        named: The model.
        stream: The stream.
        batch_size: int. `None` is any.
        length: int. The number of steps; `None` is any.
    """

    named: NamedModel
    stream: Streaming
    batch_size: int | None
    length: int | None

    def inputs(self) -> Sizes:
        return self._steps() | state_sizes(self.stream, self.batch_size)

    def outputs(self) -> Sizes:
        return self.named.output_sizes(self._steps()) | state_sizes(self.stream, self.batch_size)

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        outputs, state = self._continue(
            inputs, {key: inputs[key] for key in self.stream.state_spec}
        )
        return {**outputs, **state}

    def _steps(self) -> Sizes:
        return self.named.input_sizes(self.batch_size, self.length)

    def _continue(
        self, inputs: Mapping[str, Any], state: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        outputs, new_state = self.stream(self.named.nest(inputs), state)
        return self.named.name_outputs(outputs), new_state


@dataclasses.dataclass(eq=False)
class NextStepsInVariables(NextSteps):
    """The next steps of a stream. The state stays in variables of the file.

    Args:
        named, stream, batch_size, length: As in `NextSteps`.
        variables: The name of each tensor of the state and its variable.
    """

    variables: Mapping[str, Any]

    def inputs(self) -> Sizes:
        return self._steps()

    def outputs(self) -> Sizes:
        return self.named.output_sizes(self._steps())

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        state = {name: variable.value() for name, variable in self.variables.items()}
        outputs, state = self._continue(inputs, state)
        for name, value in state.items():
            self.variables[name].assign(value)
        return outputs


@dataclasses.dataclass(eq=False)
class InitialState:
    """The state before the first step."""

    stream: Streaming
    batch_size: int | None

    def inputs(self) -> Sizes:
        return {} if self.batch_size else {"batch_size": TensorSize((), "int32")}

    def outputs(self) -> Sizes:
        return state_sizes(self.stream, self.batch_size)

    def __call__(self, inputs: Mapping[str, Any] | None = None) -> dict[str, Any]:
        import tensorflow as tf

        batch = self.batch_size or (inputs or {})["batch_size"]
        return {
            name: tf.zeros(tf.stack([batch, *shape]), dtype)
            for name, (shape, dtype) in self.stream.state_spec.items()
        }


@dataclasses.dataclass(eq=False)
class ResetVariables:
    """Set the state in variables to zeros, so that a new stream begins."""

    variables: Mapping[str, Any]

    def inputs(self) -> Sizes:
        return {}

    def outputs(self) -> Sizes:
        return {"steps": TensorSize((), "int32")}

    def __call__(self) -> dict[str, Any]:
        import tensorflow as tf

        for variable in self.variables.values():
            variable.assign(tf.zeros_like(variable))
        return {"steps": tf.zeros((), "int32")}
