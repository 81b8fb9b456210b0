"""Learning curves over updates and over seconds."""

from keras_cosattn.atomic_write import atomic_write
from measure import learning_report


def draw(path, task, chosen, floors, seconds=None):
    """The validations of every attention and seed over updates and, if measured, over seconds.

    Models with a convolution before each block have dashed lines.

    Args:
        path: of the PNG.
        task: a `Task`.
        chosen: dict of the label of an attention to its runs.
        floors: dict of names and values of the task's first score.
        seconds: of an update, by the label of an attention.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    score = task.scores[0]
    costs = {"updates": dict.fromkeys(chosen, 1)}
    costs |= {} if seconds is None else {"seconds": seconds}
    figure, panels = plt.subplots(1, len(costs), figsize=(9 * len(costs), 6), sharey=True,
                                  squeeze=False)  # fmt: skip
    names = list(dict.fromkeys(run["given"]["attention"] for runs in chosen.values()
                               for run in runs))  # fmt: skip
    colors = plt.get_cmap("tab20").colors
    for (unit, each_update), panel in zip(costs.items(), panels[0], strict=True):
        for name, runs in chosen.items():
            for i, run in enumerate(runs):
                points = learning_report.curve(run, score)
                if points:
                    updates, values = zip(*points, strict=True)
                    panel.plot([each_update[name] * n for n in updates], values,
                               color=colors[names.index(run["given"]["attention"]) % len(colors)],
                               linestyle="--" if run["given"]["conv"] else "-",
                               label=name if i == 0 else None)  # fmt: skip
        for name, value in floors.items():
            panel.axhline(value, color="gray", linestyle=":")
            panel.annotate(name, (0.01, value), xycoords=("axes fraction", "data"), color="gray",
                           fontsize=7)  # fmt: skip
        panel.set(xlabel=unit, ylabel=f"{score.name}, validation", title=task.name)
        panel.grid(alpha=0.3)
    lines = [line for line in panel.get_lines() if line.get_label() in chosen]
    lines.sort(key=lambda line: -line.get_ydata()[-1])  # as they end, from top to bottom
    panel.legend(handles=lines, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as new:
        figure.savefig(new, format="png", dpi=120)
    plt.close(figure)
