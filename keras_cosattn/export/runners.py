"""Exported files as functions: `run(signature, inputs) -> outputs`, by name, in NumPy."""

import itertools
import re
import subprocess
import sys

_ALLOCATE = """
import sys
import numpy as np
from ai_edge_litert.schema_py_generated import Model
from tflite_micro import runtime
content = sys.stdin.buffer.read()
micro = runtime.Interpreter.from_bytes(content, arena_size=int(sys.argv[1]))
for i in range(Model.GetRootAsModel(content, 0).Subgraphs(0).InputsLength()):
    details = micro.get_input_details(i)
    micro.set_input(np.zeros(details["shape"], details["dtype"]), i)
micro.invoke()
micro.print_allocations()
"""


def saved_model(path):
    """A SavedModel, on TensorFlow."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))

    def run(signature, inputs):
        inputs = {name: tf.constant(x) for name, x in inputs.items()}
        return {k: y.numpy() for k, y in loaded.signatures[signature](**inputs).items()}

    return run


def tflite(path):
    """A TFLite file, on LiteRT, with one thread; one without a `reset` is loaded anew for it."""

    def load():
        file = interpreter_class()(model_path=str(path), num_threads=1)
        return {name: file.get_signature_runner(name) for name in file.get_signature_list()}

    signatures = load()

    def run(signature, inputs):
        nonlocal signatures
        if signature == "reset" and signature not in signatures:
            signatures = load()
            return {}
        return dict(signatures[signature](**inputs))

    return run


def every_tensor(graph):
    """A `Graph` on LiteRT's plain kernels, where every tensor can be read after a run.

    A function `run(signature, inputs) -> (outputs, read)`, where `read(i)` is the tensor i.
    """
    from ai_edge_litert.interpreter import OpResolverType

    interpreter = interpreter_class()(
        model_content=graph.content,
        num_threads=1,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    runners = {name: interpreter.get_signature_runner(name) for name in graph.signatures}

    def run(signature, inputs):
        index = graph.signatures[signature]
        outputs = dict(runners[signature](**inputs))
        return outputs, lambda i: interpreter.get_tensor(i, index)

    return run


def interpreter_class():
    """LiteRT's interpreter. Raises ImportError if it is not installed."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ImportError(
            "Every TFLite export is run before it is kept, on LiteRT: "
            "pip install 'keras-cosattn[device]'"
        ) from error
    return Interpreter


def micro(content, names, arena_size):
    """A model with one signature, and `reset`, on tflite-micro, which knows tensors by places.

    Args:
        content: the bytes of the model.
        names: (inputs, outputs), names in the order of the graph.
        arena_size: bytes.
    """
    from tflite_micro import runtime

    interpreter = runtime.Interpreter.from_bytes(content, arena_size=arena_size)

    def run(signature, inputs):
        if signature == "reset":
            interpreter.reset()
            return {}
        for i, name in enumerate(names[0]):
            interpreter.set_input(inputs[name], i)
        interpreter.invoke()
        return {name: interpreter.get_output(i) for i, name in enumerate(names[1])}

    return run


def micro_arena(content):
    """Bytes of arena in which tflite-micro runs a model, to a KiB.

    Asked in other processes, for tflite-micro ends its own where a model or an arena does not suit
    it. Raises ValueError with what it says if it cannot load the model, or not run it on zeros.
    """
    found = _allocate(content, 10 * len(content) + (1 << 20))
    said = found.stderr.decode(errors="replace")
    kept = re.search(r"Arena allocation total (\d+) bytes", said)
    if found.returncode or kept is None:
        lines = [line for line in said.splitlines() if line.strip()]
        raise ValueError(f"tflite-micro cannot run the model. It says: {' | '.join(lines[:3])}")
    # Planning takes more for a moment than what is kept.
    sizes = itertools.count(int(kept[1]), 1024)
    return next(size for size in sizes if not _allocate(content, size).returncode)


def _allocate(content, arena_size):
    command = [sys.executable, "-c", _ALLOCATE, str(arena_size)]
    return subprocess.run(command, input=content, capture_output=True)
