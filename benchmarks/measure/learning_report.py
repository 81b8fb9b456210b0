"""Tables of the runs of `benchmarks.learn`: scores, curves at equal cost, weights and streams."""

import statistics

import numpy as np

from measure import learning_runs, report

SEARCHED = "attention", "conv", "seed", "rate"


def label(attention, conv):
    return f"{attention} + convolution" if conv else attention


def groups_of(runs):
    """Tested runs by their settings.

    Returns:
        Pairs of what all runs of a group were given, and a dict of the label of an attention to its
        runs, one for each seed.
    """
    groups = []
    for run in runs:
        if run["given"]["search"]:
            continue
        shared = {name: x for name, x in run["given"].items() if name not in SEARCHED}
        chosen = next((chosen for given, chosen in groups if given == shared), None)
        if chosen is None:
            groups.append((shared, chosen := {}))
        name = label(run["given"]["attention"], run["given"]["conv"])
        chosen.setdefault(name, []).append(run)
    return groups


def mean_and_spread(values, form):
    """Text of a mean and, of two or more values, their standard deviation."""
    if None in values:
        return "diverged"
    mean = form.format(statistics.mean(values))
    return f"{mean} ± {form.format(statistics.stdev(values))}" if len(values) > 1 else mean


def curve(run, score):
    """Points of a run's validations: updates and the score. Those without a score are left out.

    Args:
        run: a dict.
        score: a `Score`.
    """
    points = [(each["updates"], score.value({name: each[name] for name in ("loss", "accuracy")}))
              for each in run["found"]["validations"]]  # fmt: skip
    return [point for point in points if point[1] is not None]


def at(points, place):
    """The score at a place of a curve, on the line between two points; None before the first."""
    if not points or place < points[0][0]:
        return None
    return float(np.interp(place, *zip(*points, strict=True)))


def at_equal_cost(runs, score, place):
    """Text of the score at a place of the curves of an attention; "-" before their beginning."""
    if any(run["found"]["ended"] == "diverged" for run in runs):
        return "diverged"
    values = [at(curve(run, score), place) for run in runs]
    return "-" if None in values else mean_and_spread(values, score.form)


def common_end(chosen, score, seconds=None):
    """The most updates, or seconds, that all curves reach; those of diverged runs do not count.

    Args:
        chosen: dict of the label of an attention to its runs.
        score: a `Score`.
        seconds: of an update, by the label. With None updates are counted.
    """
    ends = [
        points[-1][0] * (1 if seconds is None else seconds[name])
        for name, runs in chosen.items()
        for run in runs
        if run["found"]["ended"] != "diverged" and (points := curve(run, score))
    ]
    return min(ends, default=0)


def order(chosen, score):
    """The attentions, the best mean first."""

    def rank(name):
        values = [run["found"]["scores"][score.name] for run in chosen[name]]
        if None in values:
            return float("inf")
        return -statistics.mean(values) if score.higher else statistics.mean(values)

    return sorted(chosen, key=rank)


def seconds_of(times, task, chosen):
    """Seconds of an update of every attention, by its label; None if one was not measured.

    Args:
        times: what `benchmarks.update_times` has kept, by the name of the task.
        task: its name.
        chosen: dict of the label of an attention to its runs.
    """
    updates = times.get(task, {"updates": {}})["updates"]
    if not set(chosen) <= set(updates):
        return None
    return {name: updates[name]["milliseconds"] / 1e3 for name in chosen}


def section(task, given, chosen, floors, seconds=None):
    """The tables of one task.

    Args:
        task: a `Task`.
        given: what all runs were given.
        chosen: dict of the label of an attention to its runs.
        floors: dict of names and values of the task's first score.
        seconds: of `seconds_of`.
    """
    score = task.scores[0]
    end = common_end(chosen, score)
    columns = ["attention", "parameters", "rate", "seeds", *(each.name for each in task.scores),
               "updates", f"validation after {end:,} updates"]  # fmt: skip
    if seconds is not None:
        most = common_end(chosen, score, seconds)
        columns += ["ms of an update", f"validation after {most:,.0f} seconds"]
    empty = ["-"] * (len(columns) - 5)
    body = [[f"*{name}*", "-", "-", "-", score.form.format(value), *empty]
            for name, value in floors.items()]  # fmt: skip
    for name in order(chosen, score):
        runs = chosen[name]
        values = [mean_and_spread([run["found"]["scores"][each.name] for run in runs], each.form)
                  for each in task.scores]  # fmt: skip
        rates = ", ".join(f"{rate:g}" for rate in sorted({run["given"]["rate"] for run in runs}))
        counts = [run["found"]["updates"] for run in runs]
        body.append([name, f"{runs[0]['found']['parameters']:,}", rates, f"{len(runs)}", *values,
                     f"{round(statistics.mean(counts)):,}",
                     at_equal_cost(runs, score, end)])  # fmt: skip
        if seconds is not None:
            body[-1] += [f"{1e3 * seconds[name]:.0f}",
                         at_equal_cost(runs, score, most / seconds[name])]  # fmt: skip
    settings = ", ".join(f"{name} {x}" for name, x in given.items()
                         if name not in ("task", "search") and x is not None)  # fmt: skip
    lines = [f"## {task.name}\n\n", f"{task.about[0].upper()}{task.about[1:]}. {settings}.\n\n"]
    return [*lines, *report.table(columns, body), *weights(chosen), *streams(chosen)]


def weights(chosen):
    """What the weights of the trained models look like, if it was measured."""
    found = {name: [run["found"]["weights"] for run in runs]
             for name, runs in chosen.items() if "weights" in runs[0]["found"]}  # fmt: skip
    if not found:
        return []
    lengths = next(iter(found.values()))[0]["largest_of_mean"]
    near = next(key for key in next(iter(found.values()))[0] if key.startswith("mass_within"))
    head = ["attention", "negative weights", near.replace("_", " "),
            *(f"largest weight / mean, {n} steps" for n in lengths)]  # fmt: skip
    body = [
        [name, *(mean_and_spread([x[key] for x in each], "{:.3f}")
                 for key in ("negative_share", near)),
         *(mean_and_spread([x["largest_of_mean"][n] for x in each], "{:.1f}") for n in lengths)]
        for name, each in found.items()
    ]  # fmt: skip
    return report.table(head, body)


def streams(chosen):
    """Bits per byte in longer streams, if they were measured."""
    found = {name: [run["found"]["bits_by_length"] for run in runs]
             for name, runs in chosen.items() if "bits_by_length" in runs[0]["found"]}  # fmt: skip
    if not found:
        return []
    lengths = next(iter(found.values()))[0]
    head = ["bits per byte in the second half of a stream",
            *(f"{int(n):,} steps" for n in lengths)]  # fmt: skip
    body = [[name, *(mean_and_spread([x[n] for x in each], "{:.3f}") for n in lengths)]
            for name, each in found.items()]  # fmt: skip
    return report.table(head, body)


def about(runs):
    """The machines, versions and sources of the `run` of all runs, each once."""
    lines = {}
    for run in runs:
        machine = ", ".join(f"{name} {value}" for name, value in run["machine"].items())
        versions = ", ".join(f"{name} {value}" for name, value in sorted(run["versions"].items()))
        line = f"{machine}; {versions}; sources of the package {run['package']}"
        lines.setdefault(line, set()).add(run["date"])
    return [f"{min(dates)} to {max(dates)}: {line}\n\n" for line, dates in lines.items()]


TEXT = (
    "Each model has the same blocks and, within 2 %, as many parameters. The learning rate is that "
    "with the lowest loss of the validation, of three that were each trained for "
    f"{learning_runs.SEARCHED:.0%} of the updates with the seed {learning_runs.SEARCH_SEED}. "
    "Scores are those of the test, mean and standard deviation over the seeds. Columns at equal "
    "cost are of the validation: after as many updates or seconds as the shortest run has. Where "
    "milliseconds of an update are given, they are not of the runs, which had other programs "
    "beside them, but were measured for all attentions in turns, each with or without XLA, "
    "whichever is faster for it. "
    "Floors are in italics; so is what was published by others.\n\n"
)
