"""What the programs that train share: options, the runs that they ask for, and what is written."""

import itertools
import pathlib
import signal
import sys

from measure import results, run_folder, run_report


def add_options(add, rates, widths, steps, updates, tests):
    """Options of a program; `add` is a parser's `add_argument`."""
    add("--layers", nargs="+", metavar="NAME", help="of `measure/recall_models.py`; all")
    add("--widths", type=int, nargs="+", default=widths)
    add("--rates", type=float, nargs="+", default=rates, help="learning rates, of which one counts")
    add("--heads", type=int, default=2)
    add("--conv", action="store_true", help="a convolution of four steps before each layer")
    add("--steps", type=int, default=steps, help="of an update, those of all its streams")
    add("--updates", type=int, default=updates)
    add("--tests", type=int, default=tests, help="examples to validate and to test with")
    add("--seed", type=int, default=0)
    add("--minutes-per-run", type=float, default=10.0, help="after which a run ends as it is")
    add("--fresh", action="store_true", help="repeat the chosen runs")
    add("--retry", action="store_true", help="repeat the chosen runs that ran out of time")
    add("--quick", action="store_true", help="two layers, a few updates")
    add("--output", type=pathlib.Path, default=results.FOLDER, help="folder of the results")


def make_quick(found):
    """Change what was chosen to what takes seconds."""
    found.layers, found.widths, found.rates = ["softmax", "linear"], [8], [0.01]
    found.steps, found.updates, found.tests = 64, 3, 4


def wanted(found, tasks, layers):
    """What each run is given: every task, layer, width and rate that was chosen."""
    names = "heads", "conv", "steps", "updates", "tests", "seed"
    shared = {name: getattr(found, name) for name in names}
    unknown = set(found.layers or ()) - set(layers)
    if unknown:
        sys.exit(f"error: there is no layer {sorted(unknown)}. There are: {', '.join(layers)}")
    choices = itertools.product(tasks, found.layers or layers, found.widths, found.rates)
    return [{**task, "layer": layer, "width": width, "rate": rate, **shared}
            for task, layer, width, rate in choices]  # fmt: skip


def measure_and_write(found, given, name, **report):
    """Train what is missing, then write the table and the picture of all that there is."""
    path = found.output / (name + "_quick" * found.quick)
    folder = run_folder.RunFolder(path)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended: the same command goes on"))
    try:
        failed = folder.measure(given, found.minutes_per_run, found.fresh, found.retry)
    finally:
        run_report.write(folder.kept(), path, **report)
    sys.exit(f"error: {failed} runs failed" if failed else None)
