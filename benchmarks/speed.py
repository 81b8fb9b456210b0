"""Time and peak memory of every layer and its core beside their peers, as the length grows.

    python benchmarks/peer_environments.py
    python benchmarks/speed.py [--lengths 256 1024 ...] [--levels core layer fit] [--keep-memory]

Every side is a worker process that loads its own package, of its own environment where it needs
one. Before timing, the sides that compute the same thing must agree, with each other and at up to
1,024 steps with float64 sums or an eager call; else the program stops with an error. Then they are
timed in turns, and the median of the turns counts. Peak memory is that of a process for each cell.
What runs out of time or memory stands in the table as such. What is finished is kept in
`benchmarks/results/speed.json` and not measured again without `--fresh`; the tables are
`speed.md`, the picture `speed.png`.

The limit of a time is the larger of two: the operations of the algorithm's products at the rate
that a product of 2,048 x 2,048 reached in the same run, and the bytes of inputs and results at the
rate of a copy. `--keep-memory` tells glibc to keep freed memory, in files named
`speed_keep_memory`.
"""

import argparse
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from measure import cells as tables
from measure import command, plot, report, results, run

SLOW_FIT = 65_536


def arguments_of(line=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--lengths", type=int, nargs="+", default=[256, 1024, 4096, 16384, 65536])
    add("--levels", nargs="+", choices=["core", "layer", "fit"], default=["core", "layer", "fit"])
    names = sorted({row.what for row in (*tables.CORE, *tables.LAYERS, *tables.FIT)})
    add("--rows", nargs="+", choices=names, metavar="NAME",
        help="names of rows, such as cosformer or LSHAttention")  # fmt: skip
    add("--sides", nargs="+", choices=list(tables.SIDES), default=list(tables.SIDES))
    add("--directions", nargs="+", choices=["causal", "both"], default=["causal", "both"])
    add("--passes", nargs="+", choices=["forward", "gradient"], default=["forward", "gradient"])
    add("--batch", type=int, default=1)
    add("--heads", type=int, default=8)
    add("--size", type=int, default=64, help="of a head")
    add("--fit-length", type=int, default=SLOW_FIT)
    command.add_options(add, seconds=120.0, quick="a few small cells, in about a minute")
    command.add_memory_options(add)
    add("--no-peak", action="store_true", help="leave out peak memory, most of the processes")
    add("--keep-memory", action="store_true", help="tell glibc to keep freed memory")
    found = parser.parse_args(line)
    if found.quick:
        found.lengths, found.fit_length, found.heads, found.size = [256], 256, 2, 16
        found.directions, found.passes = ["causal"], ["gradient"]
        found.sides = ["tensorflow-xla", "torch"]
        found.rows = found.rows or [
            "cosformer", "torch_cosformer", "MultiHeadAttention", "CosFormerAttention"
        ]  # fmt: skip
    return found


def cells_of(arguments):
    """The cells of the tables, shortest first; those of a fit have fixed sizes."""
    chosen = []
    sizes = {"batch": arguments.batch, "heads": arguments.heads, "size": arguments.size}
    gradients = [name == "gradient" for name in ("forward", "gradient") if name in arguments.passes]
    rows = [row for row in (*tables.CORE, *tables.LAYERS) if row.level in arguments.levels]
    for n in sorted(arguments.lengths):
        for causal in (name == "causal" for name in arguments.directions):
            for gradient in gradients:
                for row in rows:
                    if causal in row.directions:
                        chosen += row.cells(n, causal, gradient, seed=arguments.seed, **sizes)
    if "fit" in arguments.levels:
        options = (("blocks", 2), ("hidden", 128), ("steps", 1))
        for row in tables.FIT:
            chosen += row.cells(arguments.fit_length, True, True, seed=arguments.seed, batch=1,
                                heads=4, size=16, options=options)  # fmt: skip
    return [
        cell for cell in chosen
        if cell.side in arguments.sides and (not arguments.rows or cell.what in arguments.rows)
    ]  # fmt: skip


class Baseline:
    """Softmax in Keras with the same lengths and the same compiler, to which a cell is held."""

    NAMES = {"core": "softmax", "layer": "MultiHeadAttention"}  # noqa: RUF012

    def __init__(self, cells):
        self.cells = {(c.level, c.what, c.side, c.n, c.causal, c.gradient): c for c in cells}
        self.name = "Keras's softmax"

    def __call__(self, cell):
        compiled = cell.side.endswith("-xla") or cell.side == "jax"
        side = "tensorflow-xla" if compiled else "tensorflow"
        what = self.NAMES[cell.level]
        return self.cells.get((cell.level, what, side, cell.n, cell.causal, cell.gradient))


RELATIVE = [
    ("packed documents, of plain", "cosformer_packed", None, "cosformer", None),
    ("horizon, of plain", "cosformer_horizon", None, "cosformer", None),
    ("layer with a horizon, of plain", "endless", None, "CosFormerAttention", None),
    ("cosFormer on JAX, of TensorFlow + XLA", "cosformer", "jax", "cosformer", "tensorflow-xla"),
    ("linear on JAX, of TensorFlow + XLA", "linear", "jax", "linear", "tensorflow-xla"),
    ("cosFormer, of PyTorch in chunks", "cosformer", None, "torch_cosformer", "torch"),
    ("linear, of PyTorch in chunks", "linear", None, "torch_linear", "torch"),
    ("cosFormer, of PyTorch's softmax kernel", "cosformer", None, "torch_flash", "torch"),
    ("LinearAttention, of KernelAttention", "kernel", "tensorflow-xla", "KernelAttention",
     "tf_models-xla"),
    ("LinearAttention, of KernelAttention", "kernel", "tensorflow", "KernelAttention",
     "tf_models"),
]  # fmt: skip
"""Title, row and side (None: each), and the row and side (None: the same) to which it is held."""


def relative(found, cells):
    """Times of rows relative to other rows of the same group."""
    by_key = {(c.level, c.causal, c.gradient, c.n, c.what, c.side): c for c in cells}
    rows, lengths = {}, sorted({c.n for c in cells if c.level != "fit"})
    for title, what, side, other, other_side in RELATIVE:
        for cell in cells:
            if cell.what != what or side not in (None, cell.side) or cell.level == "fit":
                continue
            place = cell.level, cell.causal, cell.gradient
            held_to = by_key.get((*place, cell.n, other, other_side or cell.side))
            value = report.ratio(found.number(cell, "median"), found.number(held_to, "median"))
            if value is not None and cell != held_to:
                way = "causal" if cell.causal else "both ways"
                line = title, tables.SIDES[cell.side], way, tables.passes(cell.gradient)
                rows.setdefault(line, {})[cell.n] = f"{value:.2f}"
    body = [[", ".join(line), *(row.get(n, "") for n in lengths)] for line, row in rows.items()]
    head = ["time of one, of the other", *(f"{n:,}" for n in lengths)]
    return ["## One beside the other\n\n", *report.table(head, body)] if body else []


def fits(found, cells):
    """One step of a whole model."""
    rows = found.of(level="fit")
    if not rows:
        return []
    body = []
    for (cell,) in (row.values() for row in rows.values()):
        seconds = found.text(cell, found.number(cell, "median"), "{:.2f}")
        peak = found.text(cell, found.number(cell, "peak_mib"), "{:,.0f}")
        body.append([found.label(cell), seconds, peak])
    (n,) = {cell.n for row in rows.values() for cell in row.values()}
    title = f"## One `fit` of one step: {n:,} steps, width 64, two blocks\n\n"
    return [title, *report.table(["attention", "s", "peak MiB"], body)]


def write(arguments, cells, store, path):
    """Tables and picture of what is there."""
    rows = [*tables.CORE, *tables.LAYERS, *tables.FIT]
    found = report.Results(cells, store, rows)
    lines = report.head("Speed", store, [cell.key for cell in cells])
    lines.append(
        f"Batch {arguments.batch}, {arguments.heads} heads of {arguments.size}, float32. Times are "
        f"medians of {arguments.repeats} turns. Peak memory is that of a process beyond what it "
        "held after a short call; what compiles is a part of it. A cell that says `before` was not "
        "tried: its row ran out at a shorter length, or without the gradient.\n\n"
    )
    for level in ("core", "layer"):
        for causal in (True, False):
            for gradient in (False, True):
                lines += report.section(found, Baseline(cells), level=level, causal=causal,
                                        gradient=gradient)  # fmt: skip
    lines += fits(found, cells) + relative(found, cells) + found.notes.lines()
    results.write(path.with_suffix(".md"), "".join(lines))
    plot.draw(path.with_suffix(".png"), found, ("core", "layer"))


def main():
    arguments = arguments_of()
    name = "speed" + "_keep_memory" * arguments.keep_memory + "_quick" * arguments.quick
    path = arguments.output / f"{name}.json"
    memory = results.allowed_memory(arguments.memory)
    settings = run.Settings(
        repeats=arguments.repeats, seconds=arguments.seconds, memory=memory,
        peak=not arguments.no_peak, keep_memory=arguments.keep_memory,
    )  # fmt: skip
    cells = cells_of(arguments)
    store = results.Store(path, arguments.fresh)
    if arguments.retry:
        store.forget_failures([cell.key for cell in cells], ran_out=True)
    glibc = (
        "keeps memory" if arguments.keep_memory else os.environ.get("GLIBC_TUNABLES", "as it is")
    )
    this_run = store.begin(arguments.seed, **settings.said, glibc=glibc)
    command.measure_and_write(
        cells, store, this_run, settings, lambda: write(arguments, cells, store, path), path
    )


if __name__ == "__main__":
    main()
