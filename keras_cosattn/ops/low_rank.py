"""Softmax attention to r learned mixtures of the keys, for any number of keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import ops

from keras_cosattn.ops import arrays, dense, timesteps

Tensor = Any


def low_rank_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_projection: Tensor,
    value_projection: Tensor,
    *,
    query_mask: Tensor | None = None,
    mask: Tensor | None = None,
    dropout: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Low-rank attention: `out_t = sum_j softmax_j(q_t . (E k)_j / sqrt(d)) (F v)_j`.

    j is one of r slots. Valid step i is mixed into slot j with the weights `E_ij` and `F_ij`, so n
    valid steps use the first n rows. A slot whose E is zero in all of these rows has no key and
    does not count.

    More steps than E has rows raise ValueError if their number is known (a static shape, no mask).
    Otherwise the steps beyond the last row do not count.

    It takes O((t + s) r (d + e)) time and O((t + s) r) memory for each head.

    Args:
        q: tensor `(b, t, h, d)`; h is a multiple of hk.
        k: tensor `(b, s, hk, d)`.
        v: tensor `(b, s, hk, e)`.
        key_projection: tensor E, `(max_length, r)` for all heads, or `(max_length, hk, r)`.
        value_projection: tensor F, of the same shape as E.
        query_mask: bool tensor `(b, t)`, the valid queries.
        mask: bool tensor `(b, s)`, the valid keys.
        dropout: function of the weights `(b, hk, t * h / hk, r)`.

    Returns:
        Tensor `(b, t, h, e)`. A row with nothing to attend to is zero.

    Raises:
        ValueError: If k is known to have more than `max_length` valid steps.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn.ops import low_rank_attention
    >>> q, e = np.ones((2, 5, 4, 3), "float32"), np.ones((8, 2), "float32")
    >>> tuple(low_rank_attention(q, q, q, e, e).shape)
    (2, 5, 4, 3)

    Reference:
        - [Wang et al., 2020](https://arxiv.org/abs/2006.04768), equation 7
    """
    s, max_length = ops.shape(k)[1], key_projection.shape[0]
    if mask is None:
        _check_length(s, max_length)
    count = s
    if mask is not None:
        order, _ = timesteps.valid_first(mask)
        k, v, mask = (timesteps.take_steps(x, order) for x in (k, v, mask))
        k, v = arrays.zero_masked(k, mask), arrays.zero_masked(v, mask)
        count = ops.sum(ops.cast(mask, "int32"), axis=1)
    count = ops.reshape(count, (-1, 1, 1, 1))
    group = arrays.group_size(q, k)
    mixed, _ = dense.attend(
        arrays.fold_groups(q, group),
        _project(k, key_projection, s),
        _project(v, value_projection, s),
        _first_steps(key_projection) < count,
        dropout,
    )
    return arrays.zero_masked(arrays.unfold_groups(mixed, group), query_mask)


def _project(x, projection, s):
    """Mix the steps into slots: `(b, s, hk, d) -> (b, r, hk, d)`."""
    projection = arrays.accumulate(projection)
    projection = arrays.fit_length(ops.expand_dims(projection, 0), s)[0]
    equation = "bshd,sr->brhd" if len(projection.shape) == 2 else "bshd,shr->brhd"
    return ops.einsum(equation, arrays.accumulate(x), projection)


def _first_steps(projection):
    """Return the first step that E mixes into each slot, `(1, 1 or hk, 1, r)`, or `max_length`."""
    axes = tuple(range(1, len(projection.shape)))
    steps = ops.expand_dims(ops.arange(projection.shape[0], dtype="int32"), axes)
    first = ops.min(ops.where(ops.not_equal(projection, 0), steps, projection.shape[0]), axis=0)
    return ops.reshape(first, (1, -1, 1, projection.shape[-1]))


def _check_length(s, max_length):
    if isinstance(s, int) and s > max_length:
        raise ValueError(
            f"The values have {s} steps, but the projections have rows for max_length={max_length} "
            "steps. Build the layer with a larger `max_length`."
        )
