"""A model as a TFLite file, for phones, watches and microcontrollers."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import keras

from keras_cosattn.atomic_write import atomic_write
from keras_cosattn.compact_state import StateDtype
from keras_cosattn.export import datasets, file_runners
from keras_cosattn.export.calibration import calibration_calls
from keras_cosattn.export.conversion import convert
from keras_cosattn.export.export_options import (
    ExportOptions,
    QuantizationName,
    SignatureName,
    StateForm,
    TargetName,
    check_model,
)
from keras_cosattn.export.export_plan import ExportPlan, make_plan
from keras_cosattn.export.file_check import check_file
from keras_cosattn.export.file_metadata import content_id, size_on_disk, zip_of
from keras_cosattn.export.float32_copy import in_float32
from keras_cosattn.export.overwrite_checks import check_tflite_file
from keras_cosattn.export.quantization import QuantizationScheme, get_quantization
from keras_cosattn.export.report import Report, description_of
from keras_cosattn.export.target_rewrite import rewrite_for_target
from keras_cosattn.export.targets import LiteRT, get_target


def to_tflite(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    target: TargetName | LiteRT = "litert",
    quantize: QuantizationName | QuantizationScheme | None = None,
    signatures: Sequence[SignatureName] | None = None,
    length: int | None = None,
    prefill_chunk: int | None = 128,
    batch_size: int | None = 1,
    state: StateForm = "tensors",
    state_dtype: StateDtype | None = None,
    representative_data: Iterable[Any] | None = None,
    sample: Any = None,
) -> Report:
    """Write a model as a TFLite file of builtin ops. `ai-edge-litert` is needed to check it.

    The weights are stored once for all signatures. The inputs and outputs of each signature are in
    the order of the report, for runtimes that know them by number. A quantised file must keep an
    SQNR of 40 dB (float16), 20 dB (weight_int8), 15 dB (dynamic_int8) or 10 dB (int8).

    Args:
        model: A built Keras model on the TensorFlow backend. A model that does not compute in
            float32 is built again in float32 with the same weights. A model that
            `keras.Model.quantize` changed is refused.
        path: str or path. The file. An older TFLite file there is replaced once the new one is
            complete.
        target: Where the file is to run, a name or an object of this module: `"litert"`,
            `"tflite-runtime"` (2.14), `"gpu"` (fixed shapes) or `"micro"` (tflite-micro: fixed
            shapes, and one signature, by default `"step"`). What it cannot load or would compute
            wrongly is refused. Defaults to `"litert"`.
        quantize: `None` (float32), `"float16"`, `"weight_int8"`, `"dynamic_int8"` or `"int8"`, as
            far as the target runs it. Defaults to `None`.
        signatures: Sequence of names, as in `to_saved_model`. Defaults to `None`.
        length: int. The number of steps of `serve`; `None` is any. Files of one length and batch
            size are faster (XNNPACK then runs the whole graph, not parts of it), and hold their
            tables of positions. Defaults to `None`.
        prefill_chunk: int. The number of steps that `prefill` takes, at most those that the stream
            holds; `None` is any number, which costs memory for the longest. Defaults to `128`.
        batch_size: int. The batch size of every call; `None` is any, which is slower. Defaults to
            `1`.
        state: `"tensors"`, inputs and outputs of the same names, zeros at the start (signature
            `init` gives them), or `"variables"`, kept inside the interpreter until signature
            `reset` runs. Defaults to `"tensors"`.
        state_dtype: `"int8"` or `"int16"`, as in `Streaming`: the state takes about a third or
            half of the memory. The outputs of the stream must then keep an SQNR of 20 or 40 dB.
            Not for the target `"gpu"`; int16 not with `state="variables"`. Defaults to `None`.
        representative_data: Batches of inputs, a `tf.data.Dataset` or another iterable. `"int8"`
            takes its ranges from them, and every check its inputs. Defaults to `None`.
        sample: Inputs for the checks, as in `to_saved_model`. Defaults to `None`.

    Returns:
        A `Report`. Its `max_steps` and `max_whole_steps` are the limits of the file.

    Raises:
        ValueError: If the model or the target cannot do what is asked, or the file computes
            something else.
        ImportError: If a package is missing that makes or checks the file.
        FileExistsError: If there is something else at `path` than a TFLite file.
        OSError: If the path cannot be written. An older file stays whole.

    Example:
    >>> import pathlib, tempfile
    >>> x = keras.Input((None, 3))
    >>> model = keras.Model(x, keras.layers.Dense(2)(x))
    >>> path = pathlib.Path(tempfile.mkdtemp(), "model.tflite")
    >>> report = to_tflite(model, path, signatures=["serve"])
    >>> report.signatures["serve"]["inputs"]
    {'x': [[1, None, 3], 'float32']}
    """
    target = get_target(target)
    scheme = get_quantization(quantize, target.quantizations, target.name)
    options = ExportOptions(
        signatures, batch_size, length, prefill_chunk, state, target.one_signature, target.means,
        state_dtype,
    )  # fmt: skip
    examples = None
    if representative_data is not None:
        examples = datasets.representative_data(representative_data)
    if scheme is not None and scheme.calibrated and examples is None:
        raise ValueError(
            f"quantize='{scheme.name}' takes its ranges from data. Give `representative_data`, "
            "some batches of what the model will read. Received: None"
        )
    if sample is None and examples is not None:
        sample = examples[0]
    target.check_installed()
    if scheme is not None:
        scheme.check_installed()
    with atomic_write(path, check=check_tflite_file) as new:
        check_model(model)
        plan = make_plan(in_float32(model, sample), sample, options)
        _check_plan(plan, target, scheme)
        content = convert(plan, target.name, scheme)
        if scheme is not None:
            content = _quantize(content, plan, target, scheme, examples, new)
        content = rewrite_for_target(content, plan, target)
        new.write_bytes(content)
        report = check_file(new, plan, target, scheme)
        description = description_of(report, content=content_id(content))
        new.write_bytes(content + zip_of(description))
        file_runners.tflite_runner(new)
    return dataclasses.replace(report, path=str(path), size=size_on_disk(path))


def _check_plan(plan: ExportPlan, target: LiteRT, scheme: QuantizationScheme | None) -> None:
    """Raise ValueError if the target cannot run the sizes, or the scheme the form of the state."""
    target.check_shapes(plan, None if scheme is None else scheme.name)
    in_variables = plan.streamed and plan.options.state_form == "variables"
    if scheme is not None and scheme.calibrated and in_variables:
        raise ValueError(
            f"The ranges of quantize='{scheme.name}' cannot be read from a file that keeps its "
            "state in variables. Give state='tensors', or quantize='weight_int8'. Received: "
            "state='variables'"
        )


def _quantize(
    content: bytes,
    plan: ExportPlan,
    target: LiteRT,
    scheme: QuantizationScheme,
    examples: list[Any] | None,
    scratch: pathlib.Path,
) -> bytes:
    """The bytes of the quantised model, with the ranges of its numbers on the examples."""
    calls = None
    if scheme.calibrated:
        scratch.write_bytes(content)
        calls = calibration_calls(plan, file_runners.tflite_runner(scratch), examples or ())
    return scheme.rewrite(content, target.name, calls)
