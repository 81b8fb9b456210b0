"""The outputs of a file for whole inputs, by `serve` or as a stream."""

from __future__ import annotations

import itertools

import numpy as np

from keras_cosattn.export import checks
from keras_cosattn.export.check_inputs import Arrays, StreamPiece
from keras_cosattn.export.checks import Run
from keras_cosattn.export.export_plan import ExportPlan


def whole_outputs(plan: ExportPlan, run: Run, inputs: Arrays) -> Arrays:
    """The file's outputs for whole inputs, by `serve` or else as a stream."""
    batch_size = plan.options.batch_size
    count = len(next(iter(inputs.values())))
    if "serve" in plan.functions and batch_size is None:
        return run("serve", inputs)
    size, parts = batch_size or count, []
    for start in range(0, count, size):
        rows = np.arange(start, start + size) % count  # the last batch is filled up
        group = {key: x[rows] for key, x in inputs.items()}
        whole = "serve" in plan.functions
        parts.append(run("serve", group) if whole else stream_outputs(plan, run, group))
    return {key: np.concatenate([part[key] for part in parts])[:count] for key in parts[0]}


def stream_outputs(plan: ExportPlan, run: Run, inputs: Arrays) -> Arrays:
    """The file's outputs for a stream from its start, in chunks and then single steps."""
    steps = next(iter(inputs.values())).shape[1]
    chunk = plan.options.prefill_chunk or steps
    ends = [0]
    if "prefill" in plan.functions:
        ends += range(chunk, steps + 1, chunk)
    if "step" in plan.functions:
        ends += range(ends[-1] + 1, steps + 1)
    pieces = [
        StreamPiece("prefill" if "prefill" in plan.functions and b - a == chunk else "step", a, b)
        for a, b in itertools.pairwise(ends)
    ]
    parts = [outputs for _, outputs in checks.run_stream(plan, run, pieces, inputs)]
    return {key: np.concatenate([part[key] for part in parts], axis=1) for key in parts[0]}
