"""Integers of 32 bits in a TFLite graph, for runtimes that lack those of 64 bits."""

from __future__ import annotations

import numpy as np

from keras_cosattn.export.tflite_graph import TFLiteGraph


def use_int32(graph: TFLiteGraph) -> None:
    """Make int32 of every int64, unless a signature takes or gives int64, or a constant is too
    large.
    """
    types, graphs = graph.tensor_types, graph.model.subgraphs
    wide = [t for subgraph in graphs for t in subgraph.tensors if t.type == types.INT64]
    ends = [s.tensors[i] for s in graphs for i in (*s.inputs, *s.outputs)]
    constants = {id(t): x for t in wide if (x := graph.read(t, "int64")) is not None}
    fit = all(np.array_equal(x, x.astype("int32")) for x in constants.values())
    if not fit or any(tensor.type == types.INT64 for tensor in ends):
        return
    for tensor in wide:
        tensor.type = types.INT32
        if id(tensor) in constants:
            tensor.buffer = graph.new_buffer(constants[id(tensor)].astype("int32"))
    for *_, operator, _ in graph.operators():
        for option in ("outputType", "outType", "inDataType", "outDataType"):
            if getattr(operator.builtinOptions, option, None) == types.INT64:
                setattr(operator.builtinOptions, option, types.INT32)
