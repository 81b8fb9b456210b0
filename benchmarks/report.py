"""Make tables and learning curves of all finished runs of `benchmarks.learn`.

    python -m benchmarks.report

Writes `report.md` and a picture for each task to `benchmarks/results/learning/`. The floors of a
task (majority, shortcuts, classical baselines) are computed once and kept in `floors.json` beside
them; that needs the data of the task. What `python -m benchmarks.update_times` measured is read
from there, too.
"""

import argparse
import json
import os
import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from measure import learning_experiments, learning_plot, learning_report, learning_runs, results
from tasks import TASKS


def arguments_of(line=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report",
                                     description=__doc__.split("\n")[0])  # fmt: skip
    add = parser.add_argument
    add("--runs", type=pathlib.Path, default=learning_runs.FOLDER, help="folder of the runs")
    add("--output", type=pathlib.Path, help="folder of the report; that above the runs")
    add("--fresh", action="store_true", help="compute the floors again")
    found = parser.parse_args(line)
    found.output = found.output or found.runs.parent
    return found


def floors_of(name, path, fresh):
    """The floors of a task, from the file or computed and kept there."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    if fresh or name not in kept:
        print(f"computing the floors of {name}", flush=True)
        kept[name] = {key: round(value, 5) for key, value in TASKS[name].floors().items()}
        results.write(path, json.dumps(kept, indent=1) + "\n")
    return kept[name]


def main():
    arguments = arguments_of()
    runs = learning_runs.folder(arguments.runs).kept()
    groups = learning_report.groups_of(runs)
    if not groups:
        sys.exit(f"There are no finished runs in {arguments.runs}. Begin with benchmarks.learn.")
    names = list(TASKS)
    groups.sort(key=lambda group: (names.index(group[0]["task"]), group[0]["updates"] or 0))
    path = arguments.output / "floors.json"
    floors = {given["task"]: floors_of(given["task"], path, arguments.fresh) for given, _ in groups}
    path = arguments.output / "update_times.json"
    times = json.loads(path.read_text()) if path.exists() else {}
    told = [each["run"] for each in (*runs, *times.values())]
    lines = ["# What small models learn with each attention\n\n",
             f"`{results.command()}`\n\n", *learning_report.about(told), learning_report.TEXT,
             *learning_experiments.tables(groups, floors)]  # fmt: skip
    for i, (given, chosen) in enumerate(groups):
        task = TASKS[given["task"]]
        again = sum(other["task"] == task.name for other, _ in groups[:i])
        picture = f"{task.name}{f'_{again + 1}' * bool(again)}.png"
        seconds = learning_report.seconds_of(times, task.name, chosen)
        learning_plot.draw(arguments.output / picture, task, chosen, floors[task.name], seconds)
        lines += learning_report.section(task, given, chosen, floors[task.name], seconds)
        lines.append(f"![Learning curves of {task.name}]({picture})\n\n")
    results.write(arguments.output / "report.md", "".join(lines))
    print(f"written: report.md, floors.json and {len(groups)} pictures in {arguments.output.name}/")


if __name__ == "__main__":
    main()
