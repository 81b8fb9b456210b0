"""FILL in place of large constants of one number, such as the zeros of a first state."""

from __future__ import annotations

from typing import Any

from keras_cosattn.export.tflite_graph import TFLiteGraph

LARGEST_KEPT = 64
"""The size up to which a constant stays. An op takes about as much of the file."""


def fill_constants(graph: TFLiteGraph) -> None:
    """Let FILL make the outputs that are constants of one number, in float32 or int32."""
    makers = {"float32": graph.floats, "int32": graph.integers}
    for subgraph in graph.model.subgraphs:
        for index in dict.fromkeys(subgraph.outputs):
            values = graph.values(subgraph, index)
            if values is None or values.size <= LARGEST_KEPT or str(values.dtype) not in makers:
                continue
            first = values.flat[0]
            if (values == first).all():
                _drop_values(graph, subgraph.tensors[index])
                shape = graph.integers(subgraph, values.shape)
                number = makers[str(values.dtype)](subgraph, first)
                operator = graph.new_operator("FILL", [shape, number], [index])
                subgraph.operators = [operator, *(subgraph.operators or ())]


def _drop_values(graph: TFLiteGraph, tensor: Any) -> None:
    """Remove the numbers of a constant. They stay in the file while another constant has them."""
    number, tensor.buffer = tensor.buffer, 0
    if all(t.buffer != number for subgraph in graph.model.subgraphs for t in subgraph.tensors):
        graph.model.buffers[number].data = None
