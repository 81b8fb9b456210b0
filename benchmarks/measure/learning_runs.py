"""The runs of `benchmarks.learn`: their folder, and which rate and which start are the best."""

import math

from measure import results
from measure.run_folder import RunFolder

FOLDER = results.FOLDER / "learning" / "runs"
SEARCHED, SEARCH_SEED = 0.25, 0
"""The part of a run that each rate is trained for before one is chosen, and the seed."""
WORDS = "task", "attention", "seed", "rate"
"""What the names of the files hold."""
PARTS = "blocks", "heads", "key_dim", "hidden"


def given_of(task, attention, conv, seed, rate, minutes, updates, search=False):
    """What a run is given, a dict: it names the run, and says what it was trained with.

    Args:
        task: a `Task`.
        attention, conv, seed, rate: what is trained, and how.
        minutes, updates: after which the run ends; either may be None.
        search: whether the run only tells how good its rate is.
    """
    sizes = {name: getattr(task.size, name) for name in PARTS}
    return {"task": task.name, "attention": attention, "conv": conv, "seed": seed, "rate": rate,
            "minutes": minutes, "updates": updates, "search": search, "length": task.length,
            "batch": task.batch, **sizes}  # fmt: skip


def folder(path=FOLDER):
    return RunFolder(path, WORDS)


def last_loss(run):
    """The loss of the last validation, which is less random than an accuracy; None if diverged."""
    return run["found"]["validations"][-1]["loss"]


def matching(folder, **wanted):
    """The finished runs of a folder that were given all of this."""
    return [run for run in folder.kept() if wanted.items() <= run["given"].items()]


def searches(task, rates, *, minutes, updates, **wanted):
    """What the runs are given that choose between rates; none if there is no choice.

    Args:
        task: a `Task`.
        rates: to choose from.
        minutes, updates: of the run with the best rate; either may be None.
        **wanted: other arguments of `given_of`.
    """
    if len(rates) == 1:
        return []
    shared = {
        "seed": SEARCH_SEED,
        "minutes": None if minutes is None else SEARCHED * minutes,
        "updates": None if updates is None else math.ceil(SEARCHED * updates),
        "search": True,
        **wanted,
    }
    return [given_of(task, rate=rate, **shared) for rate in rates]


def best_rate(task, rates, folder, **wanted):
    """The rate whose search ended with the lowest loss; the lowest rate if all diverged.

    Args:
        task, rates, **wanted: of `searches`, which are finished.
        folder: their `RunFolder`.
    """
    runs = [folder.read(given) for given in searches(task, rates, **wanted)]
    kept = [run for run in runs if last_loss(run) is not None]
    return min(kept, key=last_loss)["given"]["rate"] if kept else min(rates)


def start_of(task, given, folder):
    """The name of the run that a model starts from, None for one that starts anew.

    Args:
        task: a `Task`.
        given: of the run to be trained.
        folder: `RunFolder` of the finished runs.

    Raises:
        FileNotFoundError: If no such run is finished.
    """
    if task.starts_from is None:
        return None
    wanted = {name: given[name] for name in ("attention", "conv", "seed")}
    wanted |= {"task": task.starts_from, "search": False}
    runs = matching(folder, **wanted)
    kept = [run for run in runs if None not in run["found"]["test"].values()]
    if not kept:
        raise FileNotFoundError(
            f"{task.name} starts from a trained model of {task.starts_from}, and there is no "
            f"finished run of {wanted} whose loss stayed finite. Train that first."
        )
    longest = max(kept, key=lambda run: run["found"]["updates"])
    return folder.path(longest["given"]).stem
