"""The log-log picture of times."""

from keras_cosattn.atomic_write import atomic_write
from measure.cells import passes


def draw(path, results, levels, gradients=(False, True)):
    """One panel for each level and pass, causal: seconds of each row that was timed, by length."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        len(levels), len(gradients), figsize=(8 * len(gradients), 7 * len(levels)), squeeze=False
    )
    for level, line in zip(levels, panels, strict=True):
        for gradient, panel in zip(gradients, line, strict=True):
            rows = results.of(level=level, causal=True, gradient=gradient)
            for i, cells in enumerate(rows.values()):
                draw_row(panel, results, cells, "osv^Dx"[i // 10 % 6])
            panel.set(xscale="log", yscale="log", xlabel="steps", ylabel="seconds",
                      title=f"{level}, causal, {passes(gradient)}")  # fmt: skip
            panel.grid(which="both", alpha=0.3)
            if panel.lines:
                panel.legend(fontsize=6)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as new:
        figure.savefig(new, format="png", dpi=120)
    plt.close(figure)


def draw_row(panel, results, cells, marker):
    points = [(n, results.number(cell, "median")) for n, cell in sorted(cells.items())]
    points = [point for point in points if point[1]]
    if points:
        label = results.label(next(iter(cells.values())))
        panel.plot(*zip(*points, strict=True), marker=marker, markersize=4, label=label)
