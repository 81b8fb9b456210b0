"""A model as a TFLite file, for phones, watches and microcontrollers."""

import contextlib
import dataclasses
import io
import logging
import tempfile
import warnings

from keras_cosattn.export import checks, layout, quantization, runners, targets
from keras_cosattn.export.data import calibration
from keras_cosattn.export.data import representative_data as examples
from keras_cosattn.export.files import beside, content_id, size, zipped
from keras_cosattn.export.graph import Graph
from keras_cosattn.export.plan import Plan
from keras_cosattn.export.precision import in_float32
from keras_cosattn.export.report import Report, metadata


def to_tflite(
    model,
    path,
    *,
    target="litert",
    quantize=None,
    signatures=None,
    length=None,
    prefill_chunk=128,
    batch_size=1,
    state="tensors",
    representative_data=None,
    sample=None,
):
    """Write `model` as a TFLite file of builtin ops; `ai-edge-litert` is needed to check it.

    Args:
        model, signatures, sample: as `to_saved_model`. A model in half precision is built again in
            float32 with the same weights.
        path: the file; an older one there is replaced once the new one is complete.
        target: where it is to run, a name or an object of this module: `"litert"`,
            `"tflite-runtime"` (2.14), `"gpu"` (fixed shapes) or `"micro"` (tflite-micro: fixed
            shapes, and one signature, by default `"step"`). What it cannot load or would compute
            wrongly is refused here.
        quantize: None (float32), `"float16"`, `"weight_int8"`, `"dynamic_int8"` or `"int8"`, as
            far as the target runs it.
        length: of `serve`; None is any. Files of one length and batch are faster (XNNPACK then
            runs the whole graph, not parts of it), and hold their tables of positions.
        prefill_chunk: steps that `prefill` takes, at most those that the stream holds; None is any
            number, which costs memory for the longest.
        batch_size: of every call; None is any, which is slower.
        state: `"tensors"`, inputs and outputs of the same names, zeros at the start (signature
            `init` gives them), or `"variables"`, kept inside the interpreter until signature
            `reset` runs.
        representative_data: batches of inputs, a `tf.data.Dataset` or another iterable; `"int8"`
            takes its ranges from them, and every check its inputs.

    Returns a `Report`, and raises, as `to_saved_model`. The weights are stored once for all
    signatures, and the inputs and outputs of each in the order of the report, for runtimes that
    know them by number. A quantised file must keep an SQNR of 40 dB (float16), 20 dB (weight_int8),
    15 dB (dynamic_int8) or 10 dB (int8).
    """
    target = targets.get(target)
    way = quantization.get(quantize, target)
    data = None if representative_data is None else examples(representative_data)
    if way is not None and way.calibrated and data is None:
        raise ValueError(
            f"quantize='{way.name}' takes its ranges from data. Give `representative_data`, some "
            "batches of what the model will read. Received: None"
        )
    sample = sample if sample is not None or data is None else data[0]
    plan = Plan(
        in_float32(model, sample), signatures, sample, batch_size=batch_size, length=length,
        prefill_chunk=prefill_chunk, state_form=state, alone=target.one_signature,
        means=target.means,
    )  # fmt: skip
    target.check_shapes(plan, quantize)
    if way is not None and way.calibrated and plan.streamed and state == "variables":
        raise ValueError(
            f"The ranges of quantize='{way.name}' cannot be read from a file that keeps its state "
            "in variables. Give state='tensors', or quantize='weight_int8'. Received: "
            "state='variables'"
        )
    with beside(path) as new:
        content = _convert(plan, target, way, new, data)
        new.write_bytes(content)
        report = _checked(plan, target, way, content, new)
        text = metadata(report, content=content_id(content))
        new.write_bytes(content + zipped(text))
        runners.tflite(new)
    return dataclasses.replace(report, path=str(path), size=size(path))


def _convert(plan, target, way, new, data):
    """The bytes of the model, as the target takes it."""
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as saved:
        plan.write_saved_model(saved, for_tflite=True)
        converter = tf.lite.TFLiteConverter.from_saved_model(
            saved, signature_keys=list(plan.functions)
        )
        if plan.state_form == "variables":
            converter.experimental_enable_resource_variables = True
        if way is not None:
            way.configure(converter, target)
        content = converter.convert()
    if way is not None:
        new.write_bytes(content)
        seen = calibration(plan, runners.tflite(new), data) if way.calibrated else None
        with _silence():
            content = way.rewrite(content, target, seen)
    graph = Graph(content)
    target.rewrite(graph)
    target.refuse(graph)
    graph.forget_names()
    for name, ends in plan.describe().items():
        graph.sort_ends(name, ends["inputs"], ends["outputs"])
    # Interpreters use XNNPACK in no graph at all where the first has no ops, as `init`.
    graph.put_first(next(iter(plan.functions)))
    return graph.pack()


@contextlib.contextmanager
def _silence():
    """The quantiser prints its progress, and warns and logs what it does."""
    nowhere, log = io.StringIO(), logging.getLogger()
    quiet = contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere)
    with quiet[0], quiet[1], warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        handlers, log.handlers = log.handlers, [logging.NullHandler()]
        try:
            yield
        finally:
            log.handlers = handlers


def _checked(plan, target, way, content, path):
    """The report on a file that was accepted."""
    least = None if way is None else way.least_sqnr
    differences, sqnr = checks.compare(plan, runners.tflite(path))
    checks.accept(plan, differences, sqnr, least)
    graph = Graph(content)
    more = target.check(plan, graph, least)
    if "sqnr" in more:
        checks.accept(plan, more["differences"], more["sqnr"], least)
    layouts = {
        name: layout.allocated(graph, name, plan.checked_shapes(name)) for name in plan.functions
    }
    fields = {"differences": differences, "sqnr": sqnr, **more}
    return Report.of(
        plan,
        path,
        target=target.name,
        quantize=None if way is None else way.name,
        ops=graph.ops(),
        partitions={name: parts for name, (parts, _) in layouts.items()},
        peak_bytes={name: peak for name, (_, peak) in layouts.items()},
        **fields,
    )
