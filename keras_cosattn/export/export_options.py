"""What a caller asks of an export: the choices, and the checks that need no model."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any, Literal, get_args

import keras

from keras_cosattn.compact_state import StateDtype, check_state_dtype

SignatureName = Literal["serve", "prefill", "step"]
StateForm = Literal["tensors", "variables"]
TargetName = Literal["litert", "tflite-runtime", "gpu", "micro"]
QuantizationName = Literal["float16", "weight_int8", "dynamic_int8", "int8"]

SIGNATURES: tuple[SignatureName, ...] = get_args(SignatureName)


@dataclasses.dataclass
class ExportOptions:
    """Sizes, signatures and the form of the state of one export.

    Args:
        signatures: Sequence of names, or `None` for all that the model can do. The signature that
            begins a stream is added to them, unless `one_signature` is `True`.
        batch_size: int. The batch size of every call; `None` is any.
        length: int. The number of steps of `serve`; `None` is any.
        prefill_chunk: int. The number of steps of `prefill`; `None` is any.
        state_form: `"tensors"` or `"variables"`.
        one_signature: bool. Whether the runtime knows one signature in a file only.
        means: bool. As in `Streaming`.
        state_dtype: `"int8"`, `"int16"` or `None`, as in `Streaming`.

    Raises:
        ValueError: If an argument cannot be right for any model.
    """

    signatures: Sequence[SignatureName] | None = None
    batch_size: int | None = None
    length: int | None = None
    prefill_chunk: int | None = None
    state_form: StateForm = "tensors"
    one_signature: bool = False
    means: bool = False
    state_dtype: StateDtype | None = None

    def __post_init__(self) -> None:
        names = self.signatures
        if names is not None and (
            isinstance(names, str) or not names or set(names) - {*SIGNATURES}
        ):
            raise ValueError(
                f"`signatures` must be some of {SIGNATURES} in a list, or None. Received: {names!r}"
            )
        if self.state_form not in get_args(StateForm):
            raise ValueError(
                f"`state` must be one of {sorted(get_args(StateForm))}. "
                f"Received: {self.state_form!r}"
            )
        check_state_dtype(self.state_dtype)
        if self.state_dtype == "int16" and self.state_form == "variables":
            raise ValueError(
                "TFLite has no int16 variables. Give state='tensors', or state_dtype='int8'. "
                "Received: state='variables', state_dtype='int16'"
            )
        for name in ("batch_size", "length", "prefill_chunk"):
            setattr(self, name, _size(name, getattr(self, name)))


def check_model(model: Any) -> None:
    """Raise an error if `model` is no model that can be exported here.

    Raises:
        RuntimeError: If the backend of Keras is not TensorFlow.
        TypeError: If it is no Keras model.
        ValueError: If it is not built.
    """
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            "Exports need Keras on TensorFlow. Received: backend "
            f"'{keras.backend.backend()}'. Save the model as .keras, then load and export it "
            "in a process with KERAS_BACKEND=tensorflow."
        )
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"`model` must be a Keras model, such as one that `keras.models.load_model` returns. "
            f"Received: {model!r} of {type(model)}"
        )
    if not model.built:
        raise ValueError(
            f"'{model.name}' is not built. Call it once on an input, or give it a "
            "`keras.Input`, then export it."
        )


def _size(name: str, number: Any) -> int | None:
    """The number as an int, NumPy's integers too."""
    if number is None:
        return None
    try:
        found = operator.index(number)
    except TypeError:
        found = 0
    if found < 1 or isinstance(number, bool):
        raise ValueError(
            f"`{name}` must be an integer of at least 1, or None. Received: {number!r}"
        )
    return found
