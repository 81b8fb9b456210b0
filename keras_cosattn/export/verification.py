"""An exported file beside its model once more: on its own sample, on a task, over a long stream."""

import dataclasses
import itertools
import pathlib

import keras
import numpy as np

from keras_cosattn import probe
from keras_cosattn.export import checks, data, runners, text
from keras_cosattn.export.plan import SIGNATURES, Plan
from keras_cosattn.export.precision import in_float32
from keras_cosattn.export.quantization import QUANTIZATIONS
from keras_cosattn.export.report import Report, describe
from keras_cosattn.export.targets import GPU, Micro


def verify(model, path, *, sample=None, dataset=None, metric=None, drift_steps=0, verbose=1):
    """Run an exported file again beside the Keras model it came from, and return a `Report`.

    On LiteRT, or what it was written for if that is TensorFlow or tflite-micro.

    Args:
        model: the model, on the TensorFlow backend.
        path: what `to_saved_model` or `to_tflite` wrote.
        sample: as there.
        dataset: batches of inputs and labels, as for `model.evaluate`: the accuracy of model and
            file on them, before and after the export.
        metric: function `(labels, outputs) -> array` of which the mean is that accuracy; None is
            whether the largest of the last axis is at the label.
        drift_steps: steps of a stream of random numbers (of `dataset`, if given, again and again)
            to run through both; the SQNR of its first and its last tenth, after a warm-up of as
            many steps.
        verbose: 1 prints the report, 0 does not.

    Raises ValueError if the file is not of this package, or differs from the model.
    """
    about = describe(path)
    tokenizer = text.of_file(path, about)
    plan = _plan(in_float32(model, sample), about, sample, tokenizer)
    least = QUANTIZATIONS[about["quantize"]].least_sqnr if about["quantize"] else None
    differences, sqnr = checks.compare(plan, _start(path, about))
    checks.accept(plan, differences, sqnr, least)
    kept = {name: about[name] for name in ("target", "quantize", "ops", "partitions", "peak_bytes")}
    report = Report.of(plan, path, differences, sqnr, arena_bytes=about["arena_bytes"], **kept)
    if dataset is not None:
        accuracy = _accuracy(plan, _start(path, about), dataset, metric)
        report = dataclasses.replace(report, accuracy=accuracy)
    if drift_steps:
        drift = _drift(plan, _start(path, about), dataset, drift_steps)
        report = dataclasses.replace(report, drift=drift)
    if verbose:
        print(report)
    return report


def _plan(model, about, sample, tokenizer):
    sizes = about["signatures"]
    length = chunk = None
    if "serve" in sizes:
        length = next(iter(sizes["serve"]["inputs"].values()))[0][1]
    if "prefill" in sizes:
        chunk = next(iter(sizes["prefill"]["inputs"].values()))[0][1]
    names = [name for name in SIGNATURES if name in sizes]
    alone = len(names) == len(sizes) == 1 and names != ["serve"]
    return Plan(
        model, names, sample, batch_size=about["batch_size"], length=length, prefill_chunk=chunk,
        state_form=about["state_form"], alone=alone, tokenizer=tokenizer,
        means=about["target"] == GPU.name,
    )  # fmt: skip


def _start(path, about):
    """The file on the runtime that it was written for; a GPU's or an older LiteRT's on LiteRT."""
    path = pathlib.Path(path)
    if path.is_dir():
        return runners.saved_model(path)
    if about["target"] != Micro.name:
        return runners.tflite(path)
    (ends,) = about["signatures"].values()
    content = path.read_bytes()[: about["content"]["bytes"]]
    names = list(ends["inputs"]), list(ends["outputs"])
    return runners.micro(content, names, about["arena_bytes"])


def _accuracy(plan, run, dataset, metric):
    """Of the model and of the file, on the same batches."""
    found = {"keras": [], "file": []}
    for x, labels in data.batches(dataset):
        if labels is None:
            raise ValueError("The accuracy needs labels. Give batches of (inputs, labels).")
        inputs = plan.named_inputs(x)
        outputs = plan.named_outputs(plan.model(plan.nest(inputs), training=False))
        for name, given in (("keras", outputs), ("file", _whole(plan, run, inputs))):
            (y, *others) = given.values()
            found[name].append(np.ravel((metric or _is_right)(labels, given if others else y)))
    return {name: float(np.mean(np.concatenate(values))) for name, values in found.items()}


def _is_right(labels, outputs):
    return np.argmax(outputs, axis=-1) == np.reshape(labels, outputs.shape[:-1])


def _whole(plan, run, inputs):
    """The file's outputs for whole inputs, by `serve` or else as a stream."""
    count = len(next(iter(inputs.values())))
    if "serve" in plan.functions and plan.batch_size is None:
        return run("serve", inputs)
    size, parts = plan.batch_size or count, []
    for start in range(0, count, size):
        rows = np.arange(start, start + size) % count  # the last batch is filled up
        group = {key: x[rows] for key, x in inputs.items()}
        whole = "serve" in plan.functions
        parts.append(run("serve", group) if whole else _streamed(plan, run, group))
    return {key: np.concatenate([part[key] for part in parts])[:count] for key in parts[0]}


def _streamed(plan, run, inputs):
    """The file's outputs for a stream from its start, in chunks and then steps."""
    steps = next(iter(inputs.values())).shape[1]
    ends, parts = [0], []
    if "prefill" in plan.functions:
        size = plan.prefill_chunk or steps
        ends += range(size, steps + 1, size)
    if "step" in plan.functions:
        ends += range(ends[-1] + 1, steps + 1)
    pieces = [
        ("prefill" if "prefill" in plan.functions and b - a == (plan.prefill_chunk or steps)
         else "step", a, b)
        for a, b in itertools.pairwise(ends)
    ]  # fmt: skip
    parts = [outputs for *_, outputs in checks.streamed(plan, run, pieces, inputs)]
    return {key: np.concatenate([part[key] for part in parts], axis=1) for key in parts[0]}


def _drift(plan, run, dataset, steps):
    """SQNR of a tenth of the stream after a tenth of warm-up, and of its last tenth."""
    if not plan.streamed:
        raise ValueError("The drift of a file without `prefill` and `step` cannot be measured.")
    if dataset is not None:
        base = next(data.batches(dataset))[0]
    elif getattr(plan.model, "inputs", None):
        base = keras.tree.map_structure(np.asarray, probe.random_inputs(plan.model, steps))
    else:
        base = plan.sample
    inputs = plan.fit(base, steps)
    found = _streamed(plan, run, inputs)
    expected = _keras_stream(plan, inputs)
    tenth = next(iter(found.values())).shape[1] // 10

    def part(start, end):
        cut = [{key: y[:, start:end] for key, y in ys.items()} for ys in (expected, found)]
        return checks.sqnr([cut])

    return {"first": part(tenth, 2 * tenth), "last": part(-tenth, None)}


def _keras_stream(plan, inputs, size=100):
    import tensorflow as tf

    state = plan.stream.initial_state(len(next(iter(inputs.values()))))
    step, parts = tf.function(plan.stream, reduce_retracing=True), []
    for start in range(0, next(iter(inputs.values())).shape[1], size):
        piece = {key: x[:, start : start + size] for key, x in inputs.items()}
        outputs, state = step(plan.nest(piece), state)
        parts.append(plan.named_outputs(outputs))
    return {key: np.concatenate([part[key] for part in parts], axis=1) for key in parts[0]}
