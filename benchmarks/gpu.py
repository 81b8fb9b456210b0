"""The linear sums on a GPU, on JAX and TensorFlow, beside cuDNN's flash attention and Triton's.

    python benchmarks/gpu.py [--lengths 2048 8192 ...] [--heads 16x128 8x64]
    python benchmarks/gpu.py --cpu --quick

In bfloat16, causal, forward and forward + gradient, as `benchmarks/speed.py` measures on a CPU:
values are compared before anything is timed, sides take turns, memory is the device's in a process
for each cell. PyTorch's kernel and `fla` need `--torch-python`, a Python with PyTorch for the GPU
(and `flash-linear-attention`). The results are `benchmarks/results/gpu.json` and `.md`. Without a
GPU, every cell is "not measured"; `--cpu` runs the same program on the CPU, which proves only that
it works, in files named `gpu_on_cpu`.
"""

import argparse
import contextlib
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from measure import command, process, report, results, run
from measure.cells import OURS, Row

ROWS = [
    Row("core", "cosformer", "cosFormer", OURS),
    Row("core", "linear", "linear, elu + 1", OURS),
    Row("core", "softmax", "softmax, keras.ops.dot_product_attention", OURS),
    Row("core", "softmax_cudnn", "softmax, cuDNN's flash attention", ("jax",), same="softmax"),
    Row("core", "torch_flash", "softmax, PyTorch's kernel", ("torch",), same="softmax"),
    Row("core", "fla_linear", "linear, fla in Triton", ("torch",), same="linear"),
    Row("layer", "MultiHeadAttention", "keras MultiHeadAttention", OURS, same="softmax"),
    Row("layer", "CosFormerAttention", "CosFormerAttention", OURS),
    Row("layer", "LinearAttention", "LinearAttention", OURS),
]
BASELINE = {"core": ("softmax_cudnn", "jax"), "layer": ("MultiHeadAttention", "jax")}
NO_GPU = "not measured: there is no GPU"


def sizes(text):
    """Heads and their size, as in `16x128`."""
    heads, size = map(int, text.split("x"))
    return heads, size


def arguments_of(line=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--lengths", type=int, nargs="+", default=[2048, 8192, 32768, 131072])
    add("--heads", type=sizes, nargs="+", default=[(16, 128), (8, 64)])
    add("--batch", type=int, default=1)
    add("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    add("--rows", nargs="+", choices=[row.what for row in ROWS], metavar="NAME",
        help="names of rows, such as cosformer")  # fmt: skip
    add("--sides", nargs="+", choices=[*OURS, "torch"], default=[*OURS, "torch"])
    add("--block-size", type=int, help="of our causal operations; theirs if not given")
    command.add_options(add, seconds=120.0, quick="one short length, two small heads")
    add("--no-peak", action="store_true", help="leave out peak memory, most of the processes")
    add("--torch-python", help="a Python with PyTorch, instead of that in `.peers/`")
    add("--cpu", action="store_true", help="on the CPU, to see that the program works")
    found = parser.parse_args(line)
    if found.quick:
        found.lengths, found.heads, found.repeats = [256], [(2, 16)], 3
    return found


def cells_of(arguments):
    common = {"batch": arguments.batch, "dtype": arguments.dtype, "seed": arguments.seed}
    options = (("block_size", arguments.block_size),) if arguments.block_size else ()
    ours = "cosformer", "linear"
    return [
        cell
        for heads, size in arguments.heads
        for n in sorted(arguments.lengths)
        for gradient in (False, True)
        for row in ROWS
        if not arguments.rows or row.what in arguments.rows
        for cell in row.cells(n, True, gradient, heads=heads, size=size,
                              options=options if row.what in ours else (), **common)
        if cell.side in arguments.sides
    ]  # fmt: skip


def gpus(cells, settings):
    """Worker -> the name of its GPU, or None."""
    found = {}
    for cell in {cell.worker: cell for cell in cells}.values():
        try:
            with contextlib.closing(settings.worker(cell)) as worker:
                found[cell.worker] = worker.ask("device", seconds=settings.seconds)
        except process.FailedError:
            found[cell.worker] = None
    return found


class Baseline:
    """What the cells of a level are held to, on JAX."""

    name = "cuDNN's flash attention, or Keras's layer on JAX"

    def __init__(self, cells):
        self.cells = {(cell.row, cell.group): cell for cell in cells}

    def __call__(self, cell):
        return self.cells.get((BASELINE[cell.level], cell.group))


def write(arguments, cells, store, path):
    found = report.Results(cells, store, ROWS)
    lines = report.head("On a GPU", store, [cell.key for cell in cells])
    lines.append(f"{arguments.dtype}, batch {arguments.batch}.\n\n")
    if arguments.cpu:
        lines.append("Run on the CPU, which proves only that the program works.\n\n")
    for heads, size in arguments.heads:
        lines.append(f"# {heads} heads of {size}\n\n")
        for level in ("core", "layer"):
            for gradient in (False, True):
                lines += report.section(found, Baseline(cells), level=level, causal=True,
                                        gradient=gradient, heads=heads, size=size)  # fmt: skip
    results.write(path.with_suffix(".md"), "".join(lines + found.notes.lines()))


def main():
    arguments = arguments_of()
    name = "gpu" + "_on_cpu" * arguments.cpu + "_quick" * arguments.quick
    path = arguments.output / f"{name}.json"
    settings = run.Settings(
        repeats=arguments.repeats,
        seconds=arguments.seconds,
        reference=2048,
        peak=not arguments.no_peak,
        environment={"CUDA_VISIBLE_DEVICES": ""} if arguments.cpu else {},
        interpreters={"torch": arguments.torch_python} if arguments.torch_python else {},
    )
    cells = cells_of(arguments)
    store = results.Store(path, arguments.fresh)
    found = {} if arguments.cpu else gpus(cells, settings)
    names = sorted(set(filter(None, found.values())))
    this_run = store.begin(arguments.seed, gpu=", ".join(names) or "none", **settings.said)
    measured = [cell for cell in cells if arguments.cpu or found[cell.worker]]
    for cell in cells:
        if cell not in measured and not store.done(cell.key):
            store.put(cell.key, status=NO_GPU)
    command.measure_and_write(
        measured, store, this_run, settings, lambda: write(arguments, cells, store, path), path
    )


if __name__ == "__main__":
    main()
