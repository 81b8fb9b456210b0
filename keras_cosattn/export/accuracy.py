"""The accuracy of a model and of its file on labelled data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from keras_cosattn.export.checks import Run
from keras_cosattn.export.datasets import batches
from keras_cosattn.export.export_plan import ExportPlan
from keras_cosattn.export.file_outputs import whole_outputs

Metric = Callable[[np.ndarray, Any], np.ndarray]
"""A function of labels and outputs, of which the mean is the accuracy."""


def measure_accuracy(
    plan: ExportPlan, run: Run, dataset: Iterable[Any], metric: Metric | None = None
) -> dict[str, float]:
    """Return the accuracy of the model, `"keras"`, and of the file, `"file"`.

    Args:
        plan: What the file holds.
        run: The file as a function.
        dataset: Batches of inputs and labels.
        metric: As in `verify`.

    Raises:
        ValueError: If a batch has no labels, or labels that do not fit the outputs.
    """
    found: dict[str, list[np.ndarray]] = {"keras": [], "file": []}
    for x, labels in batches(dataset):
        if labels is None:
            raise ValueError("The accuracy needs labels. Give batches of (inputs, labels).")
        inputs = plan.named.named_inputs(x)
        outputs = plan.named.expected(inputs)
        for name, given in (("keras", outputs), ("file", whole_outputs(plan, run, inputs))):
            (y, *others) = given.values()
            found[name].append(np.ravel((metric or _is_right)(labels, given if others else y)))
    return {name: float(np.mean(np.concatenate(values))) for name, values in found.items()}


def _is_right(labels: np.ndarray, outputs: Any) -> np.ndarray:
    """Whether the largest entry of the last axis is at the label."""
    if isinstance(outputs, dict) or labels.size != np.prod(outputs.shape[:-1]):
        shape = (
            {k: y.shape for k, y in outputs.items()} if isinstance(outputs, dict) else outputs.shape
        )
        raise ValueError(
            "The accuracy needs one label, an integer, for each vector of the output. Received: "
            f"labels of shape {labels.shape}, outputs of shape {shape}. Give a `metric`."
        )
    return np.argmax(outputs, axis=-1) == np.reshape(labels, outputs.shape[:-1])
