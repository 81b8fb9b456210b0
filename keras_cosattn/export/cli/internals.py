"""Everything that the command line uses of the exporter and that is not public.

The other modules of this folder import the exporter's public functions and this module only.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_cosattn.export import checks, files, layout
from keras_cosattn.export.graph import Graph
from keras_cosattn.export.plan import SIGNATURES, Plan
from keras_cosattn.export.quantization import QUANTIZATIONS
from keras_cosattn.export.targets import TARGETS

__all__ = [
    "QUANTIZATIONS",
    "SIGNATURES",
    "TARGETS",
    "ComparedModel",
    "Graph",
    "compare_outputs",
    "content_id",
    "file_size",
    "largest_tensors",
    "memory_layout",
    "why_refused",
]

file_size = files.size
content_id = files.content_id
memory_layout = layout.allocated
largest_tensors = layout.largest_tensors


class ComparedModel:
    """A Keras model as functions of named arrays, under the names of its exported files.

    Args:
        model: A built Keras model.
        x: Array `(batch, steps, ...)`, or a structure of arrays: the inputs.

    Attributes:
        inputs: Dict. The inputs by name.
        batch_size: Integer.
        signatures: List of strings: `"serve"`, and `"step"` if the model can stream.
        whole_only: String. The reason why the model cannot stream; None if it can.
        max_steps: Integer. The steps after which a stream is full; None if it has no end.
        zero_state: Dict. The state before the first step.
    """

    def __init__(self, model: Any, x: Any) -> None:
        self.batch_size = len(keras.tree.flatten(x)[0])
        self._plan = Plan(model, sample=x, batch_size=self.batch_size)
        self.inputs = self._plan.named_inputs(x)
        self.signatures = ["serve", "step"] if self._plan.stream else ["serve"]
        self.whole_only = self._plan.whole_only
        self.max_steps = self._plan.stream.max_steps if self._plan.stream else None
        self.zero_state = self._plan.zero_state()

    def compile(self) -> dict[str, Callable[[dict], dict]]:
        """Signature -> its compiled function, from and to dicts of arrays."""
        import tensorflow as tf

        plan = self._plan
        whole = tf.function(lambda x: plan.model(x, training=False))

        def serve(x):
            return plan.named_outputs(whole(plan.nest(x)))

        if plan.stream is None:
            return {"serve": serve}
        stream = tf.function(plan.stream)

        def step(x):
            y, state = stream(plan.nest(x), {key: x[key] for key in self.zero_state})
            return {**plan.named_outputs(y), **state}

        return {"serve": serve, "step": step}


def compare_outputs(
    expected: dict[str, np.ndarray], found: dict[str, np.ndarray]
) -> tuple[float, float]:
    """The largest relative difference and the smallest SQNR in dB, over all that was found."""
    pairs = [[({name: expected[name]}, {name: found[name]})] for name in found]
    return max(map(checks.largest_difference, pairs)), min(map(checks.sqnr, pairs))


def why_refused(name: str, graph: Graph, quantize: str | None) -> str | None:
    """The reason why a target cannot run a file; None if it can."""
    target = TARGETS[name]()
    if target.one_signature and len(graph.signatures) > 1:
        return f"no: it can run one signature in a file, and there are {len(graph.signatures)}"
    if quantize not in target.quantizations:
        return f"no: it does not run {quantize}"
    sizes = types.SimpleNamespace(  # of the file, in the form of an export's plan
        functions=graph.signatures, specs=lambda name: graph.specs(name)[0],
        batch_size=None, length=None, prefill_chunk=None,
    )  # fmt: skip
    try:
        target.check_shapes(sizes, quantize)
        target.refuse(graph)
    except ModuleNotFoundError as error:
        return f"unknown: {error}"
    except ValueError as error:
        return f"no: {str(error).split(' Received:')[0]}"
    return None
