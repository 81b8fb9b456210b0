"""The table and the picture of trained models: of each layer and width, the best rate."""

import types

from keras_cosattn.atomic_write import atomic_write
from measure import report, results

SEARCHED = ("layer", "width", "rate")


def write(runs, path, *, title, text, scores, floors):
    """Print the tables of all runs, and write them as Markdown, with a picture.

    Args:
        runs: what `RunFolder.kept` returns.
        path: of the results, without a suffix.
        title: of the tables.
        text: what they show, a paragraph.
        scores: dict of the head of a column to the name of an accuracy in a run.
        floors: function of what was given to a dict of names and accuracies.
    """
    if not runs:
        return
    groups = [(given, chosen, floors(given)) for given, chosen in groups_of(runs)]
    tables = [line for group in groups for line in section(*group, scores)]
    print("".join(tables), end="")
    lines = [*head(title, runs), f"{text}\n\n", *tables]
    results.write(path.with_name(f"{path.name}.md"), "".join(lines))
    draw(path.with_name(f"{path.name}.png"), groups, next(iter(scores.values())))
    print(f"written: {path.name}.* in {path.parent.name}/")


def head(title, runs):
    """Machine and versions of every command that measured something."""
    about = []
    for run in runs:
        if run["run"] not in about:
            about.append(run["run"])
    numbers = range(len(about))
    kept = types.SimpleNamespace(runs=about, cells={i: {"run": i} for i in numbers})
    return report.head(title, kept, numbers)


def groups_of(runs):
    """Runs with the same task and settings: pairs of these, and of a dict by layer and width."""
    groups = []
    for run in runs:
        shared = {name: x for name, x in run["given"].items() if name not in SEARCHED}
        chosen = next((chosen for given, chosen in groups if given == shared), None)
        if chosen is None:
            groups.append((shared, chosen := {}))
        chosen.setdefault((run["given"]["layer"], run["given"]["width"]), []).append(run)
    return sorted(groups, key=lambda group: tuple(map(str, group[0].values())))


def best(runs):
    """The run with the highest validation, of equal ones the one with the fewest updates."""
    return max(runs, key=lambda run: (run["found"]["validations"][-1], -run["found"]["updates"]))


def section(given, chosen, floors, scores):
    """A heading of what was given, and a row for each width and layer, the best layer first."""
    settings = [f"{name} {value}" for name, value in given.items() if name != "task"]
    columns = ["layer", "width", *scores, "state, bytes", "rate", "of rates", "updates", "seconds",
               "ended"]  # fmt: skip
    empty = ["-"] * (len(columns) - 3)
    body = [[name, "-", f"{accuracy:.1%}", *empty] for name, accuracy in floors.items()]
    rows = [(width, best(runs), len(runs)) for (_, width), runs in chosen.items()]
    for width, run, rates in sorted(rows, key=lambda row: (row[0], -row[1]["found"]["accuracy"])):
        found, layer = run["found"], run["given"]["layer"]
        accuracies = [f"{found[name]:.1%}" for name in scores.values()]
        cost = [f"{run['given']['rate']:g}", f"{rates}", f"{found['updates']:,}"]
        cost += [f"{found['seconds']:.0f}", found["ended"]]
        body.append([layer, f"{width}", *accuracies, f"{found['state_bytes']:,}", *cost])
    return [f"## {', '.join(settings)}\n\n", *report.table(columns, body)]


def draw(path, groups, score):
    """One panel for each group: accuracy over the bytes of the state, a point for each width."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(groups), figsize=(7 * len(groups), 6), squeeze=False)
    for (given, chosen, floors), panel in zip(groups, panels[0], strict=True):
        for i, layer in enumerate(dict.fromkeys(layer for layer, _ in chosen)):
            found = [best(runs)["found"] for (name, _), runs in chosen.items() if name == layer]
            points = sorted((run["state_bytes"], run[score]) for run in found)
            panel.plot(*zip(*points, strict=True), marker="osv^Dx"[i // 10 % 6], label=layer)
        for name, accuracy in floors.items():
            panel.axhline(accuracy, color="gray", linestyle=":", label=name)
        sizes = [f"{name} {given[name]}" for name in ("length", "pairs", "conv") if name in given]
        panel.set(xscale="log", xlabel="bytes of the state", ylabel="accuracy", ylim=(0, 1.02),
                  title=", ".join(sizes))  # fmt: skip
        panel.grid(which="both", alpha=0.3)
        panel.legend(fontsize=7)
    figure.tight_layout()
    with atomic_write(path) as new:
        figure.savefig(new, format="png", dpi=120)
    plt.close(figure)
