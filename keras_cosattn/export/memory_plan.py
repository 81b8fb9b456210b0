"""How a runtime runs a TFLite graph: the parts it delegates, and the memory it needs at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_cosattn.export.file_runners import interpreter_class
from keras_cosattn.export.tflite_graph import TFLiteGraph

Shapes = Mapping[str, Sequence[int]]
"""The name of each input and its shape."""


class MemoryPlan(NamedTuple):
    """How a runtime runs one signature at given shapes of its inputs.

    Attributes:
        partitions: The number of parts of the graph that XNNPACK runs.
        peak_bytes: The largest number of bytes that are in use at once. Constants, inputs, outputs
            and variables are in use all the time. Every other tensor is in use from the op that
            makes it to the last op that reads it.
    """

    partitions: int
    peak_bytes: int


class LargeTensor(NamedTuple):
    """A tensor that an op computes."""

    size: int
    shape: tuple[int, ...]
    op: str


def plan_memory(graph: TFLiteGraph, signature: str, shapes: Shapes) -> MemoryPlan:
    """Measure how a runtime runs one signature.

    Args:
        graph: The graph. That of the signature is the first one afterwards.
        signature: str. The name of the signature.
        shapes: The name of each input and its shape.
    """
    interpreter = _interpreter(graph, signature, shapes)
    delegated = [op for op in interpreter._get_ops_details() if op["op_name"] == "DELEGATE"]
    subgraph = graph.model.subgraphs[graph.signatures[signature]]
    return MemoryPlan(len(delegated), _peak(graph, subgraph, _sizes(interpreter)))


def largest_tensors(
    graph: TFLiteGraph, signature: str, shapes: Shapes, count: int = 3
) -> list[LargeTensor]:
    """The largest tensors that the ops of a signature compute.

    Args:
        graph, signature, shapes: As in `plan_memory`.
        count: int. The number of tensors. Defaults to `3`.
    """
    interpreter = _interpreter(graph, signature, shapes)
    found = {d["index"]: tuple(map(int, d["shape"])) for d in interpreter.get_tensor_details()}
    sizes = _sizes(interpreter)
    computed = [
        LargeTensor(sizes[i], found[i], graph.op_name(operator))
        for operator in graph.model.subgraphs[graph.signatures[signature]].operators or ()
        for i in operator.outputs
        if i in sizes
    ]
    return sorted(computed, reverse=True)[:count]


def _interpreter(graph: TFLiteGraph, signature: str, shapes: Shapes) -> Any:
    """An interpreter whose first graph is that of a signature, after a run on ones.

    Where shapes are open, many tensors have no size before a run.
    """
    graph.put_first(signature)
    interpreter = interpreter_class()(model_content=graph.pack(), num_threads=1)
    places = {d["index"]: d for d in interpreter.get_input_details()}
    entries = graph.definition(signature).inputs or ()
    for entry in entries:
        shape = shapes[entry.name.decode()]
        if tuple(places[entry.tensorIndex]["shape"]) != tuple(shape):
            interpreter.resize_tensor_input(entry.tensorIndex, shape)
    interpreter.allocate_tensors()
    for entry in entries:
        ones = np.ones(shapes[entry.name.decode()], places[entry.tensorIndex]["dtype"])
        interpreter.set_tensor(entry.tensorIndex, ones)
    interpreter.invoke()
    return interpreter


def _peak(graph: TFLiteGraph, subgraph: Any, sizes: Mapping[int, int]) -> int:
    """The largest sum of the sizes of tensors that are in use at once."""
    always, ends = 0, {*subgraph.inputs, *subgraph.outputs}
    spans: dict[int, tuple[int, int] | None] = {}
    for i, tensor in enumerate(subgraph.tensors):
        if graph.is_constant(tensor) or tensor.isVariable or i in ends:
            always += sizes.get(i, 0)
        else:
            spans[i] = None
    for step, operator in enumerate(subgraph.operators):
        for i in (*operator.inputs, *operator.outputs):
            if i in spans:
                spans[i] = (spans[i] or (step, step))[0], step
    changes = np.zeros(len(subgraph.operators) + 1, "int64")
    for i, span in spans.items():
        if span is not None:
            changes[span[0]] += sizes.get(i, 0)
            changes[span[1] + 1] -= sizes.get(i, 0)
    return int(always + np.cumsum(changes).max(initial=0))


def _sizes(interpreter: Any) -> dict[int, int]:
    """The number of each tensor and its bytes."""
    return {
        d["index"]: math.prod(d["shape"].tolist()) * np.dtype(d["dtype"]).itemsize
        for d in interpreter.get_tensor_details()
    }
