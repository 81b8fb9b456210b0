"""What attention looks at: the weights of any variant as matrices, and what can be read off them.

Qin et al., 2022 (cosFormer), explain softmax attention by two properties: its weights are never
negative, and they concentrate (there: near the diagonal). A third is dilution: the more keys there
are, the closer every weight comes to the mean 1/n. `negative_share`, `mass_within`, `entropy` and
`dilution` measure them, `draw` shows them:

```python
from keras_cosattn import analysis

weights = analysis.attention_weights(model, x)  # layer path -> (b, h, t, s)
analysis.mass_within(weights["block/self_attention"], 8)
analysis.draw(weights, path="attention.png")
```

Weights are the true ones where a variant has them, else those that its sums imply; NumPy arrays
`(b, h, t, s)`. A weight's mass is its magnitude `|w|`, for weights of some variants can be
negative. `seen`, broadcastable to `(b, h, t, s)`, is True where a query may look at a key; what it
leaves out (padding, the future) counts nowhere. `seen_keys` makes it; None is everything.
"""

from typing import NamedTuple

import numpy as np
from keras import ops

from keras_cosattn import scope
from keras_cosattn.attention import Attention
from keras_cosattn.ops import timesteps


def attention_weights(model, *inputs, **how):
    """The weights of every attention layer that `model(*inputs, **how)` calls.

    The model runs once, as it is and outside compiled functions; each layer's weights take
    O(t s) memory and the time of mixing values of size s.

    Args:
        model: any built Keras model or layer with attention layers of this package in it, or an
            attention layer, for which one input is both query and value.
        *inputs, **how: what it is called with.

    Returns:
        dict of layer path -> `(b, h, t, s)`. The second call of one layer in the same run, and
        another layer of the same path, has `:1` behind its path, the third `:2`.
    """
    if not model.built:
        raise ValueError(f"'{model.name}' is not built. Call it once on an input, then look.")
    if isinstance(model, Attention) and len(inputs) == 1:
        inputs = (inputs[0], inputs[0])
    found = {}

    def keep(layer, weights):
        again = sum(name.partition(":")[0] == layer.path for name in found)
        found[f"{layer.path}:{again}" if again else layer.path] = _numpy(weights)

    with scope.watched(keep):
        model(*inputs, **how)
    if not found:
        raise ValueError(f"'{model.name}' called no attention layer of keras_cosattn.")
    return found


def seen_keys(t, s=None, *, causal=False, query_mask=None, key_mask=None):
    """Where a query may look at a key: `(b or 1, 1, t, s)`, bool.

    Args:
        t, s: steps of queries and of keys; without s they are the same steps.
        causal: query t sees keys s <= t, counting the real steps.
        query_mask, key_mask: `(b, t)`, `(b, s)`, True where a step is real; if t and s are the
            same steps, `query_mask` serves both.
    """
    if s is None:
        s, key_mask = t, query_mask if key_mask is None else key_mask
    found = timesteps.pair_mask(t, s, query_mask=query_mask, key_mask=key_mask, causal=causal)
    found = np.ones((1, 1, t, s), bool) if found is None else ops.convert_to_numpy(found)
    return np.broadcast_to(found, (len(found), 1, t, s))


def negative_share(weights, seen=None):
    """How many of the weights are negative, for each head: `(h,)`, 0 to 1.

    `#{w < 0} / #{w}` over the keys seen.
    """
    weights, seen = _read(weights, seen)
    return _divide(np.sum((weights < 0) & seen, axis=(0, 2, 3)), np.sum(seen, axis=(0, 2, 3)))


def negative_mass(weights, seen=None):
    """How much of the mass is in negative weights, for each head: `(h,)`, 0 to 1.

    `sum |w| [w < 0] / sum |w|`. At 0.5 positive and negative weights cancel.
    """
    weights, _ = _read(weights, seen)
    mass = np.abs(weights)
    return _divide(np.sum(mass * (weights < 0), axis=(0, 2, 3)), np.sum(mass, axis=(0, 2, 3)))


def mass_within(weights, distance, seen=None):
    """The share of a row's mass within `|t - s| <= distance`, the mean over rows: `(h,)`.

    `(h, n)` for n distances. Rows without mass do not count. Steps are counted as they stand in
    the arrays. Uniform weights give the share of the keys seen that is as near: compare with
    `mass_within(seen, distance, seen)`, as concentration is what lies above it.
    """
    shares, distance = _shares(*_read(weights, seen)), np.asarray(distance)
    t, s = shares.shape[2:]
    apart = np.abs(np.arange(t)[:, None] - np.arange(s))
    near = [
        np.nanmean(np.sum(shares * (apart <= n), axis=-1), axis=(0, 2)) for n in distance.ravel()
    ]
    return np.stack(near, axis=-1).reshape(shares.shape[1], *distance.shape)


def entropy(weights, seen=None, relative=True):
    """The entropy of every row: `(b, h, t)`; `-sum_s p_ts log p_ts`, `p_ts = |w_ts| / sum |w_ts|`.

    In nats, or relative to `log n` for the n keys that the row sees: 1 where it looks at all
    alike, 0 where it looks at one. NaN where there is nothing to measure: no mass, or, if it is
    relative, fewer than two keys. Of negative weights the magnitude counts.
    """
    weights, seen = _read(weights, seen)
    shares = _shares(weights, seen)
    found = -np.sum(shares * np.log(np.where(shares > 0, shares, 1)), axis=-1)
    keys = np.sum(seen, axis=-1)
    return found / np.log(np.where(keys > 1, keys, np.nan)) if relative else found


class Dilution(NamedTuple):
    """How spread out the weights are at one length; means over examples, heads and rows."""

    length: int  # n
    largest: float  # max_s |w_ts|
    times_mean: float  # how many times the mean of the row that is; 1 is uniform
    deviation: float  # of a weight from the mean, root mean square, relative to the mean
    entropy: float  # relative, see `entropy`


def dilution(weights_of, inputs, lengths, **how):
    """How the weights change as the sequence grows: a `Dilution` for each length.

    A row's mass is brought to 1 first, so its mean weight is 1 / (keys seen). Where one key stays
    n times the mean as n doubles, attention keeps its focus; where `times_mean` stays bounded, each
    weight shrinks toward the mean as 1 / n. Rows that see fewer than two keys do not count.

    Args:
        weights_of: an attention layer, or a function of inputs `(b, n, ...)` that gives weights
            `(b, h, n, n)`, such as `lambda x: attention_weights(model, x)[name]`.
        inputs: `(b, t, ...)`, cut to its first n steps for each length n.
        lengths: of the rows of the table, each 2 to t.
        **how: of the layer's call; with `use_causal_mask=True` a row sees its past.
    """
    causal = how.get("use_causal_mask", False)
    if isinstance(weights_of, Attention):
        layer = weights_of

        def weights_of(x):
            return layer(x, x, return_attention_scores=True, **how)[1]

    rows = []
    for n in lengths:
        if not 2 <= n <= inputs.shape[1]:
            raise ValueError(
                f"`lengths` must be from 2 to the {inputs.shape[1]} steps of `inputs`. Received: "
                f"{n} in lengths={list(lengths)}"
            )
        weights, seen = _numpy(weights_of(inputs[:, :n])), seen_keys(n, causal=causal)
        rows.append(Dilution(n, *_spread(weights, seen)))
    return rows


def draw(weights, *, seen=None, example=0, head=None, distances=None, dilutions=None, path=None):
    """Draw matrices of weights and, below, how far they reach and how they dilute.

    Each row of a matrix is in units of its mean, so 1 is uniform whatever the length; the colours
    mean the same in all, red is negative. Needs Matplotlib: `pip install keras-cosattn[analysis]`.

    Args:
        weights: dict of name -> `(b, h, t, s)`, one column each.
        seen: as above, for all of them.
        example: which of the batch.
        head: which; None is the mean over the heads.
        distances: for the curve of `mass_within`; None is powers of two.
        dilutions: dict of name -> what `dilution` returned, for the curves over length; None
            draws none.
        path: file to write; None writes none.

    Returns:
        the `matplotlib.figure.Figure`.
    """
    figure = _figure(max(3.2 * len(weights), 9), 7)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.1))
    matrices = {name: _chosen(one, seen, example, head) for name, one in weights.items()}
    _draw_matrices(top, matrices)
    panels, colours = _panels(bottom, 3 if dilutions else 1), {}
    for name, one in weights.items():
        powers = 2 ** np.arange(np.ceil(np.log2(np.shape(one)[-1])))
        steps = powers if distances is None else distances
        line = panels[0].plot(steps, mass_within(one, steps, seen).mean(0), marker=".", label=name)
        colours[name] = line[0].get_color()
    panels[0].set(title="mass within a distance", xlabel="|t - s| up to", ylim=(0, 1.02))
    _doubling(panels[0])
    panels[0].legend(frameon=False)
    titles = {"times_mean": "largest weight / mean weight", "entropy": "entropy / log n"}
    for axes, (field, title) in zip(panels[1:], titles.items(), strict=False):
        for name, rows in dilutions.items():
            y = [getattr(row, field) for row in rows]
            axes.plot([row.length for row in rows], y, marker=".", color=colours.get(name))
        axes.set(title=title, xlabel="length n", ylim=(0, None))
        _doubling(axes)
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure


def draw_routes(routes, names=None, *, example=0, path=None):
    """Draw how much of each path of a `RoutedAttention` each step takes, as bands that fill 1.

    Needs Matplotlib: `pip install keras-cosattn[analysis]`.

    Args:
        routes: `(b, t, p)`, from `layer.route_weights(x)`.
        names: of the p paths; None numbers them.
        example: which of the batch.
        path: file to write; None writes none.

    Returns:
        the `matplotlib.figure.Figure`.
    """
    routes = _numpy(routes)
    if routes.ndim != 3:
        raise ValueError(f"Routes must be (b, t, p). Received: shape {routes.shape}")
    names = [f"path {i}" for i in range(routes.shape[2])] if names is None else list(names)
    if len(names) != routes.shape[2]:
        raise ValueError(
            f"`names` must be {routes.shape[2]}, one for each path. Received: names={names}"
        )
    figure = _figure(9, 3)
    axes = figure.subplots()
    axes.stackplot(np.arange(routes.shape[1]), routes[example].T, labels=names, step="mid")
    axes.set(xlabel="step t", ylabel="share of each path", ylim=(0, 1), xlim=(0, None))
    figure.legend(loc="outside right upper", frameon=False)
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure


def _figure(width, height):
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Drawing needs Matplotlib. Install it: pip install keras-cosattn[analysis]"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def _doubling(axes):
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")


def _panels(figure, n):
    return figure.subplots(1, n, squeeze=False)[0]


def _chosen(weights, seen, example, head):
    """One matrix `(t, s)`, its rows in units of their mean; NaN where nothing is seen."""
    weights, seen = _read(weights, seen)
    weights = (_shares(weights, seen) * np.sign(weights) * np.sum(seen, -1, keepdims=True))[example]
    chosen = weights.mean(0) if head is None else weights[head]
    return np.where(seen[example, head or 0], chosen, np.nan)


def _draw_matrices(figure, matrices):
    """White is zero, blue is positive, red is negative, grey is not seen; one scale for all."""
    import matplotlib

    each = np.concatenate([np.abs(matrix[np.isfinite(matrix)]) for matrix in matrices.values()])
    largest = max(2, np.percentile(each, 98))
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


def _spread(weights, seen):
    """`Dilution` without the length."""
    weights, seen = _read(weights, seen)
    shares, keys = _shares(weights, seen), np.sum(seen, axis=-1)
    some = (keys > 1) & np.isfinite(shares[..., 0])
    times = np.max(shares, axis=-1) * keys
    apart = np.sum(np.square(shares * keys[..., None] - 1) * seen, axis=-1) / np.maximum(keys, 1)
    each = np.max(shares, axis=-1), times, np.sqrt(apart), entropy(weights, seen)
    return [float(np.mean(x[some])) for x in each]


def _read(weights, seen):
    """Weights in float64, zero where not seen, and what is seen, in their shape."""
    weights = _numpy(weights)
    if weights.ndim != 4:
        raise ValueError(f"Weights must be (b, h, t, s). Received: shape {weights.shape}")
    seen = np.broadcast_to(True if seen is None else np.asarray(seen, bool), weights.shape)
    return np.where(seen, weights, 0.0), seen


def _shares(weights, seen):
    """`|w_ts| / sum_s |w_ts|`; NaN in a row without mass."""
    mass = np.abs(weights)
    total = np.sum(mass, axis=-1, keepdims=True)
    return _divide(mass, total)


def _divide(x, total):
    """`x / total`, NaN where there is nothing to divide by."""
    return x / np.where(total > 0, total, np.nan)


def _numpy(x):
    if not isinstance(x, np.ndarray):
        x = ops.convert_to_numpy(ops.cast(x, "float32"))  # NumPy has no bfloat16
    return np.asarray(x, "float64")
