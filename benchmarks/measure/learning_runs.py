"""The runs of `benchmarks.learn`: their folder, and which rate and which start are the best."""

from measure import results
from measure.run_folder import RunFolder

FOLDER = results.FOLDER / "learning" / "runs"
UPDATES = 100_000
"""More than any run reaches: the minutes end it."""
WORDS = "task", "attention", "seed", "rate"
"""What the names of the files hold."""


def folder(path=FOLDER):
    return RunFolder(path, WORDS)


def score_of(run, task):
    """The task's first score on the last validation, the higher the better; None if diverged."""
    from measure.learned import value_of

    last = run["found"]["validations"][-1]
    value = value_of(task.scores[0], {name: last[name] for name in ("loss", "accuracy")})
    return value if value is None or task.scores[0].higher else -value


def best(runs, task):
    """The run with the best last validation, or None if all diverged."""
    scored = [(score_of(run, task), run) for run in runs]
    kept = [pair for pair in scored if pair[0] is not None]
    return max(kept, key=lambda pair: pair[0])[1] if kept else None


def start_of(task, given, folder):
    """The name of the run that a model starts from, None for one that starts anew.

    Raises:
        FileNotFoundError: If no such run is finished.
    """
    if task.starts_from is None:
        return None
    from tasks import TASKS

    wanted = {"task": task.starts_from, **{name: given[name] for name in
                                           ("attention", "conv", "seed")}}  # fmt: skip
    runs = [run for run in folder.kept() if wanted.items() <= run["given"].items()]
    most = max((run["given"]["minutes"] for run in runs), default=None)
    found = best([run for run in runs if run["given"]["minutes"] == most],
                 TASKS[task.starts_from])  # fmt: skip
    if found is None:
        raise FileNotFoundError(f"{task.name} starts from a finished run of {wanted}. There is "
                                "none that did not diverge: train that task first.")  # fmt: skip
    return folder.path(found["given"]).stem
