"""Rewrites for GPU delegates: ops on booleans become ops on numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_cosattn.export.float16 import LARGEST_COUNT
from keras_cosattn.export.tflite_graph import TFLiteGraph


def as_numbers(graph: TFLiteGraph, subgraph: Any, operator: Any) -> list[Any]:
    """Let an operator on booleans compute in float32: CAST, the operator, CAST of the result."""
    written: list[Any] = []
    inputs = np.array(operator.inputs, "int32")
    for position, index in enumerate(inputs):
        if graph.type(subgraph, index) != "BOOL":
            continue
        values = graph.values(subgraph, index)
        if values is not None:
            inputs[position] = graph.floats(subgraph, values)
        else:
            inputs[position] = graph.new_tensor(subgraph, subgraph.tensors[index], dtype="FLOAT32")
            written.append(graph.new_operator("CAST", [index], [inputs[position]]))
    destination = operator.outputs[0]
    found = graph.new_tensor(subgraph, subgraph.tensors[destination], dtype="FLOAT32")
    operator.inputs, operator.outputs = inputs, np.array([found], "int32")
    return [*written, operator, graph.new_operator("CAST", [found], [destination])]


def rewrite_concatenation(graph: TFLiteGraph, subgraph: Any, operator: Any) -> list[Any]:
    """Concatenate booleans as numbers."""
    boolean = graph.type(subgraph, operator.outputs[0]) == "BOOL"
    return as_numbers(graph, subgraph, operator) if boolean else [operator]


def rewrite_cumsum(graph: TFLiteGraph, subgraph: Any, operator: Any) -> list[Any]:
    """Count booleans in float32 in place of int32, where float16 can count so far."""
    source, axis = operator.inputs
    destination, shape = operator.outputs[0], subgraph.tensors[operator.inputs[0]].shape
    maker = next((o for o in subgraph.operators if source in o.outputs), None)
    counts = (
        maker is not None
        and graph.op_name(maker) == "CAST"
        and graph.type(subgraph, maker.inputs[0]) == "BOOL"
        and shape[int(graph.constant(subgraph, axis))] <= LARGEST_COUNT
    )
    if not counts or graph.type(subgraph, destination) != "INT32":
        return [operator]
    like = subgraph.tensors[destination]
    number, count = (graph.new_tensor(subgraph, like, dtype="FLOAT32") for _ in range(2))
    operator.inputs = np.array([number, axis], "int32")
    operator.outputs = np.array([count], "int32")
    return [
        graph.new_operator("CAST", [source], [number]),
        operator,
        graph.new_operator("CAST", [count], [destination]),
    ]
