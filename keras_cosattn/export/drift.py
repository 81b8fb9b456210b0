"""How the error of a file changes over a long stream."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_cosattn import probe
from keras_cosattn.export import checks
from keras_cosattn.export.check_inputs import Arrays, fit
from keras_cosattn.export.checks import Run
from keras_cosattn.export.datasets import batches
from keras_cosattn.export.export_plan import ExportPlan
from keras_cosattn.export.file_outputs import stream_outputs

FEWEST_STEPS = 10
"""A stream needs so many steps to have a tenth."""

KERAS_CHUNK = 100
"""Steps that Keras reads at once."""


def measure_drift(
    plan: ExportPlan, run: Run, dataset: Iterable[Any] | None, steps: int
) -> dict[str, float]:
    """Return the SQNR in dB of a tenth of a stream after a tenth of warm-up, and of its last tenth.

    Args:
        plan: What the file holds.
        run: The file as a function.
        dataset: Batches of inputs, of which the first is read again and again; `None` draws random
            inputs.
        steps: int. The number of steps.

    Raises:
        ValueError: If the file does not stream, or `steps` are too few.
    """
    if not plan.streamed:
        raise ValueError("The drift of a file without `prefill` and `step` cannot be measured.")
    if steps < FEWEST_STEPS:
        raise ValueError(f"`drift_steps` must be at least {FEWEST_STEPS}, or 0. Received: {steps}")
    inputs = fit(plan, _source(plan, dataset, steps), steps)
    found, expected = stream_outputs(plan, run, inputs), _keras_stream(plan, inputs)
    tenth = next(iter(found.values())).shape[1] // FEWEST_STEPS

    def part(start: int, end: int | None) -> float:
        of_model, of_file = (
            {key: y[:, start:end] for key, y in ys.items()} for ys in (expected, found)
        )
        return checks.sqnr([(of_model, of_file)])

    return {"first": part(tenth, 2 * tenth), "last": part(-tenth, None)}


def _source(plan: ExportPlan, dataset: Iterable[Any] | None, steps: int) -> Any:
    if dataset is not None:
        return next(batches(dataset))[0]
    if getattr(plan.model, "inputs", None):
        return keras.tree.map_structure(np.asarray, probe.random_inputs(plan.model, steps))
    return plan.named.sample


def _keras_stream(plan: ExportPlan, inputs: Arrays) -> Arrays:
    first = next(iter(inputs.values()))
    state = plan.streaming.initial_state(len(first))
    parts = []
    for start in range(0, first.shape[1], KERAS_CHUNK):
        piece = {key: x[:, start : start + KERAS_CHUNK] for key, x in inputs.items()}
        outputs, state = plan.streaming(plan.named.nest(piece), state)
        parts.append(plan.named.numpy_outputs(outputs))
    return {key: np.concatenate([part[key] for part in parts], axis=1) for key in parts[0]}
