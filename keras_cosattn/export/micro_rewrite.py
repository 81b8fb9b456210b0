"""A TFLite graph in the ops and types of tflite-micro."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_cosattn.export.int32_rewrite import use_int32
from keras_cosattn.export.runtime_ops import TFLITE_MICRO_IN_FLOAT
from keras_cosattn.export.tflite_graph import TFLiteGraph


def rewrite_for_micro(graph: TFLiteGraph) -> None:
    """Write the graph in other ops.

    - SELECT becomes SELECT_V2 where all shapes are the same.
    - TILE of axes of size one becomes BROADCAST_TO.
    - REDUCE_ANY becomes "not all not".
    - Integers of 64 bits become integers of 32 bits. Where an op has no form for integers or
      booleans it computes in float32, between two CASTs: exact to 2^24.
    """
    use_int32(graph)
    for name, _, operator, subgraph in list(graph.operators()):
        shapes = {tuple(subgraph.tensors[i].shape) for i in operator.inputs}
        if name == "SELECT" and len(shapes) == 1:
            graph.replace_op(operator, name := "SELECT_V2")
        elif name == "TILE":
            _broadcast_tile(graph, subgraph, operator)
        elif name == "REDUCE_ANY":
            graph.replace_op(operator, "REDUCE_ALL", keep_options=True)
            _convert(graph, subgraph, operator, [0], "LOGICAL_NOT", "BOOL")
        if name in TFLITE_MICRO_IN_FLOAT:
            _compute_in_float(graph, subgraph, operator, TFLITE_MICRO_IN_FLOAT[name])


def _broadcast_tile(graph: TFLiteGraph, subgraph: Any, operator: Any) -> None:
    """Make BROADCAST_TO of a TILE that repeats axes of size one; others stay as they are."""
    old, new = (subgraph.tensors[side[0]].shape for side in (operator.inputs, operator.outputs))
    if all(m in (1, n) for m, n in zip(old, new, strict=True)):
        operator.inputs = np.array([operator.inputs[0], graph.integers(subgraph, new)], "int32")
        graph.replace_op(operator, "BROADCAST_TO", version=2)


def _compute_in_float(graph: TFLiteGraph, subgraph: Any, operator: Any, places: list[int]) -> None:
    """Let an operator on integers or booleans compute in float32: CAST, the operator, CAST.

    Args:
        graph, subgraph: The graph.
        operator: The operator. One on other types stays as it is.
        places: The places of the inputs that it computes with.
    """
    if {graph.type(subgraph, operator.inputs[i]) for i in places} <= {"INT32", "BOOL"}:
        _convert(graph, subgraph, operator, places, "CAST", "FLOAT32")


def _convert(
    graph: TFLiteGraph, subgraph: Any, operator: Any, places: list[int], name: str, dtype: str
) -> None:
    """Put an op of one input before some inputs of an operator and after all its outputs.

    Args:
        graph, subgraph, operator: The operator and where it is.
        places: The places of the inputs.
        name: The name of the op.
        dtype: The type of the tensors between the op and the operator.
    """
    place = next(i for i, other in enumerate(subgraph.operators) if other is operator)
    takes, gives = np.array(operator.inputs)[places], np.array(operator.outputs)
    new = [graph.new_tensor(subgraph, subgraph.tensors[i], dtype=dtype) for i in (*takes, *gives)]
    operator.inputs = np.array(operator.inputs, "int32")
    operator.inputs[places] = new[: len(places)]
    operator.outputs = np.array(new[len(places) :], "int32")
    before = (graph.new_operator(name, [x], [y]) for x, y in zip(takes, new, strict=False))
    after = (
        graph.new_operator(name, [x], [y]) for x, y in zip(operator.outputs, gives, strict=True)
    )
    subgraph.operators[place : place + 1] = [*before, operator, *after]
