"""Attention whose weights `(b, h, t, s)` are computed: softmax attention and its parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from keras import ops

from keras_cosattn.ops import arrays, timesteps

Tensor = Any

FORBIDDEN = -1e30  # far below any logit, and far enough from float32's end to subtract from


def scores(q: Tensor, k: Tensor) -> Tensor:
    """Return `q_t . k_s`: `(b, t, h, d)`, `(b, s, hk, d)` -> `(b, h, t, s)`; h a multiple of hk.

    The heads of a group are rows of one product, so keys are not copied.
    """
    group, q, k = arrays.group_size(q, k), arrays.accumulate(q), arrays.accumulate(k)
    if group == 1:
        return ops.einsum("bthd,bshd->bhts", q, k)
    b, t, h, d = ops.shape(q)
    rows = ops.reshape(ops.transpose(q, (0, 2, 1, 3)), (b, h // group, group * t, d))
    product = ops.einsum("bhrd,bshd->bhrs", rows, k)
    return ops.reshape(product, (b, h, t, ops.shape(k)[1]))


def mix(weights: Tensor, v: Tensor) -> Tensor:
    """Return `sum_s w_ts v_s`: `(b, h, t, s)`, `(b, s, hk, e)` -> `(b, t, h, e)`.

    The heads of a group are rows of one product, so values are not copied.
    """
    b, h, t, s = ops.shape(weights)
    heads, e = v.shape[2:]
    if h == heads:
        return ops.einsum("bhts,bshe->bthe", weights, v)
    rows = ops.reshape(weights, (b, heads, h // heads * t, s))
    mixed = ops.reshape(ops.einsum("bhrs,bshe->bhre", rows, v), (b, h, t, e))
    return ops.transpose(mixed, (0, 2, 1, 3))


def normalise(
    weights: Tensor, allowed: Tensor | None = None, normaliser: Tensor | None = None
) -> Tensor:
    """Divide weights `(b, h, t, s)` by the row sums of the normaliser.

    Rows with a normaliser of zero are zero.

    Args:
        weights: tensor `(b, h, t, s)`.
        allowed: bool tensor that broadcasts to the weights. Other weights are zero.
        normaliser: tensor `(b, h, t, s)`. Defaults to the weights.
    """
    normaliser = weights if normaliser is None else normaliser
    if allowed is not None:
        weights, normaliser = (
            ops.where(allowed, x, ops.zeros_like(x)) for x in (weights, normaliser)
        )
    total = ops.sum(normaliser, axis=-1, keepdims=True)
    has_weights = ops.abs(total) > arrays.SMALLEST_SUM
    return ops.where(has_weights, weights / ops.where(has_weights, total, 1.0), 0.0)


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    query_mask: Tensor | None = None,
    mask: Tensor | None = None,
    segment_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    bias: Tensor | None = None,
    dropout: Callable[[Tensor], Tensor] | None = None,
    logit_soft_cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention: `out_t = sum_s softmax_s(q_t . k_s / sqrt(d)) v_s`.

    It takes O(t s (d + e)) time and O(t s) memory for each head.

    Args:
        q: tensor `(b, t, h, d)`; h is a multiple of hk.
        k: tensor `(b, s, hk, d)`.
        v: tensor `(b, s, hk, e)`.
        causal: bool. If True, query t attends to keys s <= t, both counted from the start.
            Defaults to `False`.
        query_mask: bool tensor `(b, t)`, the valid queries.
        mask: bool tensor `(b, s)`, the valid keys.
        segment_ids: integer tensor `(b, t)`, t = s. A step attends to its own run of equal ids.
        attention_mask: tensor that broadcasts to `(b, h, t, s)`. Rank 3 is `(b, t, s)`.
        bias: tensor that broadcasts to `(b, h, t, s)`. It is added to the scaled scores.
        dropout: function of the weights, applied before they mix v.
        logit_soft_cap: float c. A scaled score x becomes `c tanh(x / c)` before the bias is added.
            Defaults to `None`, no cap.

    Returns:
        The output `(b, t, h, e)` and the weights `(b, h, t, s)` before dropout, in float32, or in
        float64 for float64 inputs. A row with nothing to attend to is zero in both.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn.ops import softmax_attention
    >>> q, k = np.ones((2, 5, 4, 3)), np.ones((2, 7, 2, 3))
    >>> output, weights = softmax_attention(q, k, k)
    >>> tuple(output.shape), tuple(weights.shape)
    ((2, 5, 4, 3), (2, 4, 5, 7))

    Reference:
        - [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762), equation 1
        - [Gemma Team, 2024](https://arxiv.org/abs/2408.00118), section 2, for `logit_soft_cap`
    """
    allowed = timesteps.pair_mask(
        ops.shape(q)[1],
        ops.shape(k)[1],
        query_mask=query_mask,
        key_mask=mask,
        segments=timesteps.segment_numbers(segment_ids),
        causal=causal,
        attention_mask=attention_mask,
    )
    k, v = arrays.zero_masked(k, mask), arrays.zero_masked(v, mask)
    return attend(q, k, v, allowed, dropout, bias, logit_soft_cap=logit_soft_cap)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor | None = None,
    dropout: Callable[[Tensor], Tensor] | None = None,
    bias: Tensor | None = None,
    log_totals: bool = False,
    logit_soft_cap: float | None = None,
) -> Any:
    """Softmax attention with a given mask of pairs.

    Args:
        q, k, v, dropout, bias, logit_soft_cap: as in `softmax_attention`.
        allowed: bool tensor that broadcasts to `(b, h, t, s)`. None means all pairs.
        log_totals: bool. If True, the logarithms of the normalisers are returned too. They are the
            weights with which parts of a row, computed one by one, are summed. Rows with nothing to
            attend to have `FORBIDDEN`. Defaults to `False`.

    Returns:
        The output `(b, t, h, e)` and the weights `(b, h, t, s)`, and if `log_totals` the logarithms
        `(b, h, t)`.
    """
    scaled = logits(q, k, allowed, bias, logit_soft_cap)
    weights = _softmax(scaled, allowed)
    mixed = mix(weights if dropout is None else dropout(weights), arrays.accumulate(v))
    if log_totals:
        return mixed, weights, ops.logsumexp(scaled, axis=-1)
    return mixed, weights


def attention_weights(
    q: Tensor, k: Tensor, allowed: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """Return the weights `(b, h, t, s)` of `attend`."""
    return _softmax(logits(q, k, allowed, bias), allowed)


def logits(
    q: Tensor,
    k: Tensor,
    allowed: Tensor | None = None,
    bias: Tensor | None = None,
    logit_soft_cap: float | None = None,
) -> Tensor:
    """Return what `attend` takes the softmax of, `(b, h, t, s)`: `FORBIDDEN` where not allowed."""
    scaled = scores(arrays.accumulate(q) / math.sqrt(q.shape[-1]), k)
    if logit_soft_cap is not None:
        scaled = logit_soft_cap * ops.tanh(scaled / logit_soft_cap)
    if bias is not None:
        scaled = scaled + ops.cast(bias, scaled.dtype)
    return scaled if allowed is None else ops.where(allowed, scaled, FORBIDDEN)


def _softmax(scaled, allowed):
    weights = ops.softmax(scaled)
    return weights if allowed is None else ops.where(allowed, weights, ops.zeros_like(weights))
