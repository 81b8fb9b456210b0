"""Rewrites for GPU delegates: slices, gathers and batch products in forms that they support."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from keras_cosattn.export.gpu_booleans import as_numbers
from keras_cosattn.export.tflite_graph import TFLiteGraph


def rewrite_strided_slice(graph: TFLiteGraph, subgraph: Any, operator: Any) -> list[Any]:
    """Write it as RESHAPE to three axes, a slice without masks, RESHAPE; booleans as numbers."""
    source, *parts = operator.inputs
    destination, options = operator.outputs[0], operator.builtinOptions
    tensor, boolean = subgraph.tensors[source], graph.type(subgraph, source) == "BOOL"
    shape = [int(n) for n in tensor.shape]
    known = all(graph.values(subgraph, i) is not None for i in parts)
    if options.newAxisMask or options.ellipsisMask or not known:
        return [operator]
    if not (options.shrinkAxisMask or boolean) and len(shape) >= 3:
        # Anew, for all have the version of the latest, which may be that for booleans.
        return [graph.new_operator("STRIDED_SLICE", operator.inputs, operator.outputs, operator)]

    begin, end, stride = (graph.constant(subgraph, i) for i in parts)
    bounds = [(0, 1, 1)] * (3 - len(shape))
    bounds += [_bounds(options, axis, n, begin, end, stride) for axis, n in enumerate(shape)]
    wide = graph.new_tensor(subgraph, tensor, [1] * (3 - len(shape)) + shape)
    cut = graph.new_tensor(subgraph, tensor, [len(range(*each)) for each in bounds])
    constants = [graph.integers(subgraph, x) for x in zip(*bounds, strict=True)]
    for mask in ("beginMask", "endMask", "shrinkAxisMask"):
        setattr(options, mask, 0)
    sliced = graph.new_operator("STRIDED_SLICE", [wide, *constants], [cut], like=operator)
    return [
        graph.reshape(subgraph, source, wide),
        *(as_numbers(graph, subgraph, sliced) if boolean else [sliced]),
        graph.reshape(subgraph, cut, destination),
    ]


def _bounds(
    options: Any, axis: int, size: int, begin: np.ndarray, end: np.ndarray, stride: np.ndarray
) -> tuple[int, int, int]:
    """Begin, end and stride of a slice along an axis, without its masks."""
    if options.shrinkAxisMask >> axis & 1:
        first = int(begin[axis]) % size
        return first, first + 1, 1
    return slice(
        None if options.beginMask >> axis & 1 else int(begin[axis]),
        None if options.endMask >> axis & 1 else int(end[axis]),
        int(stride[axis]),
    ).indices(size)


def rewrite_gather(graph: TFLiteGraph, subgraph: Any, operator: Any) -> list[Any]:
    """Write it as GATHER with one axis of indices, and RESHAPE."""
    source, indices = operator.inputs
    destination, options = operator.outputs[0], operator.builtinOptions
    shape, index = subgraph.tensors[source].shape, subgraph.tensors[indices]
    if len(index.shape) == 1 or options.batchDims:
        return [operator]
    count, axis = math.prod(index.shape), options.axis % len(shape)
    flat = graph.new_tensor(subgraph, index, [count])
    like = subgraph.tensors[destination]
    found = graph.new_tensor(subgraph, like, [*shape[:axis], count, *shape[axis + 1 :]])
    operator.inputs = np.array([source, flat], "int32")
    operator.outputs = np.array([found], "int32")
    return [
        graph.reshape(subgraph, indices, flat),
        operator,
        graph.reshape(subgraph, found, destination),
    ]


def rewrite_batch_matmul(graph: TFLiteGraph, subgraph: Any, operator: Any) -> list[Any]:
    """Write `A B` with a constant A as `(B^T A^T)^T`."""
    left, right = operator.inputs
    if not graph.is_constant(subgraph.tensors[left]):
        return [operator]
    options, destination = operator.builtinOptions, operator.outputs[0]
    options.adjX, options.adjY = not options.adjY, not options.adjX
    like = subgraph.tensors[destination]
    *batch, rows, columns = (int(n) for n in like.shape)
    found = graph.new_tensor(subgraph, like, [*batch, columns, rows])
    operator.inputs = np.array([right, left], "int32")
    operator.outputs = np.array([found], "int32")
    axes = [*range(len(batch)), len(batch) + 1, len(batch)]
    order = graph.integers(subgraph, axes)
    return [operator, graph.new_operator("TRANSPOSE", [found, order], [destination])]
