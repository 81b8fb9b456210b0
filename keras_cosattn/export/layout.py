"""How a runtime lays out a TFLite graph: delegated parts, and what lives in memory at once."""

import math

import numpy as np

from keras_cosattn.export.runners import interpreter_class


def allocated(graph, signature, shapes):
    """How a runtime lays out one signature at given sizes of its inputs.

    Args:
        graph: a `Graph`, in which that of the signature comes first afterwards.
        signature: its name.
        shapes: input name -> shape.

    Returns:
        The number of parts that XNNPACK runs, and the largest number of bytes that live at
        once: constants all the time, an input, output or variable likewise, every other tensor
        from the op that makes it to the last that reads it.
    """
    interpreter = _interpreter(graph, signature, shapes)
    delegated = [op for op in interpreter._get_ops_details() if op["op_name"] == "DELEGATE"]
    subgraph = graph.model.subgraphs[graph.signatures[signature]]
    return len(delegated), _peak(graph, subgraph, _sizes(interpreter))


def largest_tensors(graph, signature, shapes, count=3):
    """`(bytes, shape, op)` of the largest that its ops compute, arguments as `allocated`."""
    interpreter = _interpreter(graph, signature, shapes)
    found = {d["index"]: tuple(map(int, d["shape"])) for d in interpreter.get_tensor_details()}
    sizes = _sizes(interpreter)
    computed = [
        (sizes[i], found[i], graph.op_name(operator))
        for operator in graph.model.subgraphs[graph.signatures[signature]].operators or ()
        for i in operator.outputs
        if i in sizes
    ]
    return sorted(computed, reverse=True)[:count]


def _interpreter(graph, signature, shapes):
    """An interpreter whose first graph is that of a signature, after a run on ones.

    Where shapes are open, many tensors have no size before.
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


def _peak(graph, subgraph, sizes):
    always, spans, ends = 0, {}, {*subgraph.inputs, *subgraph.outputs}
    for i, tensor in enumerate(subgraph.tensors):
        if graph.is_constant(tensor) or tensor.isVariable or i in ends:
            always += sizes.get(i, 0)
        else:
            spans[i] = None
    for step, operator in enumerate(subgraph.operators):
        for i in (*operator.inputs, *operator.outputs):
            if i in spans:
                spans[i] = (spans[i] or [step, step])[0], step
    changes = np.zeros(len(subgraph.operators) + 1, "int64")
    for i, span in spans.items():
        if span is not None:
            changes[span[0]] += sizes.get(i, 0)
            changes[span[1] + 1] -= sizes.get(i, 0)
    return int(always + np.cumsum(changes).max(initial=0))


def _sizes(interpreter):
    """Number of a tensor -> its bytes."""
    return {
        d["index"]: math.prod(d["shape"].tolist()) * np.dtype(d["dtype"]).itemsize
        for d in interpreter.get_tensor_details()
    }
