"""Train a small model on a task with an attention, and keep its curve and scores.

    pip install -e '.[benchmarks]'
    python -m benchmarks.learn --task lm --attention cosformer --seed 0 --updates 400

The model is the same for every attention, but for the feed-forward width, which keeps the number
of parameters equal. Each of the task's three learning rates is first trained for a quarter of
the updates, with the seed 0. That with the lowest loss of the validation is then trained with the
seed that was asked for, and tested. With `--minutes`, in place of `--updates` or beside it, a run
ends after that many minutes of updates: then it depends on the machine, and what runs beside it.

Each run is a file in `benchmarks/results/learning/runs/`. An interrupted run goes on with the same
command, a finished one is not repeated. `python -m benchmarks.queue` asks for all runs, and
`python -m benchmarks.report` makes tables and pictures of what there is.
"""

import argparse
import math
import os
import pathlib
import signal
import sys

sys.path.append(str(pathlib.Path(__file__).parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from measure import attentions, learned, learning_runs, run_folder
from tasks import TASKS


def positive(kind):
    """A function that reads a positive number, int or float, for `argparse`."""
    whole = "whole " * (kind is int)

    def read(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"must be a positive {whole}number. Received: {text}")
        return value

    return read


def arguments_of(line=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learn",
                                     description=__doc__.split("\n")[0])  # fmt: skip
    add = parser.add_argument
    names = sorted({*attentions.names(causal=True), *attentions.names(causal=False)})
    add("--task", required=True, choices=list(TASKS))
    add("--attention", required=True, choices=names)
    add("--conv", action="store_true", help="a causal convolution of four steps before each block")
    add("--seed", type=int, default=0)
    add("--updates", type=positive(int), help="after which a run ends")
    add("--minutes", type=positive(float), help="of updates, after which a run ends")
    add(
        "--rates",
        type=positive(float),
        nargs="+",
        help="learning rates to choose from; the task's three",
    )
    add("--fresh", action="store_true", help="repeat finished runs")
    add("--output", type=pathlib.Path, default=learning_runs.FOLDER, help="folder of the runs")
    found = parser.parse_args(line)
    task, can = TASKS[found.task], attentions.names(TASKS[found.task].causal)
    if found.attention not in can:
        parser.error(f"{task.name} cannot have {found.attention}. It can have: {', '.join(can)}")
    if found.conv and not task.causal:
        parser.error(f"--conv is for the causal tasks. Received: --task {task.name}")
    if found.updates is None and found.minutes is None:
        parser.error("give --updates or --minutes, after which a run ends")
    found.rates = found.rates or list(task.rates)
    return found


def main():
    arguments = arguments_of()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended: the same command goes on"))
    task, folder = TASKS[arguments.task], learning_runs.folder(arguments.output)
    learner = learned.Learner(task, arguments.attention, arguments.conv)
    wanted = {
        name: getattr(arguments, name) for name in ("attention", "conv", "minutes", "updates")
    }
    for given in learning_runs.searches(task, arguments.rates, **wanted):
        run(learner, given, folder, arguments.fresh)
    rate = learning_runs.best_rate(task, arguments.rates, folder, **wanted)
    run(learner, learning_runs.given_of(task, seed=arguments.seed, rate=rate, **wanted), folder,
        arguments.fresh)  # fmt: skip


def run(learner, given, folder, fresh):
    """Train what is not finished yet, keep it, and print a line."""
    path = folder.path(given)
    if folder.done(given) and not fresh:
        print(f"finished before: {path.name}", flush=True)
        return
    kind = "search for the rate" if given["search"] else f"seed {given['seed']}"
    print(f"{given['task']}, {given['attention']}{', convolution' * given['conv']}, "
          f"rate {given['rate']:g}, {kind}", flush=True)  # fmt: skip
    about = run_folder.about(given)
    start = learning_runs.start_of(learner.task, given, folder)
    found = learner.run(given, path.stem, start)
    folder.keep(given, found, about)
    scores = found.get("scores") or found["validations"][-1]
    said = ", ".join(f"{name} {value}" for name, value in scores.items())
    print(f"{found['ended']}: {said}; {found['updates']:,} updates, {found['seconds']:.0f} s",
          flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
