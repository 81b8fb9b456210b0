"""What a .tflite file holds, what it costs, and where it runs.

    python export/show.py model.tflite [--length 128] [--explore]

`--length` is put where a shape leaves a size open. `--explore` draws the graph in a browser.
"""

import argparse
import pathlib
import textwrap
import types

from command_line import run

from keras_cosattn.export import describe, files, layout
from keras_cosattn.export.graph import Graph
from keras_cosattn.export.targets import TARGETS


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", help="a .tflite file, of this package or any other")
    parser.add_argument("--length", type=int, default=128, help="steps where any number will do")
    parser.add_argument("--explore", action="store_true", help="draw it with Model Explorer")
    arguments = parser.parse_args()

    content = pathlib.Path(arguments.file).read_bytes()
    about, graph = description(arguments.file, content), Graph(content)
    print(f"{arguments.file}: {len(content):,} bytes, {graph.constant_bytes:,} of them constants")
    print(f"  {origin(about)}")
    show_state(graph, about)
    for name in graph.signatures:
        show_signature(name, graph, about, arguments.length)
    print("runs on")
    for name, target in TARGETS.items():
        print(f"  {name:15} {refusal(target(), graph, about) or 'yes'}")
    if arguments.explore:
        explore(arguments.file)


def description(path, content):
    """What the file says of itself, or {}. Raises ValueError if its bytes are others by now."""
    try:
        about = describe(path)
    except ValueError:
        return {}
    size = about["content"]["bytes"]
    if files.content_id(content[:size]) != about["content"]:
        raise ValueError(f"{path} is damaged: its model is not the one that was exported.")
    return about


def origin(about):
    if not about:
        return "no description: not written by keras_cosattn"
    made = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    end = f"{about['max_steps']:,} steps" if about["max_steps"] else "endless"
    stream = f"; state {about['state_bytes']:,} bytes as {about['state_form']}, {end}"
    form = f"for {about['target']}, {about['quantize'] or 'float32'}"
    return f"{form}{stream if about['state_bytes'] else ''}; by {made}"


def show_state(graph, about):
    specs = {key: spec for name in graph.signatures for key, spec in graph.specs(name)[1].items()}
    held = [key for key in about.get("state", ()) if key in specs]  # none if in variables
    for key in held:
        print(f"  state {key} {written(*specs[key])}")


def show_signature(name, graph, about, length):
    print(name)
    state = about.get("state", ())
    for side, specs in zip(("in", "out"), graph.specs(name), strict=True):
        held = [key for key in specs if key in state]
        for key in (key for key in specs if key not in held):
            print(f"  {side:3} {key} {written(*specs[key])}")
        if held:
            print(f"  {side:3} the state, {len(held)} tensors")
    if name in about.get("differences", {}):
        difference, sqnr = about["differences"][name], about["sqnr"][name]
        print(f"  to Keras: difference {difference:.1e}, SQNR {sqnr:.1f} dB")
    show_memory(name, graph, length)
    ops = graph.ops(name)
    counts = [f"{count}~{op}~v{version}" for op, (version, count) in ops.items()]
    total = sum(count for _, count in ops.values())
    lines = textwrap.wrap(f"{total} ops: {', '.join(counts)}", 96, subsequent_indent="  ")
    for line in lines:
        print(f"  {line.replace('~', ' ')}")


def written(shape, dtype):
    return f"[{', '.join('any' if n is None else str(n) for n in shape)}] {dtype}"


def show_memory(name, graph, length):
    shapes = {
        key: tuple(n or (length if axis else 1) for axis, n in enumerate(shape))
        for key, (shape, _) in graph.specs(name)[0].items()
    }
    try:
        partitions, peak = layout.allocated(graph, name, shapes)
        largest = layout.largest_tensors(graph, name, shapes)
    except (RuntimeError, ValueError) as error:  # such as ops that LiteRT does not know
        print(f"  memory not known: {' '.join(str(error).split())}")
        return
    print(f"  memory: at most {peak:,} bytes live at once")
    for size, shape, op in largest:
        print(f"    {size:9,} bytes for {list(shape)} by {op}")
    print(f"  XNNPACK partitions: {partitions}")


def refusal(target, graph, about):
    """Why a target does not take the file; None if it does."""
    quantize = about.get("quantize")
    if target.one_signature and len(graph.signatures) > 1:
        return f"no: it knows one signature a file, not {len(graph.signatures)}"
    if quantize not in target.quantizations:
        return f"no: it does not run {quantize}"
    # The sizes of a file, as the targets ask for those of an export that is planned.
    plan = types.SimpleNamespace(
        functions=graph.signatures, specs=lambda name: graph.specs(name)[0],
        batch_size=None, length=None, prefill_chunk=None,
    )  # fmt: skip
    try:
        target.check_shapes(plan, quantize)
        target.refuse(graph)
    except ModuleNotFoundError as error:
        return f"not asked: {error}"
    except ValueError as error:
        return f"no: {str(error).split(' Received:')[0]}"
    return None


def explore(path):
    try:
        import model_explorer
    except ImportError as error:
        raise ImportError(
            "Model Explorer is not installed: pip install ai-edge-model-explorer"
        ) from error
    model_explorer.visualize(model_paths=str(pathlib.Path(path).resolve()))


if __name__ == "__main__":
    run(main)
