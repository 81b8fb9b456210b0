"""Memory tokens: the steps of a segment read them, and its end rewrites them for the next segment.

Shapes: n segments of C steps, r tokens of width m, w = r * m; z = b * n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from keras import ops

from keras_cosattn.ops import arrays, dense, timesteps
from keras_cosattn.ops.recurrence import states_before_and_after

Tensor = Any


def tokens_of_segments(
    rewrite: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    k: Tensor,
    v: Tensor,
    tokens: Tensor,
    *,
    size: int,
    mask: Tensor | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the tokens at the start of each segment.

    Args:
        rewrite: Function `(tokens (b, w), k (b, C, hk, d), v (b, C, hk, e), valid (b, C))` to the
            tokens of the next segment, `(b, w)`.
        k: `(b, t, hk, d)`; valid steps come first.
        v: `(b, t, hk, e)`.
        tokens: `(b, w)`, those of the segment of the first step.
        size: Integer, C.
        mask: Boolean `(b, t)`, the valid steps.
        state: The state of `window_attention` before these steps; `None` if a segment begins with
            the first step.

    Returns:
        `(b, n, w)`, n = ceil(t / C), and with a state one more, for steps that do not begin with
        a segment; and the tokens of the segment of the next step, `None` without a state.
    """
    b, t = ops.shape(k)[:2]
    n = -(-t // size)
    valid = ops.ones((b, t), "bool") if mask is None else mask
    k, v = arrays.zero_masked(k, mask), arrays.zero_masked(v, mask)
    if state is None:
        parts = [arrays.fit_length(x, n * size) for x in (k, v, valid)]
    else:
        length = state["key"].shape[1]
        past = (
            ops.cast(state["key"], k.dtype),
            ops.cast(state["value"], v.dtype),
            ops.ones((b, length), "bool"),  # the state has all steps of an unfinished segment
        )
        parts = [ops.concatenate(both, axis=1) for both in zip(past, (k, v, valid), strict=True)]
        step_in_segment = state["position"] % size
        steps = ops.arange(n * size, dtype="int32") + length - ops.expand_dims(step_in_segment, 1)
        parts = [timesteps.take_steps(arrays.pad_end(x, n * size - t), steps) for x in parts]
    of_k, of_v, of_valid = (ops.reshape(x, (b, n, size, *x.shape[2:])) for x in parts)

    def step(inputs, tokens):
        return rewrite(tokens, inputs["k"], inputs["v"], inputs["valid"])

    inputs = {"k": of_k, "v": of_v, "valid": of_valid}
    of_segments, last = states_before_and_after(step, inputs, tokens)
    if state is None:
        return of_segments, None
    of_segments = ops.concatenate([of_segments, ops.expand_dims(last, 1)], axis=1)
    finished = timesteps.advance(step_in_segment, t, mask) // size
    return of_segments, timesteps.take_steps(of_segments, ops.expand_dims(finished, 1))[:, 0]


def read_tokens(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    size: int,
    count: int,
    position: Tensor | None = None,
    dropout: Callable | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention of each step to the tokens of its segment.

    O(t r (d + e)) time, O(t r) memory per head.

    Args:
        q: `(b, t, h, d)`; h is a multiple of the key heads.
        k: Keys of the tokens of all segments, `(b, n * r, hk, d)`, in the order of
            `tokens_of_segments`.
        v: Their values, `(b, n * r, hk, e)`.
        size: Integer, C.
        count: Integer, r.
        position: `(b,)`, of the first step; `None` if a segment begins with it.
        dropout: Function applied to the weights.

    Returns:
        `(b, t, h, e)` and the log totals of `dense.attend`, `(b, t, h)`.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn.ops.memory_tokens import read_tokens
    >>> q, tokens = np.ones((1, 10, 2, 4), "float32"), np.ones((1, 9, 2, 4), "float32")
    >>> mixed, totals = read_tokens(q, tokens, tokens, size=4, count=3)
    >>> tuple(mixed.shape), tuple(totals.shape)
    ((1, 10, 2, 4), (1, 10, 2))
    """
    b, t = ops.shape(q)[:2]
    length = min(t, size) if isinstance(t, int) else size
    blocks = -(-t // length)
    q = ops.reshape(arrays.pad_end(q, blocks * length - t), (-1, length, *q.shape[2:]))
    k, v = (ops.reshape(x, (-1, count, *x.shape[2:])) for x in (k, v))
    allowed = None
    if position is not None:
        k, v = (_with_next_segment(x, b, blocks + 1) for x in (k, v))
        steps = ops.expand_dims(position % size, 1) + ops.arange(length, dtype="int32")
        own = ops.expand_dims(steps < size, 2)
        own = ops.broadcast_to(own, (b, length, count))
        allowed = ops.concatenate([own, ops.logical_not(own)], axis=2)
        allowed = ops.expand_dims(ops.repeat(allowed, blocks, axis=0), 1)
    mixed, _, totals = dense.attend(q, k, v, allowed, dropout, log_totals=True)
    mixed = ops.reshape(mixed, (b, blocks * length, *mixed.shape[2:]))[:, :t]
    totals = ops.transpose(totals, (0, 2, 1))
    return mixed, ops.reshape(totals, (b, blocks * length, totals.shape[2]))[:, :t]


def _with_next_segment(x, b, count):
    """The tokens of each of `count` segments but the last, and of the next, `(z, 2 r, h, d)`."""
    width = math.prod(x.shape[1:])
    each = ops.reshape(x, (b, count, width))
    both = ops.concatenate([each[:, :-1], each[:, 1:]], axis=2)
    return ops.reshape(both, (-1, 2 * x.shape[1], *x.shape[2:]))
