"""Attention inside segments, with one summary of every segment beyond for the whole sequence.

Shapes: m summaries of C steps each.
"""

import math

from keras import ops

from keras_cosattn.ops import arrays, cache, dense, timesteps
from keras_cosattn.ops.pool import pool
from keras_cosattn.ops.windows import window_attention


def summary(k, v, real, query=None):
    """One key and one value `(z, hk, d or e)` of C steps, weighted as in `pool` of the keys."""
    key, weights = pool(k, real, query)
    return key, dense.mix(weights, arrays.accumulate(v))[:, 0]


def segmented_attention(
    q, k, v, *, size, summarise, state=None, mask=None, segments=None, causal=False, **options
):
    """`window_attention` in which every query also attends to the segments that it does not see.

    They are there as their summaries, each one key and one value; the score of a summary that
    stands for c steps gets `+ log c`. If `causal`, these are finished segments of the past.

    Args:
        summarise: function of keys and values `(z, C, hk, d or e)` and of the real steps
            `(z, C)` to one key and one value `(z, hk, d or e)`, float32.
        q, k, v, mask, segments, size, causal, **options: as `window_attention`.
        state: what an earlier call returned, or zeros: that of `window_attention`, and
            `{"summary_key", "summary_value": (b, m, hk, d or e)}`, the first m finished segments.

    Returns `(b, t, h, e)` and the new state (None without one).
    """
    k, v = arrays.zero_masked(k, mask), arrays.zero_masked(v, mask)
    if state is not None:
        summaries = _summaries_in_stream(k, v, mask, state, size, summarise)
        kept = {f"summary_{name}": summaries[name] for name in ("key", "value")}
    elif segments is not None:
        summaries = _summaries_of_packed(k, v, mask, segments, size, summarise)
    else:
        summaries = _summaries(k, v, mask, size, summarise)
    mixed, state = window_attention(
        q, k, v, size=size, mask=mask, segments=segments, causal=causal, state=state,
        summaries=summaries, **options,
    )  # fmt: skip
    return mixed, None if state is None else {**state, **kept}


def _summaries(k, v, mask, size, summarise):
    """The summaries of a whole sequence: segment j is the steps from j C on."""
    b, s = ops.shape(k)[:2]
    m = -(-s // size)
    real = ops.ones((b, s), "bool") if mask is None else mask
    index = ops.expand_dims(ops.arange(m, dtype="int32") * size, 0) + ops.zeros((b, 1), "int32")
    parts = [arrays.fit_length(x, m * size) for x in (k, v, real)]
    return _described(*parts, index, index, size, summarise)


def _summaries_of_packed(k, v, mask, segments, size, summarise):
    """The summaries of packed sequences that are longer than one segment.

    Such a one of L > C steps has less than 2 L / C segments, so there are at most 2 t / C.
    """
    b, t = ops.shape(k)[:2]
    real = ops.ones((b, t), "bool") if mask is None else mask
    position = timesteps.positions(t, None, segments)
    step = ops.expand_dims(ops.arange(t, dtype="int32"), 0) + ops.zeros((b, 1), "int32")
    full = t + size
    segments = ops.where(real, segments, -1)
    later = arrays.fit_length(segments + 1, full)[:, size:]  # 0: there is no such step
    longer = ops.logical_or(position >= size, later == segments + 1)
    opens = ops.logical_and(ops.logical_and(real, position % size == 0), longer)
    m = -(-2 * t // size)
    first = ops.sort(ops.where(opens, step, t), axis=1)
    first = arrays.fit_length(first - t, m) + t  # where there are fewer: t, past the end
    steps = ops.reshape(ops.expand_dims(first, 2) + ops.arange(size, dtype="int32"), (b, m * size))
    k, v, real, segments, position = (
        timesteps.take_steps(arrays.fit_length(x, full), steps)
        for x in (k, v, real, segments, position)
    )
    of_first = ops.repeat(segments[:, ::size], size, axis=1)
    real = ops.logical_and(real, segments == of_first)
    found = _described(k, v, real, first, position[:, ::size], size, summarise)
    return {**found, "segment": segments[:, ::size]}


def _summaries_in_stream(k, v, mask, state, size, summarise):
    """The summaries of the finished segments that the state has, and of those that finish now."""
    b, t = ops.shape(k)[:2]
    length, m = state["key"].shape[1], state["summary_key"].shape[1]
    position = state["position"]
    count = position + (t if mask is None else ops.sum(ops.cast(mask, "int32"), axis=1))
    known = ops.expand_dims(position // size, 1)  # segments that were finished before
    new = (t + size - 1) // size  # as many can finish now
    ranks = known + ops.arange(new, dtype="int32")
    finished = (ranks + 1) * size <= ops.expand_dims(count, 1)
    # Where the first of them begins, in what was kept and what now comes.
    first = length + known * size - ops.expand_dims(position, 1)
    steps = ops.minimum(first + ops.arange(new * size, dtype="int32"), length + t - 1)
    parts = [
        timesteps.take_steps(ops.concatenate([ops.cast(state[name], x.dtype), x], axis=1), steps)
        for name, x in (("key", k), ("value", v))
    ]
    parts = [ops.reshape(x, (-1, size, *x.shape[2:])) for x in parts]
    found = summarise(*parts, ops.ones((b * new, size), "bool"))
    found = [ops.reshape(x, (b, new, *x.shape[1:])) for x in found]
    key, value = (
        cache.append(state[f"summary_{name}"], x, ranks, finished)
        for name, x in zip(("key", "value"), found, strict=True)
    )
    rank = ops.expand_dims(ops.arange(m, dtype="int32"), 0)
    return {
        "key": key,
        "value": value,
        "index": rank * size - ops.expand_dims(position, 1),
        "position": rank * size + (size - 1) // 2 + ops.zeros((b, 1), "int32"),
        "real": (rank + 1) * size <= ops.expand_dims(count, 1),
        "bias": ops.full((b, m), math.log(size)),
    }


def _described(k, v, real, index, position, size, summarise):
    """Summaries of steps `(b, m C, ...)`, whose firsts have `index` and `position` `(b, m)`."""
    b, m = ops.shape(index)

    def split(x):
        return ops.reshape(x, (-1, size, *x.shape[2:]))

    real = split(real)
    count = ops.reshape(ops.sum(ops.cast(real, "int32"), axis=1), (-1, m))
    key, value = (ops.reshape(x, (b, m, *x.shape[1:])) for x in summarise(split(k), split(v), real))
    return {
        "key": key,
        "value": value,
        "index": index,
        "position": position + ops.maximum(count - 1, 0) // 2,
        "real": count > 0,
        "bias": ops.log(ops.cast(ops.maximum(count, 1), "float32")),
    }
