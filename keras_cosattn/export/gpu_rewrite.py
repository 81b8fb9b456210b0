"""A TFLite graph in the ops and numbers that GPU delegates run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_cosattn.export import gpu_booleans, gpu_broadcast, gpu_indexing
from keras_cosattn.export.float16 import LARGEST, SMALLEST
from keras_cosattn.export.int32_rewrite import use_int32
from keras_cosattn.export.tflite_graph import TFLiteGraph

Rewrite = Callable[[TFLiteGraph, Any, Any], list[Any]]
"""A function of a graph, a subgraph and an operator: the operators to put in its place."""

REWRITES: dict[str, Rewrite] = {
    **dict.fromkeys(gpu_broadcast.ELEMENTWISE, gpu_broadcast.rewrite_elementwise),
    **dict.fromkeys((*gpu_broadcast.MIRRORED, "SUB"), gpu_broadcast.rewrite_constant_first),
    "MUL": gpu_broadcast.rewrite_multiply,
    "SELECT": gpu_broadcast.rewrite_select,
    "SELECT_V2": gpu_broadcast.rewrite_select,
    "BROADCAST_TO": gpu_broadcast.rewrite_broadcast_to,
    "BATCH_MATMUL": gpu_indexing.rewrite_batch_matmul,
    "STRIDED_SLICE": gpu_indexing.rewrite_strided_slice,
    "GATHER": gpu_indexing.rewrite_gather,
    "CONCATENATION": gpu_booleans.rewrite_concatenation,
    "CUMSUM": gpu_booleans.rewrite_cumsum,
}


def rewrite_for_gpu(graph: TFLiteGraph) -> None:
    """Write the graph in other ops, with four axes and with numbers that float16 holds.

    - Integers of 64 bits become integers of 32 bits.
    - STRIDED_SLICE of fewer than three axes, or that drops one: between two RESHAPEs.
    - GATHER with more than one axis of indices: RESHAPE, GATHER, RESHAPE.
    - BROADCAST_TO: TILE.
    - CUMSUM that counts booleans along at most 2,048 steps, where float16 counts: in float32.
    - Operands of fewer axes than the result: RESHAPE. (A delegate always has four axes, and takes
      the rows of a matrix for the batch.) If each of two repeats along an axis: TILE of one.
    - A constant that is the first operand of a difference or comparison becomes the last one.
    - Constants outside the range of float16, such as what a softmax sees in place of a masked
      score, become its ends. A constant of `MAXIMUM(x, c)` below its smallest number, which would
      become zero, becomes that number.
    """
    use_int32(graph)
    for subgraph in graph.model.subgraphs:
        written: list[Any] = []
        for operator in subgraph.operators or ():
            name = graph.op_name(operator)
            _limit_constants(graph, subgraph, operator, name)
            rewrite = REWRITES.get(name)
            written += [operator] if rewrite is None else rewrite(graph, subgraph, operator)
        subgraph.operators = written


def _limit_constants(graph: TFLiteGraph, subgraph: Any, operator: Any, name: str) -> None:
    """Bring the operator's constants into the range of float16."""
    inputs = np.array(operator.inputs, "int32")
    for position, index in enumerate(inputs):
        values = graph.values(subgraph, index)
        if values is None or values.dtype != np.float32 or not values.size:
            continue
        limited = np.clip(values, -LARGEST, LARGEST)  # NaN stays
        if name == "MAXIMUM":
            limited = np.where((limited > 0) & (limited < SMALLEST), np.float32(SMALLEST), limited)
        if not np.array_equal(limited, values, equal_nan=True):
            inputs[position] = graph.floats(subgraph, limited)
    operator.inputs = inputs
