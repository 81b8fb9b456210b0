"""Everything that the command line uses of the exporter and that is not public.

The other modules of this folder import the exporter's public functions and this module only.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_cosattn.compact_state import STATE_DTYPES
from keras_cosattn.export import checks
from keras_cosattn.export.export_options import SIGNATURES, ExportOptions
from keras_cosattn.export.export_plan import make_plan
from keras_cosattn.export.file_metadata import content_id, size_on_disk
from keras_cosattn.export.memory_plan import largest_tensors, plan_memory
from keras_cosattn.export.quantization import QUANTIZATIONS
from keras_cosattn.export.stream_state import zero_state
from keras_cosattn.export.targets import TARGETS
from keras_cosattn.export.tflite_graph import TFLiteGraph

__all__ = [
    "QUANTIZATIONS",
    "SIGNATURES",
    "STATE_DTYPES",
    "TARGETS",
    "ComparedModel",
    "TFLiteGraph",
    "compare_outputs",
    "content_id",
    "largest_tensors",
    "plan_memory",
    "size_on_disk",
    "why_refused",
]


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
        plan = make_plan(model, x, ExportOptions(batch_size=self.batch_size))
        self._named, self._stream = plan.named, plan.stream
        self.inputs: dict[str, Any] = plan.named.named_inputs(x)
        self.whole_only = plan.whole_only
        self.signatures, self.max_steps, self.zero_state = ["serve"], None, {}
        if plan.stream is not None:
            self.signatures = ["serve", "step"]
            self.max_steps = plan.stream.max_steps
            self.zero_state = zero_state(plan.stream, self.batch_size)

    def compile(self) -> dict[str, Callable[[dict], dict]]:
        """Signature -> its compiled function, from and to dicts of arrays."""
        import tensorflow as tf

        named = self._named
        whole = tf.function(lambda x: named.model(x, training=False))

        def serve(x):
            return named.numpy_outputs(whole(named.nest(x)))

        if self._stream is None:
            return {"serve": serve}
        stream = tf.function(self._stream)

        def step(x):
            y, state = stream(named.nest(x), {key: x[key] for key in self.zero_state})
            return {**named.numpy_outputs(y), **state}

        return {"serve": serve, "step": step}


def compare_outputs(
    expected: dict[str, np.ndarray], found: dict[str, np.ndarray]
) -> tuple[float, float]:
    """The largest relative difference and the smallest SQNR in dB, over all that was found."""
    pairs = [[({name: expected[name]}, {name: found[name]})] for name in found]
    return max(map(checks.largest_difference, pairs)), min(map(checks.sqnr, pairs))


def why_refused(name: str, graph: TFLiteGraph, quantize: str | None) -> str | None:
    """The reason why a target cannot run a file; None if it can."""
    target = TARGETS[name]()
    if target.one_signature and len(graph.signatures) > 1:
        return f"no: it can run one signature in a file, and there are {len(graph.signatures)}"
    if quantize not in target.quantizations:
        return f"no: it does not run {quantize}"
    sizes = types.SimpleNamespace(  # of the file, in the form of an export's plan
        functions=graph.signatures, options=ExportOptions(),
        input_sizes=lambda name: graph.specs(name)[0],
    )  # fmt: skip
    try:
        target.check_shapes(sizes, quantize)
        target.refuse(graph)
    except ModuleNotFoundError as error:
        return f"unknown: {error}"
    except ValueError as error:
        return f"no: {str(error).split(' Received:')[0]}"
    return None
