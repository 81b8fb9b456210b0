"""Drawings of attention weights and of routes, with Matplotlib."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_cosattn.analysis.measures import Dilution, mass_within, read, shares
from keras_cosattn.analysis.weights import to_numpy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES = {"times_mean": "largest weight / mean weight", "entropy": "entropy / log n"}
"""The fields of `Dilution` that are drawn, with their titles."""


def draw(
    weights: Mapping[str, Any],
    *,
    seen: Any = None,
    example: int = 0,
    head: int | None = None,
    distances: Sequence[int] | None = None,
    dilutions: Mapping[str, Sequence[Dilution]] | None = None,
    path: str | os.PathLike | None = None,
) -> Figure:
    """Draw matrices of weights and, below them, how far they reach and how they dilute.

    Each row of a matrix is divided by its mean, so 1 is uniform for every length. The colours mean
    the same in all matrices; red is negative. Needs Matplotlib.

    Args:
        weights: dict of name -> array of shape `(b, h, t, s)`. Each is one column.
        seen: bool array that broadcasts to all of them. Defaults to None, all keys.
        example: int, index in the batch. Defaults to `0`.
        head: int, index of the head. Defaults to None, the mean over the heads.
        distances: distances of the curve of `mass_within`. Defaults to None, powers of two.
        dilutions: dict of name -> what `dilution` returned, for the curves over the length.
            Defaults to None, no such curves.
        path: file to write. Defaults to None, no file.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: if Matplotlib is not installed.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn import analysis
    >>> figure = analysis.draw({"uniform": np.full((1, 1, 8, 8), 1 / 8)})
    >>> [axes.get_title() for axes in figure.axes if axes.get_title()]
    ['uniform', 'mass within a distance']
    """
    figure: Any = _figure(max(3.2 * len(weights), 9), 7)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.1))
    _draw_matrices(top, {name: _matrix(w, seen, example, head) for name, w in weights.items()})
    panels = _panels(bottom, 3 if dilutions else 1)
    colours = _draw_reach(panels[0], weights, distances, seen)
    if dilutions:
        _draw_dilutions(panels[1:], dilutions, colours)
    _write(figure, path)
    return figure


def draw_routes(
    routes: Any,
    names: Sequence[str] | None = None,
    *,
    example: int = 0,
    path: str | os.PathLike | None = None,
) -> Figure:
    """Draw how much of each path of a `RoutedAttention` each step takes, as bands that sum to 1.

    Needs Matplotlib.

    Args:
        routes: array of shape `(b, t, p)`, from `layer.route_weights(x)`.
        names: names of the p paths. Defaults to None: they are numbered.
        example: int, index in the batch. Defaults to `0`.
        path: file to write. Defaults to None, no file.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: if the routes do not have three axes, or there is not one name for each path.
        ImportError: if Matplotlib is not installed.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn import analysis
    >>> figure = analysis.draw_routes(np.full((1, 8, 2), 0.5), ["linear", "softmax"])
    >>> figure.axes[0].get_xlabel()
    'step t'
    """
    routes = to_numpy(routes)
    if routes.ndim != 3:
        raise ValueError(f"Routes must be (b, t, p). Received: shape {routes.shape}")
    labels = [f"path {i}" for i in range(routes.shape[2])] if names is None else list(names)
    if len(labels) != routes.shape[2]:
        raise ValueError(
            f"`names` must be {routes.shape[2]}, one for each path. Received: names={labels}"
        )
    figure = _figure(9, 3)
    axes = figure.subplots()
    axes.stackplot(np.arange(routes.shape[1]), routes[example].T, labels=labels, step="mid")
    axes.set(xlabel="step t", ylabel="share of each path", ylim=(0, 1), xlim=(0, None))
    figure.legend(loc="outside right upper", frameon=False)
    _write(figure, path)
    return figure


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Drawing needs Matplotlib: pip install matplotlib") from error
    return Figure(figsize=(width, height), layout="constrained")


def _write(figure: Figure, path: str | os.PathLike | None) -> None:
    if path is not None:
        figure.savefig(path, dpi=120)


def _panels(figure: Any, n: int) -> Any:
    return figure.subplots(1, n, squeeze=False)[0]


def _use_powers_of_two(axes: Any) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")


def _matrix(weights: Any, seen: Any, example: int, head: int | None) -> np.ndarray:
    """Return one matrix `(t, s)`, each row divided by its mean; NaN where nothing is seen."""
    weights, seen = read(weights, seen)
    keys = np.sum(seen, axis=-1, keepdims=True)
    rows = (shares(weights, seen) * np.sign(weights) * keys)[example]
    chosen = rows.mean(0) if head is None else rows[head]
    return np.where(seen[example, head or 0], chosen, np.nan)


def _draw_matrices(figure: Any, matrices: Mapping[str, np.ndarray]) -> None:
    """White is zero, blue is positive, red is negative, grey is not seen; one scale for all."""
    import matplotlib

    each = np.concatenate([np.abs(matrix[np.isfinite(matrix)]) for matrix in matrices.values()])
    largest = max(2, np.percentile(each, 98)) if each.size else 2
    colours = matplotlib.colormaps["RdBu"].with_extremes(bad="0.85")
    panels = _panels(figure, len(matrices))
    for axes, (name, matrix) in zip(panels, matrices.items(), strict=True):
        image = axes.imshow(
            matrix, cmap=colours, vmin=-largest, vmax=largest, interpolation="nearest"
        )
        axes.set(title=name, xlabel="key s")
    panels[0].set_ylabel("query t")
    bar = figure.colorbar(image, ax=list(panels), aspect=30, extend="both")
    bar.set_label("weight / mean weight")


def _draw_reach(
    axes: Any, weights: Mapping[str, Any], distances: Sequence[int] | None, seen: Any
) -> dict[str, Any]:
    """Draw the curves of `mass_within`, and return the colour of each name."""
    colours = {}
    for name, one in weights.items():
        powers = 2 ** np.arange(max(1, np.ceil(np.log2(np.shape(one)[-1]))))
        steps = powers if distances is None else distances
        line = axes.plot(steps, mass_within(one, steps, seen).mean(0), marker=".", label=name)
        colours[name] = line[0].get_color()
    axes.set(title="mass within a distance", xlabel="|t - s| up to", ylim=(0, 1.02))
    _use_powers_of_two(axes)
    axes.legend(frameon=False)
    return colours


def _draw_dilutions(
    panels: Any, dilutions: Mapping[str, Sequence[Dilution]], colours: dict[str, Any]
) -> None:
    for axes, (field, title) in zip(panels, CURVES.items(), strict=True):
        for name, rows in dilutions.items():
            y = [getattr(row, field) for row in rows]
            axes.plot([row.length for row in rows], y, marker=".", color=colours.get(name))
        axes.set(title=title, xlabel="length n", ylim=(0, None))
        _use_powers_of_two(axes)
