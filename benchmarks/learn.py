"""Train a small model on a task with an attention, and keep its curve and scores.

    pip install -e '.[benchmarks]'
    python -m benchmarks.learn --task lm --attention cosformer --seed 0 --minutes 3

The model is the same for every attention, but for the feed-forward width, which keeps the number
of parameters equal. It is trained with each of the task's three learning rates, or with those of
`--rates`. Minutes are those of the updates: validations and compilation take more.

Each run is a file in `benchmarks/results/learning/runs/`. An interrupted run goes on with the same
command, a finished one is not repeated. `python -m benchmarks.queue` asks for all runs, and
`python -m benchmarks.report` makes tables and pictures of what there is.
"""

import argparse
import os
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from measure import attentions, learned, learning_runs, run_folder
from tasks import TASKS


def arguments_of(line=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learn",
                                     description=__doc__.split("\n")[0])  # fmt: skip
    add = parser.add_argument
    names = sorted({*attentions.names(causal=True), *attentions.names(causal=False)})
    add("--task", required=True, choices=list(TASKS))
    add("--attention", required=True, choices=names)
    add("--conv", action="store_true", help="a causal convolution of four steps before each block")
    add("--seed", type=int, default=0)
    add("--minutes", type=float, required=True, help="of updates, for each rate")
    add("--rates", type=float, nargs="+", help="learning rates; the task's three")
    add("--updates", type=int, default=learning_runs.UPDATES, help="after which a run ends, too")
    add("--also", action="store_true", help="measure the weights, or longer streams, afterwards")
    add("--fresh", action="store_true", help="repeat finished runs")
    add("--output", type=pathlib.Path, default=learning_runs.FOLDER, help="folder of the runs")
    found = parser.parse_args(line)
    if found.attention not in attentions.names(TASKS[found.task].causal):
        parser.error(f"{found.task} cannot have {found.attention}. It can have: "
                     f"{', '.join(attentions.names(TASKS[found.task].causal))}")  # fmt: skip
    if found.conv and not TASKS[found.task].causal:
        parser.error(f"--conv is for causal tasks. Received: --task {found.task}")
    return found


def main():
    arguments = arguments_of()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended: the same command goes on"))
    task, folder = TASKS[arguments.task], learning_runs.folder(arguments.output)
    for rate in arguments.rates or task.rates:
        names = "attention", "conv", "seed", "minutes", "updates", "also"
        options = {name: getattr(arguments, name) for name in names}
        given = learned.given_of(task, rate=rate, **options)
        path = folder.path(given)
        if folder.done(given) and not arguments.fresh:
            print(f"finished before: {path.name}")
            continue
        about = run_folder.about(given)
        found = learned.run(given, path.stem, learning_runs.start_of(task, given, folder))
        folder.keep(given, found, about)
        scores = ", ".join(f"{name} {value}" for name, value in found["scores"].items())
        print(f"{path.name}: {scores}; {found['updates']:,} updates, {found['seconds']:.0f} s, "
              f"{found['ended']}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
