"""What an export reports, and what the file says of itself."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from typing import Any

import keras

import keras_cosattn
from keras_cosattn.compact_state import StateDtype
from keras_cosattn.export.checks import Comparison
from keras_cosattn.export.export_options import StateForm
from keras_cosattn.export.export_plan import ExportPlan
from keras_cosattn.export.file_metadata import size_on_disk

MEASURED_LATER = ("path", "size", "accuracy", "drift")
"""Fields that a file does not hold."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What was exported, and how far it is from the Keras model.

    Attributes:
        path: The file or folder.
        size: Bytes on disk.
        target: `"saved_model"`, or the name of the TFLite target.
        quantize: The name of the quantisation, or `None`.
        signatures: Name -> `{"inputs": {name: [shape, dtype]}, "outputs": {name: [shape, dtype]}}`;
            `None` in a shape is any size.
        state: The names of the inputs and outputs that are state.
        state_form: `"tensors"`, or `"variables"` that stay inside the file's interpreter.
        state_dtype: `"int8"` or `"int16"` if the state is rounded to integers, else `None`.
        state_bytes: The size of the state of one example.
        batch_size: The batch size of every call; `None` is any.
        max_steps: The number of steps after which a stream is full; `None` if it has no end.
        max_whole_steps: The number of valid steps that `serve` takes; `None` if it has no limit.
        differences: Signature -> the largest difference to the Keras model on the sample, relative
            to the model's largest output.
        sqnr: Signature -> the ratio of the model's outputs to their differences, in dB, at most
            200.
        weights: sha256 of the model's weights and the layout of its state. It is the same for every
            file of one model, so that a state can move between them.
        whole_only: Why there are no `prefill` and `step`; `None` if there are, or if none were
            asked for.
        ops: Name -> `[version, count]`, over all signatures; empty for a SavedModel.
        partitions: Signature -> the parts of the graph that XNNPACK runs, at the size of the
            checks. With more than one, other ops cut the graph.
        peak_bytes: Signature -> the memory to expect, at the size of the checks: weights, and the
            largest sum of tensors in use at once. A runtime adds itself and its working space.
        arena_bytes: The smallest arena in which tflite-micro ran the file; `None` elsewhere.
        accuracy: What `verify` measured on labelled data, `{"keras": ..., "file": ...}`.
        drift: What `verify` measured over a long stream: SQNR in dB, `{"first": ..., "last": ...}`.
    """

    path: str
    size: int
    target: str
    quantize: str | None
    signatures: dict[str, dict[str, dict[str, list[Any]]]]
    state: list[str]
    state_form: StateForm
    state_dtype: StateDtype | None
    state_bytes: int
    batch_size: int | None
    max_steps: int | None
    max_whole_steps: int | None
    differences: dict[str, float]
    sqnr: dict[str, float]
    weights: str
    whole_only: str | None
    ops: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    partitions: dict[str, int] = dataclasses.field(default_factory=dict)
    peak_bytes: dict[str, int] = dataclasses.field(default_factory=dict)
    arena_bytes: int | None = None
    accuracy: dict[str, float] | None = None
    drift: dict[str, float] | None = None

    @property
    def largest_difference(self) -> float:
        """The largest difference over all signatures."""
        return max(self.differences.values())

    def __str__(self) -> str:
        form = "" if self.target == "saved_model" else f" for {self.target}"
        lines = [f"{self.path}: {self.size:,} bytes{form}, {self.quantize or 'not quantised'}"]
        if self.state_bytes:
            end = "endless" if self.max_steps is None else f"up to {self.max_steps:,} steps"
            form = f"{self.state_dtype or 'exact'} {self.state_form}"
            lines.append(f"  state: {self.state_bytes:,} bytes as {form}, {end}")
        if self.max_whole_steps is not None:
            lines.append(f"  serve: up to {self.max_whole_steps:,} valid steps")
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

    def _table(self) -> Iterator[str]:
        more = f"{'XNNPACK partitions':>20}{'peak, bytes':>16}" if self.partitions else ""
        yield f"  {'to Keras':10}{'difference':>12}{'SQNR, dB':>10}{more}"
        for name, difference in self.differences.items():
            if self.partitions:
                more = f"{self.partitions[name]:20}{self.peak_bytes[name]:16,}"
            yield f"  {name:10}{difference:12.1e}{self.sqnr[name]:10.1f}{more}"


def make_report(
    plan: ExportPlan,
    path: str | os.PathLike[str],
    comparison: Comparison,
    target: str = "saved_model",
    quantize: str | None = None,
    **measured: Any,
) -> Report:
    """Report on a file.

    Args:
        plan: What the file holds.
        path: str or path. The file or folder.
        comparison: How far it is from the model.
        target: str. The name of the target.
        quantize: str. The name of the quantisation.
        **measured: Other fields of the report.
    """
    stream = plan.stream
    return Report(
        path=str(path),
        size=size_on_disk(path),
        target=target,
        quantize=quantize,
        signatures=plan.describe(),
        state=sorted(plan.state_spec),
        state_form=plan.options.state_form,
        state_dtype=plan.options.state_dtype,
        state_bytes=stream.state_bytes if stream else 0,
        batch_size=plan.options.batch_size,
        max_steps=stream.max_steps if stream else None,
        max_whole_steps=plan.max_whole_steps,
        differences=comparison.differences,
        sqnr=comparison.sqnr,
        weights=plan.weights,
        whole_only=plan.whole_only,
        **measured,
    )


def description_of(report: Report, **more: Any) -> str:
    """The description that a file holds: its report, other entries, and versions."""
    import tensorflow as tf

    versions = {
        "keras_cosattn": keras_cosattn.__version__,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
    }
    fields = dataclasses.asdict(report)
    for name in MEASURED_LATER:
        del fields[name]
    return json.dumps({**fields, **more, "versions": versions}, indent=1)
