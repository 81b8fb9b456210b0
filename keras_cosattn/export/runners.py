"""Exported files as functions: `run(signature, inputs) -> outputs`, by name, in NumPy."""

import re
import subprocess
import sys

_ALLOCATE = """
import sys
from tflite_micro import runtime
model = sys.stdin.buffer.read()
def run(arena_size):
    interpreter = runtime.Interpreter.from_bytes(model, arena_size=arena_size)
    interpreter.invoke()
    return interpreter
if sys.argv[1] == "0":
    run(10 * len(model) + (1 << 20)).print_allocations()
else:  # planning takes more for a moment than what is kept
    for arena_size in range(int(sys.argv[1]), 2 * int(sys.argv[1]) + (1 << 16), 1024):
        try:
            run(arena_size)
        except RuntimeError:
            continue
        print("suffices:", arena_size, file=sys.stderr)
        break
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
    """A TFLite file, on LiteRT, with one thread."""
    interpreter = interpreter_class()(model_path=str(path), num_threads=1)
    runners = {
        name: interpreter.get_signature_runner(name) for name in interpreter.get_signature_list()
    }
    return lambda signature, inputs: dict(runners[signature](**inputs))


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
    """A model with one signature, on tflite-micro, which knows its tensors by their places.

    Args:
        content: the bytes of the model.
        names: (inputs, outputs), names in the order of the graph.
        arena_size: bytes.
    """
    from tflite_micro import runtime

    interpreter = runtime.Interpreter.from_bytes(content, arena_size=arena_size)

    def run(signature, inputs):
        for i, name in enumerate(names[0]):
            interpreter.set_input(inputs[name], i)
        interpreter.invoke()
        return {name: interpreter.get_output(i) for i, name in enumerate(names[1])}

    return run


def micro_arena(content):
    """Bytes of arena in which tflite-micro runs a model, to a KiB.

    Asked in other processes, for tflite-micro ends its own where a model does not suit it.
    Raises ValueError with what it says if it cannot load the model, or not run it on zeros.
    """
    kept = _from_micro(content, "0", r"Arena allocation total (\d+) bytes")
    return _from_micro(content, str(kept), r"suffices: (\d+)")


def _from_micro(content, start, pattern):
    command = [sys.executable, "-c", _ALLOCATE, start]
    found = subprocess.run(command, input=content, capture_output=True)
    said = found.stderr.decode(errors="replace")
    number = re.search(pattern, said)
    if found.returncode or number is None:
        lines = [line for line in said.splitlines() if line.strip()]
        raise ValueError(f"tflite-micro cannot run the model. It says: {' | '.join(lines[:3])}")
    return int(number[1])
