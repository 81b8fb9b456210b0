"""An exported file and its model once more: on a sample, on labelled data, over a long stream."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import keras

from keras_cosattn.export import checks, file_runners
from keras_cosattn.export.accuracy import Metric, measure_accuracy
from keras_cosattn.export.drift import measure_drift
from keras_cosattn.export.export_options import SIGNATURES, ExportOptions, check_model
from keras_cosattn.export.export_plan import make_plan
from keras_cosattn.export.file_metadata import describe, read_content
from keras_cosattn.export.float32_copy import in_float32
from keras_cosattn.export.quantization import QUANTIZATIONS
from keras_cosattn.export.report import Report, make_report
from keras_cosattn.export.targets import GPU, Micro
from keras_cosattn.export.text_input import tokenizer_in_file

KEPT = ("target", "quantize", "ops", "partitions", "peak_bytes", "arena_bytes")
"""Fields of the report that are read from the file's description."""


def verify(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    sample: Any = None,
    dataset: Iterable[Any] | None = None,
    metric: Metric | None = None,
    drift_steps: int = 0,
    verbose: int = 1,
) -> Report:
    """Run an exported file again, compare it with the Keras model, and return a `Report`.

    The file runs on LiteRT, or on TensorFlow or tflite-micro if it was written for them.

    Args:
        model: The Keras model on the TensorFlow backend.
        path: str or path. What `to_saved_model` or `to_tflite` wrote.
        sample: Inputs, as in `to_saved_model`. Defaults to `None`.
        dataset: Batches of inputs and labels, as for `model.evaluate`. The report then has the
            accuracy of the model and of the file on them. Defaults to `None`.
        metric: Function `(labels, outputs) -> array`, of which the mean is the accuracy. `None` is
            whether the largest entry of the last axis is at the label. Defaults to `None`.
        drift_steps: int. The number of steps of a stream of random numbers (of `dataset`, if it is
            given, again and again) to run through both; 0 runs none. The report then has the SQNR
            of a tenth of the stream after a tenth of warm-up, and of its last tenth. Defaults to
            `0`.
        verbose: 1 prints the report, 0 does not. Defaults to `1`.

    Raises:
        ValueError: If this package did not write the file, or it differs from the model.

    Example:
    >>> import pathlib, tempfile
    >>> from keras_cosattn.export import to_saved_model
    >>> x = keras.Input((None, 3))
    >>> model = keras.Model(x, keras.layers.Dense(2)(x))
    >>> path = pathlib.Path(tempfile.mkdtemp(), "model")
    >>> report = to_saved_model(model, path, signatures=["serve"])
    >>> verify(model, path, verbose=0).largest_difference < 1e-5
    True
    """
    about = describe(path)
    check_model(model)
    tokenizer = tokenizer_in_file(path, about)
    plan = make_plan(in_float32(model, sample), sample, _options_of(about), tokenizer)
    least = QUANTIZATIONS[about["quantize"]].least_sqnr if about["quantize"] else None
    comparison = checks.compare(plan, _start(path, about))
    reason = checks.why_not(plan, comparison, least)
    if reason is not None:
        raise ValueError(
            f"{path}, an export of '{plan.named.name}' computes something else than the model. "
            f"{reason} Was the model trained since, or is the file one of another model?"
        )
    report = make_report(plan, path, comparison, **{name: about[name] for name in KEPT})
    if dataset is not None:
        accuracy = measure_accuracy(plan, _start(path, about), dataset, metric)
        report = dataclasses.replace(report, accuracy=accuracy)
    if drift_steps:
        drift = measure_drift(plan, _start(path, about), dataset, drift_steps)
        report = dataclasses.replace(report, drift=drift)
    if verbose:
        print(report)
    return report


def _options_of(about: dict[str, Any]) -> ExportOptions:
    """The options with which a file was written."""
    sizes = about["signatures"]

    def steps(name: str) -> int | None:
        return next(iter(sizes[name]["inputs"].values()))[0][1] if name in sizes else None

    names = [name for name in SIGNATURES if name in sizes]
    return ExportOptions(
        names,
        batch_size=about["batch_size"],
        length=steps("serve"),
        prefill_chunk=steps("prefill"),
        state_form=about["state_form"],
        one_signature=len(names) == len(sizes) == 1 and names != ["serve"],
        means=about["target"] == GPU.name,
        state_dtype=about["state_dtype"],
    )


def _start(path: str | os.PathLike[str], about: dict[str, Any]) -> checks.Run:
    """The file on its runtime. LiteRT also runs files for a GPU or for tflite-runtime."""
    path = pathlib.Path(path)
    if path.is_dir():
        return file_runners.saved_model_runner(path)
    content = read_content(path, about)
    if about["target"] != Micro.name:
        return file_runners.tflite_runner(path)
    (ends,) = about["signatures"].values()
    names = list(ends["inputs"]), list(ends["outputs"])
    return file_runners.micro_runner(content, names, about["arena_bytes"])
