"""Show what a .tflite file holds, how much memory it needs, and which targets can run it."""

from __future__ import annotations

import argparse
import pathlib
import textwrap
from typing import Any

from keras_cosattn.export import describe
from keras_cosattn.export.cli import internals

Metadata = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `show`."""
    parser.add_argument("file", help="a .tflite file, of this package or of any other")
    parser.add_argument(
        "--length", type=int, default=128, help="steps where the file takes any; default: 128"
    )
    parser.add_argument(
        "--explore", action="store_true", help="draw the graph in a browser with Model Explorer"
    )


def run(arguments: argparse.Namespace) -> None:
    """Print all about the file."""
    content = pathlib.Path(arguments.file).read_bytes()
    metadata, graph = read_metadata(arguments.file, content), internals.TFLiteGraph(content)
    print(f"{arguments.file}: {len(content):,} bytes, {graph.constant_bytes:,} of them constants")
    print(f"  {origin(metadata)}")
    show_state(graph, metadata)
    for name in graph.signatures:
        show_signature(name, graph, metadata, arguments.length)
    print("runs on")
    for target in internals.TARGETS:
        reason = internals.why_refused(target, graph, metadata.get("quantize"))
        print(f"  {target:15} {reason or 'yes'}")
    if arguments.explore:
        explore(arguments.file)


def read_metadata(path: str, content: bytes) -> Metadata:
    """The metadata in a file, or an empty dict. Raises ValueError if the model was changed."""
    try:
        metadata = describe(path)
    except ValueError:
        return {}
    size = metadata["content"]["bytes"]
    if internals.content_id(content[:size]) != metadata["content"]:
        raise ValueError(f"{path} is damaged: its model is not the one that was exported.")
    return metadata


def origin(metadata: Metadata) -> str:
    """Which export made a file."""
    if not metadata:
        return "no metadata: not written by keras_cosattn"
    made = ", ".join(f"{name} {version}" for name, version in metadata["versions"].items())
    parts = [f"for {metadata['target']}, {metadata['quantize'] or 'float32'}"]
    if metadata["state_bytes"]:
        limit = metadata["max_steps"]
        end = f"up to {limit:,} steps" if limit else "endless"
        parts.append(f"state {metadata['state_bytes']:,} bytes as {metadata['state_form']}, {end}")
    if metadata.get("max_whole_steps"):
        parts.append(f"whole inputs up to {metadata['max_whole_steps']:,} steps")
    return "; ".join([*parts, f"by {made}"])


def show_state(graph: internals.TFLiteGraph, metadata: Metadata) -> None:
    """Print the tensors of the state, unless they are variables."""
    specs = {key: spec for name in graph.signatures for key, spec in graph.specs(name)[1].items()}
    for key in (key for key in metadata.get("state", ()) if key in specs):
        print(f"  state {key} {format_spec(*specs[key])}")


def show_signature(
    name: str, graph: internals.TFLiteGraph, metadata: Metadata, length: int
) -> None:
    """Print a signature: inputs, outputs, accuracy, memory and ops."""
    print(name)
    show_ends(graph.specs(name), metadata.get("state", ()))
    if name in metadata.get("differences", {}):
        difference, sqnr = metadata["differences"][name], metadata["sqnr"][name]
        print(f"  compared with Keras: difference {difference:.1e}, SQNR {sqnr:.1f} dB")
    show_memory(name, graph, length)
    ops = graph.ops(name)
    total = sum(count for _, count in ops.values())
    # "~" keeps the three words of an op on one line.
    counts = ", ".join(f"{count}~{op}~v{version}" for op, (version, count) in ops.items())
    for line in textwrap.wrap(f"{total} ops: {counts}", 96, subsequent_indent="  "):
        print(f"  {line.replace('~', ' ')}")


def show_ends(specs: tuple[dict, ...], state: list[str]) -> None:
    """Print the inputs and outputs of a signature."""
    for side, sizes in zip(("in", "out"), specs, strict=True):
        for key in (key for key in sizes if key not in state):
            print(f"  {side:3} {key} {format_spec(*sizes[key])}")
        tensors = sum(key in state for key in sizes)
        if tensors:
            print(f"  {side:3} the state, {tensors} tensors")


def format_spec(shape: tuple[int | None, ...], dtype: str) -> str:
    """A shape and dtype as text.

    Example:
        >>> format_spec((1, None, 6), "float32")
        '[1, any, 6] float32'
    """
    return f"[{', '.join('any' if n is None else str(n) for n in shape)}] {dtype}"


def show_memory(name: str, graph: internals.TFLiteGraph, length: int) -> None:
    """Print the memory that a signature needs, and its largest tensors."""
    shapes = {
        key: tuple(n or (length if axis else 1) for axis, n in enumerate(shape))
        for key, (shape, _) in graph.specs(name)[0].items()
    }
    try:
        partitions, peak = internals.plan_memory(graph, name, shapes)
        largest = internals.largest_tensors(graph, name, shapes)
    except (RuntimeError, ValueError) as error:  # such as ops that LiteRT does not have
        print(f"  memory unknown: {' '.join(str(error).split())}")
        return
    print(f"  memory: at most {peak:,} bytes in use at once")
    for size, shape, op in largest:
        print(f"    {size:9,} bytes for {list(shape)} by {op}")
    print(f"  XNNPACK partitions: {partitions}")


def explore(path: str) -> None:
    """Draw the graph in a browser."""
    try:
        import model_explorer
    except ImportError as error:
        raise ImportError(
            "Model Explorer is not installed: pip install ai-edge-model-explorer"
        ) from error
    model_explorer.visualize(model_paths=str(pathlib.Path(path).resolve()))
