"""Inputs of every signature that show the ranges of a model's numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_cosattn.export.check_inputs import Arrays, first_state, fit
from keras_cosattn.export.checks import Run
from keras_cosattn.export.export_plan import ExportPlan

STREAMED_STEPS = 256
"""The largest number of steps of an example that are streamed."""

FIRST_STEPS = 64
"""The number of single steps of an example that are all taken."""

SHARE_OF_STEPS = 1 / 8
"""How many of the later single steps are taken, at random. At a fixed interval they could miss
what happens in a model once in so many steps, such as the end of a unit."""

Call = tuple[str, Arrays]
"""The name of a signature and its named inputs."""


def calibration_calls(plan: ExportPlan, run: Run, examples: Iterable[Any]) -> list[Call]:
    """Return inputs for every signature, with the states that a stream of the data has.

    Args:
        plan: What the file holds.
        run: The float file as a function.
        examples: The inputs of each example.
    """
    calls: list[Call] = []
    rng = np.random.default_rng(0)
    for x in examples:
        if "serve" in plan.functions:
            calls.append(("serve", fit(plan, x, plan.options.length)))
        for name in plan.streamed:
            calls += _stream_calls(plan, run, x, name, rng)
    return calls


def _stream_calls(
    plan: ExportPlan, run: Run, x: Any, name: str, rng: np.random.Generator
) -> Iterator[Call]:
    steps = keras.tree.flatten(x)[0].shape[1]
    steps = min(steps, plan.streaming.max_steps or STREAMED_STEPS, STREAMED_STEPS)
    size = 1 if name == "step" else plan.options.prefill_chunk or steps
    inputs = fit(plan, x, max(steps, size))
    state = first_state(plan)
    for start in range(0, max(steps, size) - size + 1, size):
        piece = {key: value[:, start : start + size] for key, value in inputs.items()}
        if size > 1 or start < FIRST_STEPS or rng.random() < SHARE_OF_STEPS:
            yield name, {**piece, **state}
        outputs = run(name, {**piece, **state})
        state = {key: outputs[key] for key in state}
