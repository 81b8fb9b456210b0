"""Train everything that the experiments need, one run after the other.

    python -m benchmarks.queue [--list] [--hours 2]

It can be ended at any time, also with Ctrl+C, and goes on with the same command. A finished run is
not repeated; one that was interrupted goes on where it was. The most informative runs come first.
`--list` prints what is left, with the planned minutes of each. The experiments are those of
`measure/plan.py`.

This folder has no `__init__.py`: with one, or as a file `queue.py`, it would hide the module
`queue` of the standard library from the programs beside it.
"""

import argparse
import pathlib
import signal
import subprocess
import sys
import time

sys.path.append(str(pathlib.Path(__file__).parent.parent))

from measure import learning_runs, plan
from tasks import TASKS

ROOT = pathlib.Path(__file__).parent.parent.parent


def arguments_of(line=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.queue",
                                     description=__doc__.split("\n")[0])  # fmt: skip
    add = parser.add_argument
    add("--list", action="store_true", help="print what is left, and train nothing")
    add("--hours", type=float, help="after which no more run is begun")
    add("--experiments", nargs="+", choices=sorted({each.name for each in plan.EXPERIMENTS}),
        help="all")  # fmt: skip
    add("--output", type=pathlib.Path, default=learning_runs.FOLDER, help="folder of the runs")
    return parser.parse_args(line)


def left(arguments):
    """Pairs of a command that is not finished and its planned minutes."""
    names = arguments.experiments
    chosen = [each for each in plan.EXPERIMENTS if names is None or each.name in names]
    folder = learning_runs.folder(arguments.output)
    found, searched = [], set()
    for command in plan.commands(chosen):
        runs = command.missing(folder, TASKS[command.task])
        new = [given for given in runs if str(given) not in searched]  # one search for all seeds
        searched |= {str(given) for given in new if given["search"]}
        if runs:
            found.append((command, command.minutes_of(new)))
    return found


def train(commands, output, end=None):
    """Run the commands until the time is over, and return those that failed."""
    failed = []
    for i, (command, minutes) in enumerate(commands, 1):
        if end is not None and time.monotonic() > end:
            break
        line = " ".join(command.arguments())
        print(f"[{i} of {len(commands)}, about {minutes:.1f} minutes] {line}", flush=True)
        call = [sys.executable, "-m", "benchmarks.learn", *command.arguments()]
        # The runs keep their command, in which the usual folder of this machine has no place.
        call += [] if output == learning_runs.FOLDER else [f"--output={output}"]
        process = subprocess.Popen(call, cwd=ROOT)
        try:
            if process.wait():
                failed.append(command)
        finally:
            process.terminate()  # it has ended, unless this program is being ended
            process.wait()
    return failed


def main():
    arguments = arguments_of()
    commands = left(arguments)
    total = sum(minutes for _, minutes in commands) / 60
    if arguments.list:
        for command, minutes in commands:
            print(f"{minutes:5.1f} min  {' '.join(command.arguments())}")
        print(f"{len(commands)} commands, about {total:.1f} hours")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended: the same command goes on"))
    end = None if arguments.hours is None else time.monotonic() + 3600 * arguments.hours
    try:
        failed = train(commands, arguments.output.absolute(), end)
    except KeyboardInterrupt:
        sys.exit("ended: the same command goes on")
    if failed:
        names = "; ".join(" ".join(command.arguments()) for command in failed)
        sys.exit(f"error: {len(failed)} commands failed, and are tried again next time: {names}")


if __name__ == "__main__":
    main()
