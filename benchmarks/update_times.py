"""How long an update of a task takes with each attention, side by side.

    python -m benchmarks.update_times --task lm

Each model of the plan is compiled with or without XLA, whichever is faster for it. Then the models
take turns. The medians are kept in `benchmarks/results/learning/update_times.json`. With them
`python -m benchmarks.report` compares the runs after equally many seconds. The seconds of the runs
themselves would not do: runs may be of several machines, and have other programs beside them. For
this command nothing else may run.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys

sys.path.append(str(pathlib.Path(__file__).parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from measure import curve, learning_report, learning_runs, models, plan, results, run_folder
from tasks import TASKS

TURNS = 9


def measure(task, sides):
    """Median milliseconds of an update and whether XLA compiled it, by the label of an attention.

    Args:
        task: a `Task`.
        sides: pairs of an attention and whether a convolution stands before each block.
    """
    examples = task.read(0).draw(np.random.default_rng(0), task.batch)
    compiled, times = {}, {}
    for attention, conv in sides:
        name, model = learning_report.label(attention, conv), models.build(task, attention, conv)
        _, xla = curve.compiled_faster(model.model, examples)
        curve.update_seconds(model.model, examples)  # it may have to compile again
        compiled[name], times[name] = (model.model, xla), []
        print(f"compiled {'with' if xla else 'without'} XLA: {name}", flush=True)
    for _ in range(TURNS):
        for name, (model, _) in compiled.items():
            times[name].append(curve.update_seconds(model, examples))
    return {name: {"milliseconds": round(1e3 * statistics.median(times[name]), 2), "xla": xla}
            for name, (_, xla) in compiled.items()}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.update_times",
                                     description=__doc__.split("\n")[0])  # fmt: skip
    tasks = list(dict.fromkeys(each.task for each in plan.EXPERIMENTS))
    parser.add_argument("--task", required=True, choices=tasks)
    parser.add_argument("--output", type=pathlib.Path, default=learning_runs.FOLDER.parent)
    arguments = parser.parse_args()
    found = measure(TASKS[arguments.task], plan.sides(arguments.task))
    path = arguments.output / "update_times.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept[arguments.task] = {"run": run_folder.about({"seed": 0}), "updates": found}
    results.write(path, json.dumps(kept, indent=1) + "\n")
    for name, each in sorted(found.items(), key=lambda item: item[1]["milliseconds"]):
        print(f"{each['milliseconds']:8.1f} ms  {name}")


if __name__ == "__main__":
    main()
