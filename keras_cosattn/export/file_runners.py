"""Exported files as functions `run(signature, inputs) -> outputs` of named arrays."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from keras_cosattn.export.check_inputs import Arrays
from keras_cosattn.export.checks import Run
from keras_cosattn.export.tflite_graph import TFLiteGraph

Read = Callable[[int], np.ndarray]
"""A function of the number of a tensor that returns its values."""


def saved_model_runner(path: str | os.PathLike[str]) -> Run:
    """A SavedModel on TensorFlow."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))

    def run(signature: str, inputs: Arrays) -> Arrays:
        tensors = {name: tf.constant(x) for name, x in inputs.items()}
        return {k: y.numpy() for k, y in loaded.signatures[signature](**tensors).items()}

    return run


def tflite_runner(path: str | os.PathLike[str]) -> Run:
    """A TFLite file on LiteRT with one thread. One without `reset` is loaded again for it.

    Raises:
        ValueError: If LiteRT cannot load or run the file, with what it says.
    """

    def load() -> dict[str, Any]:
        with _refusals_of_litert(path):
            file = interpreter_class()(model_path=str(path), num_threads=1)
            return {name: file.get_signature_runner(name) for name in file.get_signature_list()}

    signatures = load()

    def run(signature: str, inputs: Arrays) -> Arrays:
        nonlocal signatures
        if signature == "reset" and signature not in signatures:
            signatures = load()
            return {}
        with _refusals_of_litert(path):
            return dict(signatures[signature](**inputs))

    return run


@contextlib.contextmanager
def _refusals_of_litert(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise ValueError where LiteRT raises RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        raise ValueError(
            f"LiteRT cannot run the file {path}. It says: {' '.join(str(error).split())}. Other "
            "layers, or a fixed `length` and `batch_size`, may avoid that op."
        ) from error


def tensor_runner(graph: TFLiteGraph) -> Callable[[str, Arrays], tuple[Arrays, Read]]:
    """A graph on LiteRT's plain kernels, where every tensor can be read after a run.

    Returns:
        A function `run(signature, inputs) -> (outputs, read)`, where `read(i)` is the tensor i.
    """
    interpreter_type = interpreter_class()
    from ai_edge_litert.interpreter import OpResolverType

    interpreter = interpreter_type(
        model_content=graph.content,
        num_threads=1,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    runners = {name: interpreter.get_signature_runner(name) for name in graph.signatures}

    def run(signature: str, inputs: Arrays) -> tuple[Arrays, Read]:
        index = graph.signatures[signature]
        outputs = dict(runners[signature](**inputs))
        return outputs, lambda i: interpreter.get_tensor(i, index)

    return run


def micro_runner(content: bytes, names: tuple[Sequence[str], Sequence[str]], arena: int) -> Run:
    """A model with one signature, and `reset`, on tflite-micro, which has no names of tensors.

    Args:
        content: bytes. The model.
        names: The names of the inputs and of the outputs, in the order of the graph.
        arena: int. The size of the arena in bytes.
    """
    from tflite_micro import runtime

    interpreter = runtime.Interpreter.from_bytes(content, arena_size=arena)

    def run(signature: str, inputs: Arrays) -> Arrays:
        if signature == "reset":
            interpreter.reset()
            return {}
        for i, name in enumerate(names[0]):
            interpreter.set_input(inputs[name], i)
        interpreter.invoke()
        return {name: interpreter.get_output(i) for i, name in enumerate(names[1])}

    return run


def interpreter_class() -> Any:
    """LiteRT's interpreter. Raises ImportError if it is not installed."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ImportError(
            "Every TFLite export is run before it is kept, on LiteRT: pip install ai-edge-litert"
        ) from error
    return Interpreter
