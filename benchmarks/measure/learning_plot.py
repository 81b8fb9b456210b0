"""Learning curves over updates and over seconds."""

from keras_cosattn.atomic_write import atomic_write
from measure import learning_report


def draw(path, task, chosen, floors):
    """The validations of every attention and seed over updates and seconds.

    Models with a convolution before each block have dashed lines.

    Args:
        path: of the PNG.
        task: a `Task`.
        chosen: dict of the label of an attention to its runs.
        floors: dict of names and values of the task's first score.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    score = task.scores[0]
    figure, panels = plt.subplots(1, len(learning_report.COSTS), figsize=(20, 6), sharey=True)
    names = list(dict.fromkeys(run["given"]["attention"] for runs in chosen.values()
                               for run in runs))  # fmt: skip
    colors = plt.get_cmap("tab20").colors
    for (over, words), panel in zip(learning_report.COSTS.items(), panels, strict=True):
        for name, runs in chosen.items():
            for i, run in enumerate(runs):
                points = learning_report.curve(run, score, over)
                if points:
                    panel.plot(*zip(*points, strict=True),
                               color=colors[names.index(run["given"]["attention"]) % len(colors)],
                               linestyle="--" if run["given"]["conv"] else "-",
                               label=name if i == 0 else None)  # fmt: skip
        for name, value in floors.items():
            panel.axhline(value, color="gray", linestyle=":")
            panel.annotate(name, (0.01, value), xycoords=("axes fraction", "data"), color="gray",
                           fontsize=7)  # fmt: skip
        panel.set(xlabel=words, ylabel=f"{score.name}, validation", title=task.name)
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as new:
        figure.savefig(new, format="png", dpi=120)
    plt.close(figure)
