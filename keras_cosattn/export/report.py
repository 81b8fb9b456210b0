"""What an export reports, and what an exported file says of itself."""

import dataclasses
import json
import pathlib
import zipfile

import keras

import keras_cosattn
from keras_cosattn.export import files
from keras_cosattn.export.files import METADATA


@dataclasses.dataclass(frozen=True)
class Report:
    """What was exported, and how far it is from the Keras model.

    Attributes:
        path: the file or folder.
        size: bytes on disk.
        target: `"saved_model"`, or the name of the TFLite target.
        quantize: the name of the quantisation, or None.
        signatures: name -> `{"inputs": {name: [shape, dtype]}, "outputs": {name: [shape, dtype]}}`;
            None in a shape is any size.
        state: names of the inputs and outputs that are state.
        state_form: `"tensors"`, or `"variables"` that stay inside the file's interpreter.
        state_bytes: size of the state of one example.
        batch_size: of every call; None is any.
        max_steps: steps after which a stream is full; None if it has no end.
        differences: signature -> largest difference to the Keras model on the sample, relative to
            the model's largest output.
        sqnr: signature -> signal to noise, in dB: the model's outputs to their differences. At
            most 200.
        ops: name -> `[version, how often]`, over all signatures; empty for a SavedModel.
        partitions: signature -> parts of the graph that XNNPACK runs, at the sample's size: with
            more than one the others cut it.
        peak_bytes: signature -> memory to expect, at the sample's size: weights, and the largest
            sum of tensors that live at once. A runtime adds itself and its working space.
        arena_bytes: the smallest arena in which tflite-micro ran the file; None elsewhere.
        weights: sha256 of the model's weights and the layout of its state: the same for every
            file of one model, so that a state can move between them.
        whole_only: why there are no `prefill` and `step`; None if there are, or none were wanted.
        accuracy: what `verify` measured on labelled data, `{"keras": ..., "file": ...}`.
        drift: what `verify` measured over a long stream: SQNR in dB, `{"first": ..., "last": ...}`.
    """

    path: str
    size: int
    target: str
    quantize: str | None
    signatures: dict
    state: list
    state_form: str
    state_bytes: int
    batch_size: int | None
    max_steps: int | None
    differences: dict
    sqnr: dict
    weights: str
    whole_only: str | None
    ops: dict = dataclasses.field(default_factory=dict)
    partitions: dict = dataclasses.field(default_factory=dict)
    peak_bytes: dict = dataclasses.field(default_factory=dict)
    arena_bytes: int | None = None
    accuracy: dict | None = None
    drift: dict | None = None

    @classmethod
    def of(cls, plan, path, differences, sqnr, target="saved_model", quantize=None, **more):
        """A report on what was exported by a `Plan`."""
        stream = plan.stream
        return cls(
            path=str(path),
            size=files.size(path),
            target=target,
            quantize=quantize,
            signatures=plan.describe(),
            state=sorted(plan.state_spec),
            state_form=plan.state_form,
            state_bytes=stream.state_bytes if stream else 0,
            batch_size=plan.batch_size,
            max_steps=stream.max_steps if stream else None,
            differences=differences,
            sqnr=sqnr,
            weights=plan.weights,
            whole_only=plan.whole_only,
            **more,
        )

    @property
    def largest_difference(self):
        """Over all signatures."""
        return max(self.differences.values())

    def __str__(self):
        form = "" if self.target == "saved_model" else f" for {self.target}"
        lines = [f"{self.path}: {self.size:,} bytes{form}, {self.quantize or 'not quantised'}"]
        if self.state_bytes:
            end = "endless" if self.max_steps is None else f"up to {self.max_steps:,} steps"
            lines.append(f"  state: {self.state_bytes:,} bytes as {self.state_form}, {end}")
        lines += self._table()
        if self.arena_bytes is not None:
            lines.append(f"  arena of tflite-micro: {self.arena_bytes:,} bytes")
        if self.ops:
            total = sum(count for _, count in self.ops.values())
            lines.append(f"  {total:,} ops of {len(self.ops)} kinds")
        if self.accuracy is not None:
            keras_, file = self.accuracy["keras"], self.accuracy["file"]
            lines.append(f"  accuracy: Keras {keras_:.4f}, file {file:.4f}")
        if self.drift is not None:
            first, last = self.drift["first"], self.drift["last"]
            lines.append(f"  drift: SQNR {first:.1f} dB first, {last:.1f} dB last")
        if self.whole_only:
            lines.append(f"  no streaming: {self.whole_only}")
        return "\n".join(lines)

    def _table(self):
        more = f"{'XNNPACK partitions':>20}{'peak, bytes':>16}" if self.partitions else ""
        yield f"  {'to Keras':10}{'difference':>12}{'SQNR, dB':>10}{more}"
        for name, difference in self.differences.items():
            if self.partitions:
                more = f"{self.partitions[name]:20}{self.peak_bytes[name]:16,}"
            yield f"  {name:10}{difference:12.1e}{self.sqnr[name]:10.1f}{more}"


def metadata(report, **more):
    """The text of a file's description."""
    import tensorflow as tf

    versions = {
        "keras_cosattn": keras_cosattn.__version__,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
    }
    fields = dataclasses.asdict(report)
    for measured_later in ("path", "size", "accuracy", "drift"):
        del fields[measured_later]
    return json.dumps({**fields, **more, "versions": versions}, indent=1)


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
