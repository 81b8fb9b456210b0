"""What GPU delegates do not run, or run wrongly: rules on the ops of a TFLite graph.

They are those that LiteRT's GPU delegate asks of each op. (TensorFlow's analyzer would tell, but
that of 2.21 finds no fault with any graph.)
"""

import numpy as np

from keras_cosattn.export.gpu import ELEMENTWISE, each_smaller

MOST_AXES = 4
NUMBERS = frozenset(["FLOAT32", "FLOAT16", "INT32"])
CONSTANT_LAST = frozenset(
    [
        "DIV", "FLOOR_DIV", "FLOOR_MOD", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "POW",
        "SUB",
    ]
)  # fmt: skip
"""Ops of which LiteRT's GPU delegate takes a constant of many numbers that comes first for the
last: measured, as is that it misreads constants of `_has_batch`."""

LEAST_MASK = 1000.0
"""A score that so much is taken off has no weight: a mask, not a bias."""

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

TRUTH = frozenset(
    [
        "CAST", "EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "LOGICAL_AND",
        "NOT_EQUAL", "RESHAPE", "SELECT", "SELECT_V2",
    ]
)  # fmt: skip
"""Ops that also take, or give, truth values."""


def problems(graph):
    """What keeps GPU delegates from running the graph whole and rightly, a set of ops with reasons.

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
        odd = types - (NUMBERS | {"BOOL"} if name in TRUTH else NUMBERS)
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


def _is_table(graph, tensor):
    return graph.is_constant(tensor) and tensor.shape is not None and np.prod(tensor.shape) > 1


def _has_batch(graph, subgraph, index):
    values = graph.values(subgraph, index)
    numbers = values is not None and values.dtype == np.float32
    return numbers and values.ndim in (2, 3) and values.shape[0] > 1


def _adds_mask(graph, subgraph):
    """Whether a mask is added to, or taken from, a batch product."""
    makers = {i: operator for operator in subgraph.operators or () for i in operator.outputs}

    def is_product(index):
        maker = makers.get(index)
        name = maker and graph.op_name(maker)
        if name in ("MUL", "DIV", "RESHAPE", "TRANSPOSE"):
            return any(is_product(i) for i in maker.inputs)
        return name == "BATCH_MATMUL"

    def is_mask(index):
        values, maker = graph.values(subgraph, index), makers.get(index)
        if values is not None and values.dtype == np.float32:
            return bool(np.any(np.abs(values) >= LEAST_MASK))
        if maker is None or graph.op_name(maker) not in _SPREAD:
            return False
        return any(is_mask(i) for i in maker.inputs)

    for operator in subgraph.operators or ():
        if graph.op_name(operator) in ("ADD", "SUB"):
            first, second = operator.inputs
            if (is_product(first) and is_mask(second)) or (is_product(second) and is_mask(first)):
                return True
    return False


_SPREAD = ("MUL", "SELECT", "SELECT_V2", "RESHAPE", "TILE", "TRANSPOSE", "STRIDED_SLICE", "SUB")
"""Ops that give a mask's numbers on."""
