"""What one file is to hold: the model, its signatures, and their sizes."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from keras_cosattn.export import sample_inputs
from keras_cosattn.export.export_options import SIGNATURES, ExportOptions, check_model
from keras_cosattn.export.model_identity import weights_id
from keras_cosattn.export.named_model import NamedModel
from keras_cosattn.export.sample_inputs import Sizes
from keras_cosattn.export.signatures import (
    InitialState,
    NextSteps,
    NextStepsInVariables,
    ResetVariables,
    Serve,
    ServeText,
    Signature,
    Tokenize,
)
from keras_cosattn.export.stream_state import zero_state
from keras_cosattn.export.text_input import TextInput
from keras_cosattn.export.whole_limit import max_whole_steps
from keras_cosattn.streaming import Streaming

PREFILL_STEPS = 58
"""The number of steps of `prefill` in a check where any number is taken."""

CHECKED_STEPS = sample_inputs.FEW_STEPS
"""The number of single steps in a check, after those of `prefill`."""


@dataclasses.dataclass(eq=False)
class ExportPlan:
    """What one file is to hold. `make_plan` makes it; nothing changes it.

    Attributes:
        named: The model as a function of named tensors.
        options: The options. `prefill_chunk` is at most what a stream holds.
        stream: The stream of the model, or `None`.
        whole_only: Why there is no stream, or `None`.
        functions: The name of each signature and its function.
        text: The tokenizer in front of the model, or `None`.
        variables: The name of each tensor of the state and its variable, in that form of the state.
        max_whole_steps: The number of valid steps that `serve` takes, or `None` for any.
        weights: sha256 of the model's weights and the layout of its state.
    """

    named: NamedModel
    options: ExportOptions
    stream: Streaming | None
    whole_only: str | None
    functions: dict[str, Signature]
    text: TextInput | None
    variables: dict[str, Any]
    max_whole_steps: int | None
    weights: str

    @property
    def model(self) -> keras.Model:
        """The Keras model."""
        return self.named.model

    @property
    def state_spec(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """The name of each tensor of the state, its shape without the batch axis and its dtype."""
        return {} if self.stream is None else self.stream.state_spec

    @property
    def streaming(self) -> Streaming:
        """The stream. Raises ValueError if the model has none."""
        if self.stream is None:
            raise ValueError(f"'{self.named.name}' has no stream: {self.whole_only}")
        return self.stream

    @property
    def streamed(self) -> list[str]:
        """The names of the signatures that continue a stream."""
        return [name for name in self.functions if name in ("prefill", "step")]

    def input_sizes(self, name: str) -> Sizes:
        """Names and sizes of the inputs of a signature."""
        return self.functions[name].inputs()

    def describe(self) -> dict[str, dict[str, dict[str, list[Any]]]]:
        """Signature -> `{"inputs": {name: [shape, dtype]}, "outputs": {name: [shape, dtype]}}`."""

        def listed(sizes: Sizes) -> dict[str, list[Any]]:
            return {name: [list(shape), dtype] for name, (shape, dtype) in sizes.items()}

        return {
            name: {"inputs": listed(function.inputs()), "outputs": listed(function.outputs())}
            for name, function in self.functions.items()
        }


def make_plan(
    model: keras.Model,
    sample: Any = None,
    options: ExportOptions | None = None,
    tokenizer: Any = None,
) -> ExportPlan:
    """Decide what a file holds.

    Args:
        model: A built Keras model on the TensorFlow backend.
        sample: Inputs for the checks; `None` draws some. They are repeated in time where a check
            needs more steps.
        options: The options; `None` is the default of each.
        tokenizer: As in `to_saved_model`. It adds the signatures of a text.

    Raises:
        ValueError: If the model cannot do what is asked.
    """
    options = options or ExportOptions()
    check_model(model)
    steps = (options.prefill_chunk or PREFILL_STEPS) + CHECKED_STEPS
    named = NamedModel(model, sample_inputs.make_sample(model, steps, sample))
    _check_sizes(named, options)
    names, stream, whole_only = _choose_signatures(named, options)
    options = _with_chunk_of_stream(options, stream)
    variables = _state_variables(stream, options)
    functions = _functions(names, named, stream, options, variables)
    text = None
    if tokenizer is not None:
        text = TextInput(tokenizer, named.any_size)
        text.check_range(named.call, named.named_inputs(named.sample))
        serve = Serve(named, options.batch_size, options.length)
        functions |= {"tokenize": Tokenize(serve, text), "serve_text": ServeText(serve, text)}
    whole = max_whole_steps(named) if {"serve", "serve_text"} & functions.keys() else None
    return ExportPlan(
        named, options, stream, whole_only, functions, text, variables, whole,
        weights_id(model, stream),
    )  # fmt: skip


def _check_sizes(named: NamedModel, options: ExportOptions) -> None:
    """Raise ValueError if the model has a batch size or a length of its own that is another one."""
    asked = {"batch_size": (0, options.batch_size), "length": (1, options.length)}
    for argument, (axis, size) in asked.items():
        own = {shape[axis] for shape, _ in named.any_size.values()} - {None, size}
        if size is not None and own:
            what = "steps" if axis else "examples"
            raise ValueError(
                f"'{named.name}' takes inputs of {own.pop()} {what}, not `{argument}`={size}. "
                f"Build it with Input((None, ...)), or give `{argument}` as it is in the model."
            )


def _choose_signatures(
    named: NamedModel, options: ExportOptions
) -> tuple[list[str], Streaming | None, str | None]:
    """The names of the signatures, the stream that they need, and why there is none."""
    asked, stream, whole_only = options.signatures, None, None
    names: list[str] = list(dict.fromkeys(asked or SIGNATURES))
    if set(names) - {"serve"}:
        try:
            stream = Streaming(
                named.model, named.sample, options.means, state_dtype=options.state_dtype
            )
        except ValueError as error:
            if asked is not None:
                raise
            names, whole_only = ["serve"], str(error)
    if options.one_signature and asked is None:
        names = ["serve"] if stream is None else ["step"]
    if options.one_signature and len(names) > 1:
        raise ValueError(f"The target knows one signature a file. Received: signatures={asked!r}")
    in_order: list[str] = [name for name in SIGNATURES if name in names]
    return in_order, stream, whole_only


def _with_chunk_of_stream(options: ExportOptions, stream: Streaming | None) -> ExportOptions:
    """Limit the steps of `prefill` to those that a stream holds."""
    chunk = options.prefill_chunk
    if chunk is None or stream is None or stream.max_steps is None:
        return options
    return dataclasses.replace(options, prefill_chunk=min(chunk, stream.max_steps))


def _state_variables(stream: Streaming | None, options: ExportOptions) -> dict[str, Any]:
    """Variables that hold the state, if it is to be held so."""
    if options.state_form != "variables" or stream is None:
        return {}
    if options.batch_size is None:
        raise ValueError("State in variables has one size: give `batch_size`. Received: None")
    import tensorflow as tf

    zeros = zero_state(stream, options.batch_size)
    return {name: tf.Variable(x, name=name) for name, x in zeros.items()}


def _functions(
    names: list[str],
    named: NamedModel,
    stream: Streaming | None,
    options: ExportOptions,
    variables: dict[str, Any],
) -> dict[str, Signature]:
    """The functions of the signatures, and of the one that begins a stream."""
    lengths = {"serve": options.length, "prefill": options.prefill_chunk, "step": 1}
    batch = options.batch_size

    def function(name: str) -> Signature:
        if name == "serve" or stream is None:
            return Serve(named, batch, lengths[name])
        if options.state_form == "variables":
            return NextStepsInVariables(named, stream, batch, lengths[name], variables)
        return NextSteps(named, stream, batch, lengths[name])

    found = {name: function(name) for name in names}
    if stream is None or not stream.state_spec or options.one_signature:
        return found
    if options.state_form == "variables":
        return {**found, "reset": ResetVariables(variables)}
    return {**found, "init": InitialState(stream, batch)}
