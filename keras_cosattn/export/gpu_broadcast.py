"""Rewrites for GPU delegates: operands get as many axes as the result, and TILE repeats them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_cosattn.export.gpu_booleans import as_numbers
from keras_cosattn.export.tflite_graph import TFLiteGraph

ELEMENTWISE = (
    "ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "POW", "SQUARED_DIFFERENCE", "FLOOR_DIV",
    "FLOOR_MOD", "EQUAL", "NOT_EQUAL", "LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL",
    "LOGICAL_AND",
)  # fmt: skip
"""Ops whose operands may have fewer axes than their result."""

MIRRORED = {
    "LESS": "GREATER",
    "GREATER": "LESS",
    "LESS_EQUAL": "GREATER_EQUAL",
    "GREATER_EQUAL": "LESS_EQUAL",
}
"""A comparison and the one that gives the same with the operands exchanged."""


def rewrite_elementwise(graph: TFLiteGraph, subgraph: Any, operator: Any) -> list[Any]:
    """Give the operands all axes. If each of two repeats along an axis, TILE one that varies."""
    *written, operator = _all_axes(graph, subgraph, operator)
    inputs = np.array(operator.inputs, "int32")
    if each_smaller(*(subgraph.tensors[i].shape for i in inputs)):
        place = int(graph.is_constant(subgraph.tensors[inputs[0]]))
        part, shape = inputs[place], subgraph.tensors[operator.outputs[0]].shape
        inputs[place] = graph.new_tensor(subgraph, subgraph.tensors[part], shape)
        tile = tile_operator(graph, subgraph, part, inputs[place])
        boolean = graph.type(subgraph, part) == "BOOL"
        written += as_numbers(graph, subgraph, tile) if boolean else [tile]
        operator.inputs = inputs
    return [*written, operator]


def rewrite_constant_first(graph: TFLiteGraph, subgraph: Any, operator: Any) -> list[Any]:
    """Write `c < x` as `x > c`, `c - x` as `-x + c`: LiteRT reads a first constant as the last."""
    first, second = operator.inputs
    if graph.is_constant(subgraph.tensors[first]):
        name, result = graph.op_name(operator), operator.outputs
        if name in MIRRORED:
            operator = graph.new_operator(MIRRORED[name], [second, first], result)
        else:
            negative = graph.new_tensor(subgraph, subgraph.tensors[second])
            added = graph.new_operator("ADD", [negative, first], result)
            added = rewrite_elementwise(graph, subgraph, added)
            return [graph.new_operator("NEG", [second], [negative]), *added]
    return rewrite_elementwise(graph, subgraph, operator)


def rewrite_multiply(graph: TFLiteGraph, subgraph: Any, operator: Any) -> list[Any]:
    """Write a tensor times itself as SQUARE."""
    first, second = operator.inputs
    if first == second:
        return [graph.new_operator("SQUARE", [first], operator.outputs)]
    return rewrite_elementwise(graph, subgraph, operator)


def rewrite_select(graph: TFLiteGraph, subgraph: Any, operator: Any) -> list[Any]:
    """Give the operands all axes, and TILE those to choose from to the size of the result."""
    *written, operator = _all_axes(graph, subgraph, operator)
    target = [int(n) for n in subgraph.tensors[operator.outputs[0]].shape]
    inputs = np.array(operator.inputs, "int32")
    for position in (1, 2):
        index = inputs[position]
        tensor = subgraph.tensors[index]
        shape = [] if tensor.shape is None else [int(n) for n in tensor.shape]
        if not shape or shape == target or graph.is_constant(tensor):
            continue
        inputs[position] = graph.new_tensor(subgraph, tensor, target)
        written.append(tile_operator(graph, subgraph, index, inputs[position]))
    operator.inputs = inputs
    return [*written, operator]


def rewrite_broadcast_to(graph: TFLiteGraph, subgraph: Any, operator: Any) -> list[Any]:
    """Write it as RESHAPE to as many axes, and TILE."""
    source, destination = operator.inputs[0], operator.outputs[0]
    shape, target = (subgraph.tensors[i].shape for i in (source, destination))
    shape = [1] * (len(target) - len(shape)) + [int(n) for n in shape]
    wide = graph.new_tensor(subgraph, subgraph.tensors[source], shape)
    tile = tile_operator(graph, subgraph, wide, destination)
    boolean = graph.type(subgraph, source) == "BOOL"
    return [
        graph.reshape(subgraph, source, wide),
        *(as_numbers(graph, subgraph, tile) if boolean else [tile]),
    ]


def _all_axes(graph: TFLiteGraph, subgraph: Any, operator: Any) -> list[Any]:
    """Give operands with some axes as many as the result has; those without any may stay."""
    count = len(subgraph.tensors[operator.outputs[0]].shape)
    written: list[Any] = []
    inputs = np.array(operator.inputs, "int32")
    for position, index in enumerate(inputs):
        tensor = subgraph.tensors[index]
        shape = [] if tensor.shape is None else [int(n) for n in tensor.shape]
        if not 0 < len(shape) < count:
            continue
        inputs[position] = graph.new_tensor(subgraph, tensor, [1] * (count - len(shape)) + shape)
        if graph.is_constant(tensor):
            subgraph.tensors[inputs[position]].buffer = tensor.buffer
        else:
            written.append(graph.reshape(subgraph, index, inputs[position]))
    operator.inputs = inputs
    return [*written, operator]


def tile_operator(graph: TFLiteGraph, subgraph: Any, source: int, destination: int) -> Any:
    """A TILE from one tensor to another of the same number of axes."""
    shape, target = (subgraph.tensors[i].shape for i in (source, destination))
    times = [int(m) // int(n) for m, n in zip(target, shape, strict=True)]
    return graph.new_operator("TILE", [source, graph.integers(subgraph, times)], [destination])


def each_smaller(*shapes: Sequence[int] | None) -> bool:
    """Whether of two shapes each is the smaller along some axis."""
    first, second = (() if shape is None else tuple(shape) for shape in shapes)
    pairs = list(zip(first, second, strict=False))
    return any(m < n for m, n in pairs) and any(m > n for m, n in pairs)
