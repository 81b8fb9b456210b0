"""Run a TFLite model on tflite-micro with an arena of a given size, and print what it allocates.

    python allocate_on_micro.py ARENA_BYTES < model.tflite

tflite-micro ends the process if a model or an arena does not suit it.
"""

import sys

import numpy as np
from ai_edge_litert.schema_py_generated import Model
from tflite_micro import runtime


def main(arena_size: int) -> None:
    """Run the model on zeros."""
    content = sys.stdin.buffer.read()
    micro = runtime.Interpreter.from_bytes(content, arena_size=arena_size)
    for i in range(Model.GetRootAsModel(content, 0).Subgraphs(0).InputsLength()):
        details = micro.get_input_details(i)
        micro.set_input(np.zeros(details["shape"], details["dtype"]), i)
    micro.invoke()
    micro.print_allocations()


if __name__ == "__main__":
    main(int(sys.argv[1]))
