"""Tokens that a segment hands on to the next: read by its steps, rewritten when it is finished.

Shapes: n segments of C steps, r tokens of width m, w = r * m; z = b * n.
"""

import math

from keras import ops

from keras_cosattn.ops import arrays, dense, timesteps
from keras_cosattn.ops.recurrence import states_before


def tokens_of_segments(rewrite, k, v, tokens, *, size, mask=None, state=None):
    """The tokens that each segment begins with.

    Args:
        rewrite: function `(tokens (b, w), k (b, C, hk, d), v (b, C, hk, e), real (b, C))` to the
            tokens of the next segment, `(b, w)`.
        k, v: `(b, t, hk, d)`, `(b, t, hk, e)`; real steps come first.
        tokens: `(b, w)`, those of the segment that the first step is in.
        size: C.
        mask: `(b, t)`, the real steps.
        state: that of `window_attention`, for steps that go on from it; None if a segment begins
            with the first step.

    Returns:
        `(b, n, w)`, n = ceil(t / C), and with a state one more, for steps that do not begin with
        a segment; and the tokens of the segment that the next step is in, None without a state.
    """
    b, t = ops.shape(k)[:2]
    n = -(-t // size)
    real = ops.ones((b, t), "bool") if mask is None else mask
    k, v = arrays.zero_masked(k, mask), arrays.zero_masked(v, mask)
    if state is None:
        parts = [arrays.fit_length(x, n * size) for x in (k, v, real)]
    else:
        length = state["key"].shape[1]
        past = ops.cast(state["key"], k.dtype), ops.cast(state["value"], v.dtype)
        # All steps of an unfinished segment are in the state.
        past = (*past, ops.ones((b, length), "bool"))
        parts = [ops.concatenate(both, axis=1) for both in zip(past, (k, v, real), strict=True)]
        begun = state["position"] % size
        steps = ops.arange(n * size, dtype="int32") + length - ops.expand_dims(begun, 1)
        parts = [timesteps.take_steps(arrays.pad_end(x, n * size - t), steps) for x in parts]
    widths = [math.prod(x.shape[2:]) * size for x in parts]
    inputs = [
        ops.cast(ops.reshape(x, (-1, n, width)), tokens.dtype)
        for x, width in zip(parts, widths, strict=True)
    ]

    def step(inputs, tokens):
        ends = widths[0], widths[0] + widths[1]
        of_k, of_v, real = inputs[:, : ends[0]], inputs[:, ends[0] : ends[1]], inputs[:, ends[1] :]
        of_k = ops.reshape(of_k, (-1, size, *k.shape[2:]))
        of_v = ops.reshape(of_v, (-1, size, *v.shape[2:]))
        return rewrite(tokens, of_k, of_v, real > 0)

    inputs = ops.concatenate(inputs, axis=2)
    found = states_before(step, inputs, tokens)
    if state is None:
        return found, None
    last = step(inputs[:, -1], found[:, -1])
    found = ops.concatenate([found, ops.expand_dims(last, 1)], axis=1)
    finished = (begun + ops.sum(ops.cast(real, "int32"), axis=1)) // size
    return found, timesteps.take_steps(found, ops.expand_dims(finished, 1))[:, 0]


def read_tokens(q, k, v, *, size, count, position=None, dropout=None):
    """Softmax attention of each step to the tokens of its segment.

    Args:
        q: `(b, t, h, d)`; h a multiple of the key heads.
        k, v: of the tokens of all segments, `(b, n * r, hk, d)` and `(b, n * r, hk, e)`, in the
            order of `tokens_of_segments`.
        size, count: C and r.
        position: `(b,)`, of the first step; None if a segment begins with it.
        dropout: function applied to the weights.

    Returns `(b, t, h, e)` and the log totals of `dense.attend`, `(b, t, h)`.
    O(t r (d + e)) time, O(t r) memory per head.
    """
    b, t = ops.shape(q)[:2]
    length = min(t, size) if isinstance(t, int) else size
    blocks = -(-t // length)
    q = ops.reshape(arrays.pad_end(q, blocks * length - t), (-1, length, *q.shape[2:]))
    of_own = (ops.reshape(x, (-1, count, *x.shape[2:])) for x in (k, v))
    if position is None:
        k, v, allowed = *of_own, None
    else:
        k, v = (_with_the_next(x, b, blocks + 1) for x in of_own)
        begun = ops.expand_dims(position % size, 1) + ops.arange(length, dtype="int32")
        own = ops.expand_dims(begun < size, 2)
        own = ops.broadcast_to(own, (b, length, count))
        allowed = ops.concatenate([own, ops.logical_not(own)], axis=2)
        allowed = ops.expand_dims(ops.repeat(allowed, blocks, axis=0), 1)
    mixed, _, totals = dense.attend(q, k, v, allowed, dropout, log_totals=True)
    mixed = ops.reshape(mixed, (b, blocks * length, *mixed.shape[2:]))[:, :t]
    totals = ops.transpose(totals, (0, 2, 1))
    return mixed, ops.reshape(totals, (b, blocks * length, totals.shape[2]))[:, :t]


def _with_the_next(x, b, count):
    """The tokens of each of `count` segments but the last, and of the next: `(z, 2 r, h, d)`."""
    width = math.prod(x.shape[1:])
    each = ops.reshape(x, (b, count, width))
    both = ops.concatenate([each[:, :-1], each[:, 1:]], axis=2)
    return ops.reshape(both, (-1, 2 * x.shape[1], *x.shape[2:]))
