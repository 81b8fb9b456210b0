"""Softmax attention to r learned mixtures of the keys, whatever their number."""

from keras import ops

from keras_cosattn.ops import arrays, dense, timesteps


def low_rank_attention(
    q, k, v, key_projection, value_projection, *, query_mask=None, mask=None, dropout=None
):
    """`out_t = sum_j softmax_j(q_t . (E k)_j / sqrt(d)) (F v)_j`, j one of r slots.

    Real step i is mixed into slot j with the weights `E_ij` and `F_ij`, so n real steps use the
    first n rows. A slot whose E is zero at all of them has no key, and does not count.

    More steps than E has rows raise ValueError if their number is known (a static shape, no mask).
    Otherwise the steps beyond the last row do not count.

    Args:
        q: `(b, t, h, d)`; h a multiple of the key heads.
        k, v: `(b, s, hk, d)` and `(b, s, hk, e)`.
        key_projection, value_projection: E and F, `(max_length, r)` for all heads or
            `(max_length, hk, r)`.
        query_mask, mask: `(b, t)` and `(b, s)`, True where a query or key takes part.
        dropout: function applied to the weights `(b, hk, t * h / hk, r)`.

    Returns `(b, t, h, e)`; a row with nothing to attend to is zero.
    O((t + s) r (d + e)) time and O((t + s) r) memory per head. Wang et al., 2020, eq. 7.
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
    """`(b, s, hk, d) -> (b, r, hk, d)`."""
    projection = arrays.accumulate(projection)
    projection = arrays.fit_length(ops.expand_dims(projection, 0), s)[0]
    equation = "bshd,sr->brhd" if len(projection.shape) == 2 else "bshd,shr->brhd"
    return ops.einsum(equation, arrays.accumulate(x), projection)


def _first_steps(projection):
    """The first step that is mixed into each slot, `(1, 1 or hk, 1, r)`; `max_length` if none."""
    steps = ops.arange(projection.shape[0], dtype="int32")
    for _ in projection.shape[1:]:
        steps = ops.expand_dims(steps, -1)
    first = ops.min(ops.where(ops.not_equal(projection, 0), steps, projection.shape[0]), axis=0)
    return ops.reshape(first, (1, -1, 1, projection.shape[-1]))


def _check_length(s, max_length):
    if isinstance(s, int) and s > max_length:
        raise ValueError(
            f"The values have {s} steps, but max_length={max_length}: there are no projections for "
            "more. Build the layer with a larger `max_length`."
        )
