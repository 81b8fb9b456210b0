"""Tables that put tasks side by side, one for each experiment."""

import statistics

from tasks import TASKS

from measure import plan, published, report
from measure.learning_report import label, mean_and_spread


def tables(groups, floors):
    """The tables of the experiments whose runs are there.

    Args:
        groups: of `learning_report.groups_of`, those of more updates later.
        floors: dict of the name of a task to its floors.
    """
    chosen = {given["task"]: found for given, found in groups}
    return [
        *convolution(chosen),
        *beside("Which feature map", published.ABLATION, ("mlm", "text"), plan.FEATURE_MAPS, chosen,
                floors),
        *beside("Both directions", "The last two tasks start from the model of the first.",
                ("mlm", "mlm_imdb", "mlm_rotten_tomatoes"), (*plan.FEATURE_MAPS, *plan.GATED),
                chosen, floors),
        *arena(chosen),
    ]  # fmt: skip


def scores_of(chosen, task, name):
    """The first scores of an attention's runs of a task, [] if there are none."""
    score = TASKS[task].scores[0]
    return [run["found"]["scores"][score.name] for run in chosen.get(task, {}).get(name, [])]


def text_of(chosen, task, name):
    """Mean and spread of these scores, "-" if there are none."""
    values = scores_of(chosen, task, name)
    return mean_and_spread(values, TASKS[task].scores[0].form) if values else "-"


def mean_of(chosen, task, name):
    """The mean of these scores, None if there are none or a run diverged."""
    values = scores_of(chosen, task, name)
    return None if not values or None in values else statistics.mean(values)


def convolution(chosen):
    """What the convolution before each block does for the language model of each attention."""
    body = []
    for name in plan.LANGUAGE_MODELS:
        with_it, without = (mean_of(chosen, "lm", label(name, conv)) for conv in (True, False))
        if None not in (with_it, without):
            texts = [text_of(chosen, "lm", label(name, conv)) for conv in (False, True)]
            body.append([name, *texts, f"{without - with_it:.3f}"])
    if not body:
        return []
    head = ["bits per byte", "without a convolution", "with a convolution", "difference"]
    return ["## Causal language model: attention and convolution\n\n", *report.table(head, body)]


def beside(title, text, tasks, names, chosen, floors):
    """A table with a row for each attention and a column for each task, after the floors."""
    body = [[name, *(text_of(chosen, task, name) for task in tasks)] for name in names]
    body = [line for line in body if set(line[1:]) != {"-"}]
    if not body:
        return []
    known = list(dict.fromkeys(name for task in tasks for name in floors.get(task, {})))
    above = [
        [f"*{name}*", *(TASKS[task].scores[0].form.format(floors[task][name])
                        if name in floors.get(task, {}) else "-" for task in tasks)]
        for name in known
    ]  # fmt: skip
    head = ["attention", *(f"{task}, {TASKS[task].scores[0].name}" for task in tasks)]
    return [f"## {title}\n\n", f"{text}\n\n", *report.table(head, above + body)]


def arena(chosen):
    """The tasks that are like the Long-Range Arena, and published rows."""
    tasks = published.ARENA_TASKS
    body = []
    for name in plan.ARENA:
        means = [mean_of(chosen, task, name) for task in tasks]
        if any(mean is not None for mean in means):
            body.append(row(name, [None if mean is None else 100 * mean for mean in means]))
    if not body:
        return []
    body += [row(f"*{name}, published*", accuracies)
             for name, accuracies in published.ARENA.items()]  # fmt: skip
    body += [[f"*{name}, published*", *["-"] * len(tasks), f"{mean:.2f}"]
             for name, mean in published.ARENA_MEANS.items()]  # fmt: skip
    names = ", ".join(f"{ours} ({theirs})" for ours, theirs in tasks.items())
    return ["## Five tasks like the Long-Range Arena\n\n",
            f"Ours are smaller than the Arena's: {names}. Compare our rows, not with "
            f"the published ones, which are those of {published.ARENA_SOURCE}.\n\n",
            *report.table(["accuracy, %", *tasks, "mean"], body)]  # fmt: skip


def row(name, values):
    """A line of accuracies in percent and, if none is missing, their mean."""
    texts = ["-" if value is None else f"{value:.1f}" for value in values]
    return [name, *texts, "-" if None in values else f"{statistics.mean(values):.2f}"]
