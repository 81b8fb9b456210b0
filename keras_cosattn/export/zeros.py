"""TFLite graphs that make the zeros which a state begins with, in place of holding them."""

MOST_HELD = 64
"""Numbers that a constant may have, and stay: an op takes about as much of the file."""


def fill(graph):
    """Results that are constants of one number, in float32 or int32: FILL. A file holds less."""
    makers = {"float32": graph.floats, "int32": graph.integers}
    for subgraph in graph.model.subgraphs:
        for index in dict.fromkeys(subgraph.outputs):
            values = graph.values(subgraph, index)
            if values is None or values.size <= MOST_HELD or str(values.dtype) not in makers:
                continue
            first = values.flat[0]
            if (values == first).all():
                _forget(graph, subgraph.tensors[index])
                shape = graph.integers(subgraph, values.shape)
                number = makers[str(values.dtype)](subgraph, first)
                operator = graph.new_operator("FILL", [shape, number], [index])
                subgraph.operators = [operator, *(subgraph.operators or ())]


def _forget(graph, tensor):
    """Make a variable tensor of a constant; its numbers stay as long as another one has them."""
    number, tensor.buffer = tensor.buffer, 0
    if all(t.buffer != number for subgraph in graph.model.subgraphs for t in subgraph.tensors):
        graph.model.buffers[number].data = None
