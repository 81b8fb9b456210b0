"""Measures of attention weights: signs, concentration, and dilution."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_cosattn.analysis.weights import seen_keys, to_numpy
from keras_cosattn.attention import Attention


def negative_share(weights: Any, seen: Any = None) -> np.ndarray:
    """Return the share of negative weights for each head, `#{w < 0} / #{w}`.

    Args:
        weights: array of shape `(b, h, t, s)`.
        seen: bool array that broadcasts to it. Defaults to None, all keys.

    Returns:
        Array of shape `(h,)`, from 0 to 1.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn import analysis
    >>> analysis.negative_share(np.array([[[[1.0, -3.0]]]])).tolist()
    [0.5]
    """
    weights, seen = read(weights, seen)
    return _divide(np.sum((weights < 0) & seen, axis=(0, 2, 3)), np.sum(seen, axis=(0, 2, 3)))


def negative_mass(weights: Any, seen: Any = None) -> np.ndarray:
    """Return the share of the mass in negative weights for each head, `sum |w| [w < 0] / sum |w|`.

    At 0.5, positive and negative weights cancel.

    Args:
        weights: array of shape `(b, h, t, s)`.
        seen: bool array that broadcasts to it. Defaults to None, all keys.

    Returns:
        Array of shape `(h,)`, from 0 to 1.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn import analysis
    >>> analysis.negative_mass(np.array([[[[1.0, -3.0]]]])).tolist()
    [0.75]
    """
    weights, _ = read(weights, seen)
    mass = np.abs(weights)
    return _divide(np.sum(mass * (weights < 0), axis=(0, 2, 3)), np.sum(mass, axis=(0, 2, 3)))


def mass_within(weights: Any, distance: Any, seen: Any = None) -> np.ndarray:
    """Return the share of a row's mass within `|t - s| <= distance`, the mean over all rows.

    Rows without mass do not count. The distance is that of the indices in the arrays. Uniform
    weights give the share of the seen keys that are as near. To measure concentration, compare
    with `mass_within(seen, distance, seen)`.

    Args:
        weights: array of shape `(b, h, t, s)`.
        distance: int, or array of ints of shape `(n,)`.
        seen: bool array that broadcasts to the weights. Defaults to None, all keys.

    Returns:
        Array of shape `(h,)`, or `(h, n)` for n distances. NaN for heads without mass.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn import analysis
    >>> analysis.mass_within(np.full((1, 1, 2, 2), 0.5), [0, 1]).tolist()
    [[0.5, 1.0]]
    """
    rows, distance = shares(*read(weights, seen)), np.asarray(distance)
    t, s = rows.shape[2:]
    apart = np.abs(np.arange(t)[:, None] - np.arange(s))
    near = [_mean(np.sum(rows * (apart <= n), axis=-1), axis=(0, 2)) for n in distance.ravel()]
    heads = rows.shape[1]
    return np.reshape(near, (distance.size, heads)).T.reshape(heads, *distance.shape)


def entropy(weights: Any, seen: Any = None, relative: bool = True) -> np.ndarray:
    """Return the entropy of each row, `-sum_s p_ts log p_ts` with `p_ts = |w_ts| / sum_s |w_ts|`.

    Args:
        weights: array of shape `(b, h, t, s)`.
        seen: bool array that broadcasts to it. Defaults to None, all keys.
        relative: bool: divide by `log n` for the n keys that the row sees. The result is 1 for
            uniform weights, and 0 if one key has all the mass. If False, the entropy is in nats.
            Defaults to `True`.

    Returns:
        Array of shape `(b, h, t)`. NaN for rows without mass and, if `relative`, for rows that see
        fewer than two keys.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn import analysis
    >>> analysis.entropy(np.full((1, 1, 1, 4), 0.25)).tolist()
    [[[1.0]]]
    """
    weights, seen = read(weights, seen)
    rows = shares(weights, seen)
    found = -np.sum(rows * np.log(np.where(rows > 0, rows, 1)), axis=-1)
    keys = np.sum(seen, axis=-1)
    return found / np.log(np.where(keys > 1, keys, np.nan)) if relative else found


class Dilution(NamedTuple):
    """How spread out the weights are at one length: means over examples, heads and rows.

    Attributes:
        length: int, the length n.
        largest: float, the largest magnitude of a row, `max_s |w_ts|`.
        times_mean: float, the largest magnitude divided by the mean of the row; 1 is uniform.
        deviation: float, the root mean square of the deviations from the mean, divided by it.
        entropy: float, the relative entropy, see `entropy`.
    """

    length: int
    largest: float
    times_mean: float
    deviation: float
    entropy: float


def dilution(
    weights_of: Attention | Callable[[Any], Any],
    inputs: Any,
    lengths: Iterable[int],
    *,
    mask: Any = None,
    segment_ids: Any = None,
    use_causal_mask: bool = False,
    **call_arguments: Any,
) -> list[Dilution]:
    """Return how the weights change as the sequence grows.

    Each row is divided by its mass, so its mean weight is 1 / (number of keys seen). If one key
    stays n times the mean while n doubles, attention keeps its focus. If `times_mean` stays
    bounded, each weight approaches the mean as 1 / n. Rows that see fewer than two keys do not
    count.

    Args:
        weights_of: an attention layer, or a function of inputs of shape `(b, n, ...)` that returns
            weights of shape `(b, h, n, n)`, such as `lambda x: attention_weights(model, x)[name]`.
        inputs: tensor of shape `(b, t, ...)`. For each length n, its first n steps are used.
        lengths: the lengths, integers from 2 to t.
        mask: `(b, t)`, True where a step is valid. Defaults to None, all steps. A layer is called
            with it; a function's model must compute the same mask.
        segment_ids: `(b, t)`, integers, for packed sequences, like `mask`. Defaults to None.
        use_causal_mask: bool: a row sees its past only, like `mask`. Defaults to `False`.
        **call_arguments: other arguments of the layer's call. A function gets none.

    Returns:
        A `Dilution` for each length. Its means are NaN if no row counts.

    Raises:
        ValueError: if a length is not from 2 to t.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn import analysis
    >>> def uniform(x):
    ...     return np.full((1, 1, x.shape[1], x.shape[1]), 1 / x.shape[1])
    >>> row, = analysis.dilution(uniform, np.zeros((1, 8, 1)), [4])
    >>> row.length, row.largest, row.times_mean
    (4, 0.25, 1.0)
    """
    lengths = list(lengths)
    steps = {"query_mask": mask, "segment_ids": segment_ids}
    steps = {name: ops.convert_to_numpy(x) for name, x in steps.items() if x is not None}
    rows = []
    for n in lengths:
        if not 2 <= n <= inputs.shape[1]:
            raise ValueError(
                f"`lengths` must be from 2 to the {inputs.shape[1]} steps of `inputs`. Received: "
                f"{n} in lengths={lengths}"
            )
        first = {name: x[:, :n] for name, x in steps.items()}
        seen = seen_keys(n, causal=use_causal_mask, **first)
        if isinstance(weights_of, Attention):
            first |= {"value_mask": first["query_mask"]} if "query_mask" in first else {}
            options = {"use_causal_mask": use_causal_mask, **first, **call_arguments}
            weights = _weights_of_layer(weights_of, inputs[:, :n], options)
        else:
            weights = weights_of(inputs[:, :n])
        rows.append(Dilution(n, *_spread(weights, seen)))
    return rows


def _weights_of_layer(layer: Attention, x: Any, options: dict[str, Any]) -> Any:
    return layer(x, x, return_attention_scores=True, **options)[1]


def _spread(weights: Any, seen: Any) -> list[float]:
    """Return the fields of `Dilution` after the length."""
    weights, seen = read(weights, seen)
    rows, keys = shares(weights, seen), np.sum(seen, axis=-1)
    counts = (keys > 1) & np.isfinite(rows[..., 0])
    largest = np.max(rows, axis=-1)
    squares = np.sum(np.square(rows * keys[..., None] - 1) * seen, axis=-1)
    deviation = np.sqrt(squares / np.maximum(keys, 1))
    measures = largest, largest * keys, deviation, entropy(weights, seen)
    return [float(_mean(np.where(counts, x, np.nan), axis=None)) for x in measures]


def read(weights: Any, seen: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights in float64, zero where not seen, and `seen` in their shape.

    Raises:
        ValueError: if the weights do not have four axes.
    """
    weights = to_numpy(weights)
    if weights.ndim != 4:
        raise ValueError(f"Weights must be (b, h, t, s). Received: shape {weights.shape}")
    seen = np.broadcast_to(True if seen is None else np.asarray(seen, bool), weights.shape)
    return np.where(seen, weights, 0.0), seen


def shares(weights: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return `|w_ts| / sum_s |w_ts|`, NaN in rows without mass."""
    mass = np.abs(weights)
    return _divide(mass, np.sum(mass, axis=-1, keepdims=True))


def _mean(x: np.ndarray, axis: Any) -> np.ndarray:
    """Return the mean of the numbers that are not NaN, NaN if there are none."""
    counts = ~np.isnan(x)
    return _divide(np.sum(np.where(counts, x, 0.0), axis=axis), np.sum(counts, axis=axis))


def _divide(x: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Return `x / total`, NaN where the total is zero."""
    return x / np.where(total > 0, total, np.nan)
