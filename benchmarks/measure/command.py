"""What the commands share: options of a run, and how it is measured and written."""

import pathlib
import sys

from measure import results, run


def add_options(add, seconds, quick):
    """Options of a run; `add` is a parser's `add_argument`, `quick` says what `--quick` leaves."""
    add("--repeats", type=int, default=5)
    add("--seconds", type=float, default=seconds, help="of a first call, before it is given up")
    add("--seed", type=int, default=0)
    add("--fresh", action="store_true", help="forget finished cells")
    add("--quick", action="store_true", help=quick)
    add("--output", type=pathlib.Path, default=results.FOLDER, help="folder of the results")


def add_memory_options(add):
    """Options of a run that can use up the memory of the machine."""
    add("--memory", type=float, help="GiB that a worker may hold; 0.8 of what is available")
    add("--retry", action="store_true", help="try again what ran out of time or memory")


def measure_and_write(cells, store, this_run, settings, write, path):
    """Measure the cells, then write what there is, also if the run is interrupted."""
    try:
        run.measure(cells, store, this_run, settings)
    except run.DifferentValuesError as error:
        sys.exit(f"error: {error}")
    finally:
        write()
    print(f"written: {path.stem}.* in {path.parent.name}/")
