"""Attention with its weights written out, `(b, h, t, s)`: softmax, and what the others imply."""

import math

from keras import ops

from keras_cosattn.ops import arrays, timesteps

FORBIDDEN = -1e30  # far below any logit, and far enough from float32's end to subtract from


def scores(q, k):
    """`q_t . k_s`: `(b, t, h, d)`, `(b, s, hk, d)` -> `(b, h, t, s)`; h a multiple of hk."""
    k = arrays.repeat_heads(arrays.accumulate(k), arrays.group_size(q, k))
    return ops.einsum("bthd,bshd->bhts", arrays.accumulate(q), k)


def mix(weights, v):
    """`sum_s w_ts v_s`: `(b, h, t, s)`, `(b, s, hk, e)` -> `(b, t, h, e)`."""
    v = arrays.repeat_heads(v, weights.shape[1] // v.shape[2])
    return ops.einsum("bhts,bshe->bthe", weights, v)


def normalise(weights, allowed=None, normaliser=None):
    """Weights `(b, h, t, s)` divided by the row sums of `normaliser`, which defaults to them.

    Rows that sum to nothing are zero.
    """
    normaliser = weights if normaliser is None else normaliser
    if allowed is not None:
        weights, normaliser = (
            ops.where(allowed, x, ops.zeros_like(x)) for x in (weights, normaliser)
        )
    total = ops.sum(normaliser, axis=-1, keepdims=True)
    something = ops.abs(total) > arrays.SMALLEST_SUM
    return ops.where(something, weights / ops.where(something, total, 1.0), 0.0)


def softmax_attention(
    q,
    k,
    v,
    *,
    causal=False,
    query_mask=None,
    mask=None,
    segment_ids=None,
    attention_mask=None,
    bias=None,
    dropout=None,
):
    """Softmax attention: `out_t = sum_s softmax_s(q_t . k_s / sqrt(d)) v_s`.

    Args:
        q: `(b, t, h, d)`; h a multiple of the key heads.
        k, v: `(b, s, hk, d)` and `(b, s, hk, e)`.
        causal: let query t see keys s <= t, both counted from the start.
        query_mask, mask: `(b, t)` and `(b, s)`, True where a query or key takes part.
        segment_ids: `(b, t)`, t = s: a step sees its own run of equal ids only.
        attention_mask: anything that broadcasts to `(b, h, t, s)`; rank 3 is `(b, t, s)`.
        bias: added to the scores, after they are scaled; broadcastable to `(b, h, t, s)`.
        dropout: function applied to the weights before they mix v.

    Returns:
        `(b, t, h, e)` and the weights `(b, h, t, s)`, before dropout, in float32 (float64 for
        float64). A row with nothing to attend to is zero in both.

    O(t s (d + e)) time, O(t s) memory. Vaswani et al., 2017, eq. 1.
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
    return attend(q, k, v, allowed, dropout, bias)


def attend(q, k, v, allowed=None, dropout=None, bias=None, log_totals=False):
    """As `softmax_attention`, with the mask `allowed` given, broadcastable to `(b, h, t, s)`.

    If `log_totals`, also the logarithm of what each row was divided by, `(b, h, t)`: parts of a
    row that were computed apart are weighed by it. `FORBIDDEN` where a row sees nothing.
    """
    logits = _logits(q, k, allowed, bias)
    weights = _softmax(logits, allowed)
    mixed = mix(weights if dropout is None else dropout(weights), arrays.accumulate(v))
    if log_totals:
        return mixed, weights, ops.logsumexp(logits, axis=-1)
    return mixed, weights


def attention_weights(q, k, allowed=None, bias=None):
    """The weights of `attend`, `(b, h, t, s)`."""
    return _softmax(_logits(q, k, allowed, bias), allowed)


def _logits(q, k, allowed, bias):
    logits = scores(q, k) / math.sqrt(q.shape[-1])
    if bias is not None:
        logits = logits + ops.cast(bias, logits.dtype)
    return logits if allowed is None else ops.where(allowed, logits, FORBIDDEN)


def _softmax(logits, allowed):
    weights = ops.softmax(logits)
    return weights if allowed is None else ops.where(allowed, weights, ops.zeros_like(weights))
