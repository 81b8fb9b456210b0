"""TFLite graphs written for GPU delegates, which compute in float16 and on four axes."""

import math

import numpy as np

from keras_cosattn.export.narrow import narrow

LARGEST, SMALLEST = 65504.0, 2.0**-14
"""The largest and the smallest normal number of float16, in which GPU delegates compute."""

MOST_COUNTED = 2048
"""float16 counts to here in steps of one."""


def rewrite(graph):
    """The same in other ops: all axes are there, no fifth is made, and no number leaves float16.

    - Integers of 64 bits have 32.
    - STRIDED_SLICE of fewer than three axes, or that drops one: between two RESHAPEs.
    - GATHER with more than one axis of indices: RESHAPE, GATHER, RESHAPE.
    - BROADCAST_TO: TILE.
    - CUMSUM that counts truth values along at most 2,048 steps, where float16 counts: in float32.
    - Operands of fewer axes than the result: RESHAPE. (A delegate has four axes always, and takes
      the rows of a matrix for the batch.) Of two that each repeat along an axis, TILE of one.
    - Constants that come first in a difference or comparison come last.
    - Constants beyond float16's range, such as what a softmax sees in place of a masked score, are
      its ends; guards `MAXIMUM(x, c)` with a smaller c are its smallest number, as c would be zero.
    """
    narrow(graph)
    for subgraph in graph.model.subgraphs:
        written = []
        for operator in subgraph.operators or ():
            name = graph.op_name(operator)
            _hold_constants(graph, subgraph, operator, name)
            written += _REWRITES.get(name, _as_it_is)(graph, subgraph, operator)
        subgraph.operators = written


def _as_it_is(graph, subgraph, operator):
    return [operator]


def _hold_constants(graph, subgraph, operator, name):
    """Bring the operator's constants into float16's range."""
    inputs = np.array(operator.inputs, "int32")
    for position, index in enumerate(inputs):
        values = graph.values(subgraph, index)
        if values is None or values.dtype != np.float32 or not values.size:
            continue
        held = np.clip(values, -LARGEST, LARGEST)  # NaN stays
        if name == "MAXIMUM":
            held = np.where((held > 0) & (held < SMALLEST), np.float32(SMALLEST), held)
        if not np.array_equal(held, values, equal_nan=True):
            inputs[position] = graph.floats(subgraph, held)
    operator.inputs = inputs


def _all_axes(graph, subgraph, operator):
    """Operands with some axes get as many as the result has; those without any may stay."""
    count = len(subgraph.tensors[operator.outputs[0]].shape)
    inputs, written = np.array(operator.inputs, "int32"), []
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


def _elementwise(graph, subgraph, operator):
    """Operands with all axes; of two that each repeat along an axis TILE of one, no constant."""
    *written, operator = _all_axes(graph, subgraph, operator)
    inputs = np.array(operator.inputs, "int32")
    if each_smaller(*(subgraph.tensors[i].shape for i in inputs)):
        place = int(graph.is_constant(subgraph.tensors[inputs[0]]))
        part, shape = inputs[place], subgraph.tensors[operator.outputs[0]].shape
        inputs[place] = graph.new_tensor(subgraph, subgraph.tensors[part], shape)
        tile = _tile(graph, subgraph, part, inputs[place])
        truth = graph.type(subgraph, part) == "BOOL"
        written += _as_numbers(graph, subgraph, tile) if truth else [tile]
        operator.inputs = inputs
    return [*written, operator]


def _strided_slice(graph, subgraph, operator):
    """RESHAPE to three axes, the slice by numbers alone, RESHAPE; truth values as numbers."""
    source, *parts = operator.inputs
    destination, options = operator.outputs[0], operator.builtinOptions
    tensor, truth = subgraph.tensors[source], graph.type(subgraph, source) == "BOOL"
    shape = [int(n) for n in tensor.shape]
    begin, end, stride = (graph.values(subgraph, i) for i in parts)
    if options.newAxisMask or options.ellipsisMask or begin is None or end is None:
        return [operator]
    if not (options.shrinkAxisMask or truth) and len(shape) >= 3:
        # Anew, for all have the version of the latest, which may be that for truth values.
        return [graph.new_operator("STRIDED_SLICE", operator.inputs, operator.outputs, operator)]

    def bound(axis):
        if options.shrinkAxisMask >> axis & 1:
            first = int(begin[axis]) % shape[axis]
            return first, first + 1, 1
        first = None if options.beginMask >> axis & 1 else int(begin[axis])
        last = None if options.endMask >> axis & 1 else int(end[axis])
        return slice(first, last, int(stride[axis])).indices(shape[axis])

    bounds = [(0, 1, 1)] * (3 - len(shape)) + [bound(axis) for axis in range(len(shape))]
    wide = graph.new_tensor(subgraph, tensor, [1] * (3 - len(shape)) + shape)
    cut = graph.new_tensor(subgraph, tensor, [len(range(*each)) for each in bounds])
    bounds = [graph.integers(subgraph, x) for x in zip(*bounds, strict=True)]
    for mask in ("beginMask", "endMask", "shrinkAxisMask"):
        setattr(options, mask, 0)
    sliced = graph.new_operator("STRIDED_SLICE", [wide, *bounds], [cut], like=operator)
    return [
        graph.reshape(subgraph, source, wide),
        *(_as_numbers(graph, subgraph, sliced) if truth else [sliced]),
        graph.reshape(subgraph, cut, destination),
    ]


def _as_numbers(graph, subgraph, operator):
    """An operator on truth values as one on numbers: CAST to float32, and of the result back."""
    written, inputs = [], np.array(operator.inputs, "int32")
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


def _concatenation(graph, subgraph, operator):
    """Truth values as numbers."""
    truth = graph.type(subgraph, operator.outputs[0]) == "BOOL"
    return _as_numbers(graph, subgraph, operator) if truth else [operator]


def _constant_last(graph, subgraph, operator):
    """`c < x` as `x > c`, `c - x` as `-x + c`: LiteRT takes a constant that comes first as last."""
    first, second = operator.inputs
    if graph.is_constant(subgraph.tensors[first]):
        name, result = graph.op_name(operator), operator.outputs
        if name in _MIRRORED:
            operator = graph.new_operator(_MIRRORED[name], [second, first], result)
        else:
            negative = graph.new_tensor(subgraph, subgraph.tensors[second])
            added = graph.new_operator("ADD", [negative, first], result)
            added = _elementwise(graph, subgraph, added)
            return [graph.new_operator("NEG", [second], [negative]), *added]
    return _elementwise(graph, subgraph, operator)


_MIRRORED = {
    "LESS": "GREATER",
    "GREATER": "LESS",
    "LESS_EQUAL": "GREATER_EQUAL",
    "GREATER_EQUAL": "LESS_EQUAL",
}


def _multiply(graph, subgraph, operator):
    """A tensor times itself: SQUARE."""
    first, second = operator.inputs
    if first == second:
        return [graph.new_operator("SQUARE", [first], operator.outputs)]
    return _elementwise(graph, subgraph, operator)


def _gather(graph, subgraph, operator):
    """GATHER by a list of indices, and RESHAPE."""
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


def _broadcast_to(graph, subgraph, operator):
    """RESHAPE to as many axes, and TILE."""
    source, destination = operator.inputs[0], operator.outputs[0]
    shape, target = (subgraph.tensors[i].shape for i in (source, destination))
    shape = [1] * (len(target) - len(shape)) + [int(n) for n in shape]
    wide = graph.new_tensor(subgraph, subgraph.tensors[source], shape)
    tile = _tile(graph, subgraph, wide, destination)
    truth = graph.type(subgraph, source) == "BOOL"
    return [
        graph.reshape(subgraph, source, wide),
        *(_as_numbers(graph, subgraph, tile) if truth else [tile]),
    ]


def _cumsum(graph, subgraph, operator):
    """Of truth values as integers: of them as float32, and CAST, where float16 can count so far."""
    source, axis = operator.inputs
    destination, shape = operator.outputs[0], subgraph.tensors[operator.inputs[0]].shape
    maker = next((o for o in subgraph.operators if source in o.outputs), None)
    counts = (
        maker is not None
        and graph.op_name(maker) == "CAST"
        and graph.type(subgraph, maker.inputs[0]) == "BOOL"
        and shape[int(graph.values(subgraph, axis))] <= MOST_COUNTED
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


def _select(graph, subgraph, operator):
    """Operands with all axes, and TILE of those to choose from to the size of the result."""
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
        written.append(_tile(graph, subgraph, index, inputs[position]))
    operator.inputs = inputs
    return [*written, operator]


def _tile(graph, subgraph, source, destination):
    shape, target = (subgraph.tensors[i].shape for i in (source, destination))
    times = [int(m) // int(n) for m, n in zip(target, shape, strict=True)]
    return graph.new_operator("TILE", [source, graph.integers(subgraph, times)], [destination])


def _batch_matmul(graph, subgraph, operator):
    """`A B` with a constant A: `(B^T A^T)^T`."""
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
    order = [*range(len(batch)), len(batch) + 1, len(batch)]
    order = graph.integers(subgraph, order)
    return [operator, graph.new_operator("TRANSPOSE", [found, order], [destination])]


def each_smaller(*shapes):
    """Whether of two shapes each is the smaller along some axis."""
    first, second = (() if shape is None else tuple(shape) for shape in shapes)
    pairs = list(zip(first, second, strict=False))
    return any(m < n for m, n in pairs) and any(m > n for m, n in pairs)


ELEMENTWISE = (
    "ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "POW", "SQUARED_DIFFERENCE", "FLOOR_DIV",
    "FLOOR_MOD", "EQUAL", "NOT_EQUAL", "LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL",
    "LOGICAL_AND",
)  # fmt: skip
"""Ops whose operands may have fewer axes than their result."""

_REWRITES = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys((*_MIRRORED, "SUB"), _constant_last),
    "MUL": _multiply,
    "CONCATENATION": _concatenation,
    "SELECT": _select,
    "SELECT_V2": _select,
    "BATCH_MATMUL": _batch_matmul,
    "STRIDED_SLICE": _strided_slice,
    "GATHER": _gather,
    "BROADCAST_TO": _broadcast_to,
    "CUMSUM": _cumsum,
}
