"""What GPU delegates do not run, or run wrongly: rules on the ops of a TFLite graph.

The rules are those of LiteRT's GPU delegate. (TensorFlow's analyzer has rules too, but in 2.21 it
finds no fault with any graph.)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_cosattn.export.gpu_broadcast import ELEMENTWISE, each_smaller
from keras_cosattn.export.tflite_graph import TFLiteGraph

MOST_AXES = 4
NUMBERS = frozenset(["FLOAT32", "FLOAT16", "INT32"])
CONSTANT_LAST = frozenset(
    [
        "DIV", "FLOOR_DIV", "FLOOR_MOD", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "POW",
        "SUB",
    ]
)  # fmt: skip
"""Ops of which LiteRT's GPU delegate reads a first operand as the last one, if it is a constant of
many numbers. This was measured, as was that it misreads the constants of `_has_batch`."""

LEAST_MASK = 1000.0
"""A score from which so much is subtracted has no weight: this is a mask, not a bias."""

OPS = frozenset(
    [
        *ELEMENTWISE, "ABS", "ADD_N", "ATAN2", "AVERAGE_POOL_2D", "BATCH_MATMUL", "CAST", "CEIL",
        "CONCATENATION", "CONV_2D", "COS", "CUMSUM", "DENSIFY", "DEPTHWISE_CONV_2D",
        "DEPTH_TO_SPACE", "DEQUANTIZE", "DYNAMIC_UPDATE_SLICE", "ELU", "EMBEDDING_LOOKUP", "EXP",
        "FLOOR", "FULLY_CONNECTED", "GATHER", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOG",
        "LOGISTIC", "MAX_POOL_2D", "MEAN", "MIRROR_PAD", "NEG", "ONE_HOT", "PACK", "PAD", "PADV2",
        "PRELU", "QUANTIZE", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "RELU", "RELU6",
        "RELU_N1_TO_1", "RESHAPE", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "RSQRT",
        "SELECT", "SELECT_V2", "SIGN", "SIN", "SLICE", "SOFTMAX", "SPACE_TO_DEPTH", "SPLIT",
        "SPLIT_V", "SQRT", "SQUARE", "STRIDED_SLICE", "SUM", "TANH", "TILE", "TRANSPOSE",
        "TRANSPOSE_CONV",
    ]
)  # fmt: skip
"""Ops that GPU delegates run."""

BOOLEAN = frozenset(
    [
        "CAST", "EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "LOGICAL_AND",
        "NOT_EQUAL", "RESHAPE", "SELECT", "SELECT_V2",
    ]
)  # fmt: skip
"""Ops that also take, or give, booleans."""


def gpu_problems(graph: TFLiteGraph) -> set[str]:
    """Ops, with reasons, that GPU delegates do not run, or run wrongly; empty for a good graph.

    Graphs that they run in part, with the CPU, may fail to load or give other numbers.
    """
    found = {
        "ADD of a mask to BATCH_MATMUL, which some compute wrongly (choose by the mask instead, as "
        "with `ops.where`)"
        for subgraph in graph.model.subgraphs
        if _adds_mask(graph, subgraph)
    }
    for name, _, operator, subgraph in graph.operators():
        inputs = [i for i in operator.inputs if i >= 0]
        types = {graph.type(subgraph, i) for i in (*inputs, *operator.outputs)}
        shapes = [subgraph.tensors[i].shape for i in (*inputs, *operator.outputs)]
        axes = max((0 if shape is None else len(shape) for shape in shapes), default=0)
        free = [i for i in inputs if not graph.is_constant(subgraph.tensors[i])]
        odd = types - (NUMBERS | {"BOOL"} if name in BOOLEAN else NUMBERS)
        if name not in OPS:
            found.add(name)
        elif axes > MOST_AXES:
            found.add(f"{name} with {axes} axes")
        elif odd:
            found.add(f"{name} of {', '.join(sorted(odd))}")
        elif not free and name != "DEQUANTIZE":
            found.add(f"{name} of constants alone")
        elif name in ELEMENTWISE and len(set(inputs)) < len(inputs):
            found.add(f"{name} of one tensor twice")
        elif name in CONSTANT_LAST and _is_table(graph, subgraph.tensors[inputs[0]]):
            found.add(f"{name} of a constant that comes first")
        elif name in ELEMENTWISE and any(_has_batch(graph, subgraph, i) for i in inputs):
            found.add(f"{name} of a constant with other numbers for each example")
        elif name in ("CUMSUM", "GATHER") and graph.type(subgraph, inputs[0]) == "INT32":
            found.add(f"{name} of INT32")
        elif name == "GATHER" and len(subgraph.tensors[inputs[1]].shape) > 1:
            found.add("GATHER with indices for each example")
        elif name in ELEMENTWISE and each_smaller(*(subgraph.tensors[i].shape for i in inputs)):
            found.add(f"{name} of two tensors that each repeat along an axis")
    return found


def _is_table(graph: TFLiteGraph, tensor: Any) -> bool:
    return graph.is_constant(tensor) and tensor.shape is not None and np.prod(tensor.shape) > 1


def _has_batch(graph: TFLiteGraph, subgraph: Any, index: int) -> bool:
    """Whether a constant has other numbers for each example."""
    values = graph.values(subgraph, index)
    if values is None or values.dtype != np.float32:
        return False
    return values.ndim in (2, 3) and values.shape[0] > 1


def _adds_mask(graph: TFLiteGraph, subgraph: Any) -> bool:
    """Whether a mask is added to, or taken from, a batch product."""
    makers: dict[int, Any] = {
        i: operator for operator in subgraph.operators or () for i in operator.outputs
    }

    def is_product(index: int) -> bool:
        maker = makers.get(index)
        if maker is None:
            return False
        name = graph.op_name(maker)
        if name in ("MUL", "DIV", "RESHAPE", "TRANSPOSE"):
            return any(is_product(i) for i in maker.inputs)
        return name == "BATCH_MATMUL"

    def is_mask(index: int) -> bool:
        values, maker = graph.values(subgraph, index), makers.get(index)
        if values is not None and values.dtype == np.float32:
            return bool(np.any(np.abs(values) >= LEAST_MASK))
        if maker is None or graph.op_name(maker) not in _PASSES_ON:
            return False
        return any(is_mask(i) for i in maker.inputs)

    for operator in subgraph.operators or ():
        if graph.op_name(operator) in ("ADD", "SUB"):
            first, second = operator.inputs
            if (is_product(first) and is_mask(second)) or (is_product(second) and is_mask(first)):
                return True
    return False


_PASSES_ON = ("MUL", "SELECT", "SELECT_V2", "RESHAPE", "TILE", "TRANSPOSE", "STRIDED_SLICE", "SUB")
"""Ops whose result holds the numbers of a mask that they read."""
