"""The inputs that a file is checked with, and the outputs that its model gives for them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_cosattn.export.export_plan import CHECKED_STEPS, ExportPlan
from keras_cosattn.export.sample_inputs import resize
from keras_cosattn.export.stream_state import zero_state

CHECKED_BATCH = 2
"""The batch size of a check where any is taken."""

Arrays = dict[str, np.ndarray]


class StreamPiece(NamedTuple):
    """A call of a signature on the steps from `start` to `end`. 0 begins the stream again."""

    signature: str
    start: int
    end: int


def checked_batch(plan: ExportPlan) -> int:
    """The batch size of the checks."""
    return plan.options.batch_size or CHECKED_BATCH


def first_state(plan: ExportPlan) -> Arrays:
    """The state before the first step of a check; empty without a stream."""
    return zero_state(plan.stream, checked_batch(plan))


def fit(plan: ExportPlan, nest: Any, steps: int | None = None) -> Arrays:
    """Inputs `(b, t, ...)` by name, repeated or cut to the batch of the checks and to `steps`."""
    batch = checked_batch(plan)
    return plan.named.named_inputs(
        keras.tree.map_structure(lambda x: resize(x, batch, steps or x.shape[1]), nest)
    )


def whole_checks(plan: ExportPlan) -> Iterator[tuple[Arrays, Arrays]]:
    """Yield inputs of `serve` and the model's outputs, for all examples of the sample."""
    batch, sample = checked_batch(plan), plan.named.sample
    for start in range(0, len(keras.tree.flatten(sample)[0]), batch):
        part = keras.tree.map_structure(lambda x, a=start: x[a : a + batch], sample)
        inputs = fit(plan, part, plan.options.length)
        yield inputs, plan.named.expected(inputs)


def text_check(plan: ExportPlan) -> tuple[Arrays, Arrays]:
    """Inputs of `serve_text` and the model's outputs."""
    if plan.text is None:
        raise ValueError(f"'{plan.named.name}' is exported without a tokenizer.")
    texts, ids = plan.text.examples
    return texts, plan.named.expected(ids)


def stream_check(plan: ExportPlan) -> tuple[list[StreamPiece], Arrays, Arrays]:
    """The pieces of a stream, its whole inputs, and the model's outputs for the whole inputs."""
    steps = plan.named.sample_steps
    limit = plan.streaming.max_steps or sys.maxsize
    chunk = plan.options.prefill_chunk or max(min(steps, limit) - CHECKED_STEPS, 1)
    first = chunk if "prefill" in plan.functions else 0
    steps = min(max(first, 1) + CHECKED_STEPS, limit)
    inputs = fit(plan, plan.named.sample, steps)
    pieces = [StreamPiece("prefill", 0, first)] if first else []
    if "step" in plan.functions:
        start = first if first < steps else 0
        pieces += [StreamPiece("step", i, i + 1) for i in range(start, steps)]
    return pieces, inputs, plan.named.expected(inputs)


def checked_shapes(plan: ExportPlan, name: str) -> dict[str, tuple[int, ...]]:
    """The shape of each input with which a signature is checked."""
    if name == "init":
        return {"batch_size": ()}
    if name == "serve":
        return {key: x.shape for key, x in next(whole_checks(plan))[0].items()}
    steps = plan.options.prefill_chunk or plan.named.sample_steps - CHECKED_STEPS
    sizes = (checked_batch(plan), steps)
    return {
        key: tuple(sizes[min(i, 1)] if n is None else n for i, n in enumerate(shape))
        for key, (shape, _) in plan.input_sizes(name).items()
    }
