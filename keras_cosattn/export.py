"""Keras models as files that run without Keras: SavedModel for servers, TFLite for devices."""

import contextlib
import dataclasses
import io
import json
import pathlib
import shutil
import tempfile
import zipfile

import keras
import numpy as np
from keras import ops

import keras_cosattn
from keras_cosattn import probe
from keras_cosattn.streaming import Streaming

METADATA = "keras_cosattn.json"
"""The description of a file: in a SavedModel under `assets.extra/`; in a TFLite file, where its own
metadata standard puts files, in a zip archive behind the model: `unzip -p FILE keras_cosattn.json`.
"""

SIGNATURES = ("serve", "prefill", "step")

SAMPLE_LENGTHS = (70, 12, 2)
"""Steps to check with: more than a chunk, if the model takes that many."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What was exported, and how far it is from the Keras model.

    Attributes:
        path: the file or folder.
        size: bytes on disk.
        signatures: name -> `{"inputs": {name: [shape, dtype]}, "outputs": {name: [shape, dtype]}}`.
        state: names of the inputs and outputs that are state.
        state_bytes: size of one example's state.
        batch_size: of `prefill` and `step`; None is any.
        max_steps: steps after which a stream is full; None if it has no end.
        differences: signature -> largest difference to the Keras model on random input, relative
            to the model's largest output.
        whole_only: why there are no `prefill` and `step`; None if there are, or none were wanted.
    """

    path: str
    size: int
    signatures: dict
    state: list
    state_bytes: int
    batch_size: int | None
    max_steps: int | None
    differences: dict
    whole_only: str | None

    @property
    def largest_difference(self):
        """Over all signatures."""
        return max(self.differences.values())


def to_saved_model(model, path, *, signatures=None, sample=None):
    """Write `model` as a SavedModel that loads without Keras and without this package.

    Args:
        model: a built model on the TensorFlow backend.
        path: the folder; an older SavedModel there is replaced once the new one is complete.
        signatures: which of `"serve"` (the whole input; any batch size and length that the model
            takes), `"prefill"` (the next steps of a stream, any number) and `"step"` (the next
            step). None is all that the model can do: `Streaming` decides.
        sample: an input for the checks, as for `Streaming`.

    The input is called `x` and the output `y` (several: by their names in the model). State goes
    in and comes out as tensors of the same names; every state starts as zeros.

    Returns:
        A `Report`. The file has been run and compared with `model` before it is put in place.

    Raises:
        ValueError: if the model cannot do what is asked, or the file computes something else.
        OSError: if the path cannot be written. Nothing is left there, an older file stays whole.
    """
    plan = _Plan(model, signatures, sample)
    with _beside(path) as new:
        plan.write_saved_model(new)
        report = plan.check(_saved_model_runner(new), path)
        (new / "assets.extra").mkdir()
        (new / "assets.extra" / METADATA).write_text(_metadata(report))
    return dataclasses.replace(report, size=_size(path))


def to_tflite(model, path, *, signatures=None, batch_size=1, sample=None):
    """Write `model` as a TFLite file of builtin ops; `ai-edge-litert` is needed to check it.

    Args:
        model, signatures, sample: as `to_saved_model`. The model must compute in float32.
        path: the file; an older one there is replaced once the new one is complete.
        batch_size: of `prefill` and `step`; `serve` takes any.

    Returns a `Report`, and raises, as `to_saved_model`. The weights are stored once for all
    signatures.
    """
    import tensorflow as tf

    if model.compute_dtype != "float32":
        raise ValueError(
            f"TFLite files compute in float32. Received: '{model.name}', which computes in "
            f"{model.compute_dtype}. Build it with dtype='float32' and use `set_weights`."
        )
    plan = _Plan(model, signatures, sample, batch_size)
    with _beside(path) as new:
        with tempfile.TemporaryDirectory() as saved:
            plan.write_saved_model(saved, for_tflite=True)
            converter = tf.lite.TFLiteConverter.from_saved_model(
                saved, signature_keys=list(plan.functions)
            )
            content = converter.convert()
        new.write_bytes(content)
        report = plan.check(_tflite_runner(new), path)
        new.write_bytes(content + _zipped(_metadata(report)))
        _tflite_runner(new)
    return dataclasses.replace(report, size=_size(path))


def verify(model, path, *, sample=None):
    """Run an exported file again beside the Keras model it came from, and return a `Report`.

    Args:
        model: the model, on the TensorFlow backend.
        path: what `to_saved_model` or `to_tflite` wrote.
        sample: as there.

    Raises ValueError if the file is not of this package, or differs from the model.
    """
    about = describe(path)
    plan = _Plan(model, list(about["signatures"]), sample, about["batch_size"])
    is_folder = pathlib.Path(path).is_dir()
    return plan.check(_saved_model_runner(path) if is_folder else _tflite_runner(path), path)


def describe(path):
    """What an exported file says of itself, a dict: the fields of its `Report`, and versions.

    Raises ValueError if it is not a file that this package wrote, or is damaged.
    """
    path = pathlib.Path(path)
    try:
        if path.is_dir():
            return json.loads((path / "assets.extra" / METADATA).read_text())
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read(METADATA))
    except (KeyError, ValueError, zipfile.BadZipFile, FileNotFoundError) as error:
        raise ValueError(
            f"{path} has no description ({METADATA}): it does not exist, was not written by "
            "keras_cosattn.export, or is damaged. Export the model again."
        ) from error


class _Plan:
    """The functions of one export, and the check of what comes out of it."""

    def __init__(self, model, signatures, sample, batch_size=None):
        if keras.backend.backend() != "tensorflow":
            raise RuntimeError(
                "Exports need Keras on TensorFlow. Received: backend "
                f"'{keras.backend.backend()}'. Save the model as .keras, then load and export it "
                "in a process with KERAS_BACKEND=tensorflow."
            )
        if signatures is not None and (not signatures or set(signatures) - set(SIGNATURES)):
            raise ValueError(
                f"`signatures` must be some of {SIGNATURES}, or None. Received: {signatures!r}"
            )
        self.model, self.batch_size = model, batch_size
        self.sample = _longest_sample(model) if sample is None else sample
        self.stream, self.whole_only = None, None
        wanted = signatures or SIGNATURES
        if set(wanted) - {"serve"}:
            try:
                self.stream = Streaming(model, self.sample)
            except ValueError as error:
                if signatures is not None:
                    raise
                wanted, self.whole_only = ("serve",), str(error)
        self.any_size = _input_sizes(model, self.sample)
        self.functions = {name: self._function(name) for name in SIGNATURES if name in wanted}

    def write_saved_model(self, path, for_tflite=False):
        import tensorflow as tf

        archive = keras.export.ExportArchive()
        archive.track(self.model)
        for name, function in self.functions.items():
            specs = {
                key: tf.TensorSpec(shape, dtype, name=key)
                for key, (shape, dtype) in self._specs(name).items()
            }
            archive.add_endpoint(name, function, input_signature=[specs])
        if for_tflite:
            # Without this attribute the converter takes every archive with an endpoint "serve"
            # for one of `Model.export`, and drops its other endpoints.
            archive.add_endpoint(
                "_default_save_signature", lambda: {"unused": tf.zeros(())}, input_signature=[]
            )
        archive.write_out(str(path), verbose=False)

    def check(self, run, path):
        """A report on `run(signature, inputs)`. Raises ValueError if it is not the model."""
        whole = self._named_outputs(self.model(self.sample, training=False))
        differences = {}
        if "serve" in self.functions:
            found = run("serve", self._named_inputs(self.sample))
            differences["serve"] = _largest_difference(whole, found, whole)
        if self.stream is not None:
            differences.update(self._check_stream(run, whole))
        limit = probe.tolerance(self.model)
        if not max(differences.values()) <= limit:  # NaN is not
            raise ValueError(
                f"The export of '{self.model.name}' computes something else than the model, so it "
                f"was not kept. Differences: {differences}; allowed: {limit}"
            )
        stream = self.stream
        return Report(
            path=str(path),
            size=_size(path),
            signatures={name: self._description(name, whole) for name in self.functions},
            state=sorted(stream.state_spec) if stream else [],
            state_bytes=stream.state_bytes if stream else 0,
            batch_size=self.batch_size,
            max_steps=stream.max_steps if stream else None,
            differences=differences,
            whole_only=self.whole_only,
        )

    def _check_stream(self, run, whole):
        """Differences of a prefill and the steps after it, or of what there is of both."""
        batch = self.batch_size or 2
        inputs = {k: _with_batch(x, batch) for k, x in self._named_inputs(self.sample).items()}
        whole = {k: _with_batch(x, batch) for k, x in whole.items()}
        length = next(iter(inputs.values())).shape[1]
        steps = length // 4 if "prefill" in self.functions else length
        pieces = [("prefill", 0, length - steps)] if "prefill" in self.functions else []
        if "step" in self.functions:
            pieces += [("step", start, start + 1) for start in range(length - steps, length)]
        state = {
            name: np.zeros((batch, *shape), dtype)
            for name, (shape, dtype) in self.stream.state_spec.items()
        }
        differences = dict.fromkeys((signature for signature, _, _ in pieces), 0.0)
        for signature, start, end in pieces:
            found = run(signature, {**{k: x[:, start:end] for k, x in inputs.items()}, **state})
            state = {name: found.pop(name) for name in state}
            expected = {k: x[:, start:end] for k, x in whole.items()}
            difference = _largest_difference(expected, found, whole)
            differences[signature] = np.maximum(differences[signature], difference)
        return {name: float(difference) for name, difference in differences.items()}

    def _function(self, name):
        if name == "serve":
            return lambda inputs: self._named(self.model(self._nest(inputs), training=False))

        def go_on(inputs):
            state = {key: inputs[key] for key in self.stream.state_spec}
            outputs, state = self.stream(self._nest(inputs), state)
            return {**self._named(outputs), **state}

        return go_on

    def _specs(self, name):
        """Input name -> (shape, dtype) of a signature."""
        if name == "serve":
            return self.any_size
        length = 1 if name == "step" else None
        sizes = self.any_size.items()
        specs = {
            key: ((self.batch_size, length, *shape[2:]), dtype) for key, (shape, dtype) in sizes
        }
        state = self.stream.state_spec.items()
        return specs | {key: ((self.batch_size, *shape), dtype) for key, (shape, dtype) in state}

    def _description(self, name, whole):
        """What a signature takes and gives."""
        inputs = {key: [list(shape), dtype] for key, (shape, dtype) in self._specs(name).items()}
        batch, length = next(iter(inputs.values()))[0][:2]
        steps = self._named_inputs(self.sample)[next(iter(self.any_size))].shape[1]
        outputs = {}
        for key, y in whole.items():
            in_time = y.ndim > 1 and y.shape[1] == steps
            shape = [batch, length, *y.shape[2:]] if in_time else [batch, *y.shape[1:]]
            outputs[key] = [shape, str(y.dtype)]
        state = self.stream.state_spec if name != "serve" else ()
        return {"inputs": inputs, "outputs": outputs | {key: inputs[key] for key in state}}

    def _nest(self, inputs):
        """Named inputs as the model takes them."""
        return keras.tree.pack_sequence_as(self.sample, [inputs[name] for name in self.any_size])

    def _named_inputs(self, nest):
        flat = keras.tree.flatten(nest)
        return {name: ops.convert_to_numpy(x) for name, x in zip(self.any_size, flat, strict=True)}

    def _named_outputs(self, nest):
        return {name: ops.convert_to_numpy(x) for name, x in self._named(nest).items()}

    def _named(self, outputs):
        flat = keras.tree.flatten(outputs)
        if len(flat) == 1:
            return {"y": flat[0]}
        names = getattr(self.model, "output_names", None) or [f"y_{i}" for i in range(len(flat))]
        return dict(zip(names, flat, strict=True))


def _longest_sample(model):
    """Random inputs of as many steps as the model takes, up to the first of `SAMPLE_LENGTHS`."""
    for length in SAMPLE_LENGTHS:
        sample = probe.random_inputs(model, length)
        try:
            model(sample, training=False)
        except ValueError as error:
            refusal = error
        else:
            return sample
    raise ValueError(
        f"'{model.name}' takes no random input of {SAMPLE_LENGTHS} steps, so an export of it could "
        f"not be checked. Give `sample`. {refusal}"
    )


def _input_sizes(model, sample):
    """Input name -> (shape with None where any size will do, dtype)."""
    flat = keras.tree.flatten(sample)
    specs = (
        keras.tree.flatten(model.input) if getattr(model, "inputs", None) else [None] * len(flat)
    )
    sizes = {}
    for i, (x, spec) in enumerate(zip(flat, specs, strict=True)):
        name = "x" if len(flat) == 1 else spec.name if spec is not None else f"x_{i}"
        shape = (None, None, *x.shape[2:]) if spec is None else tuple(spec.shape)
        sizes[name] = shape, keras.backend.standardize_dtype(x.dtype)
    return sizes


def _with_batch(x, batch):
    return np.resize(x, (batch, *x.shape[1:]))


def _largest_difference(expected, found, whole):
    """Relative to the largest number in `whole`; NaN if one is NaN and the other is not."""
    return max(
        float(np.max(np.abs(np.where(np.isnan(x) & np.isnan(found[name]), 0, x - found[name]))))
        / max(float(np.nanmax(np.abs(whole[name]))), 1e-6)
        for name, x in expected.items()
    )


def _saved_model_runner(path):
    """`run(signature, inputs) -> outputs` on a SavedModel."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))

    def run(signature, inputs):
        inputs = {name: tf.constant(x) for name, x in inputs.items()}
        return {k: y.numpy() for k, y in loaded.signatures[signature](**inputs).items()}

    return run


def _tflite_runner(path):
    """`run(signature, inputs) -> outputs` on a TFLite file."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ImportError(
            "Every TFLite export is run before it is kept, on LiteRT: "
            "pip install 'keras-cosattn[device]'"
        ) from error
    interpreter = Interpreter(str(path))
    runners = {
        name: interpreter.get_signature_runner(name) for name in interpreter.get_signature_list()
    }
    return lambda signature, inputs: runners[signature](**inputs)


def _metadata(report):
    import tensorflow as tf

    versions = {
        "keras_cosattn": keras_cosattn.__version__,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
    }
    fields = dataclasses.asdict(report)
    del fields["path"], fields["size"]
    return json.dumps({**fields, "versions": versions}, indent=1)


def _zipped(text):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        # A fixed date, so that the same model gives the same bytes.
        archive.writestr(zipfile.ZipInfo(METADATA), text)
    return file.getvalue()


def _size(path):
    path = pathlib.Path(path)
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


@contextlib.contextmanager
def _beside(path):
    """A place on the same disk to write to; what was written there becomes `path` at the end.

    Raises OSError if the place cannot be had, or if `path` is a folder that is no SavedModel.
    """
    path = pathlib.Path(path)
    if path.is_dir() and any(path.iterdir()) and not (path / "saved_model.pb").exists():
        raise OSError(f"{path} is a folder with other things in it; export to a new place in it.")
    try:
        scratch = tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise OSError(
            f"Cannot write {path}: {error.strerror}. Its folder must exist and be writable."
        ) from error
    try:
        new, old = pathlib.Path(scratch, "new"), pathlib.Path(scratch, "old")
        yield new
        if path.is_dir():  # a folder can only be renamed onto an empty one
            path.rename(old)
        try:
            new.replace(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    finally:
        shutil.rmtree(scratch)
