"""Sums that fade, and the delta rule: retention, gated linear attention, DeltaNet, Mamba-2.

The state S is a matrix for each head. A step fades it, writes its key and value, and reads it:

`S_t = diag(a_t) S_(t-1) + k_t u_t^T`, `out_t = S_t^T q_t`, with `u_t = v_t`, or by the delta rule
`u_t = beta_t (v_t - (diag(a_t) S_(t-1))^T k_t)`.

All steps of a block are computed at once. With `P(x, y)_ts = sum_d x_t exp(c_t - c_s) y_s` and c
the sums of the log decays, the delta rule is `(I + A) u = beta (v - (k exp(c)) S)` with
`A = beta P(k, k)` below the diagonal, and `out = P(q, k) u + (q exp(c)) S`.

Shapes: a block has C steps; R = C * g rows of queries, g for each step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from keras_cosattn.ops import arrays
from keras_cosattn.ops.block_size import decay_chunk
from keras_cosattn.ops.causal_scan import causal_scan
from keras_cosattn.ops.decays import decay_of
from keras_cosattn.ops.triangular import unit_lower_inverse

Tensor = Any
Steps = dict[str, Any]
State = dict[str, Any]
Prepare = Callable[[Steps, State, Tensor | None], tuple[Steps, State]]


def decayed_attention(
    steps: Steps,
    state: State,
    *,
    prepare: Prepare | None = None,
    rates: Callable[[], Tensor] | None = None,
    causal: bool = True,
    segments: Tensor | None = None,
    normalise: bool = False,
    chunk_size: int | None = None,
) -> tuple[Tensor, State]:
    """Attention to a state that fades, `S_t = diag(a_t) S_(t-1) + k_t v_t^T`, or to a delta rule.

    It takes O(t (C (d + e) + d e)) time for each head with chunks of C steps, and by the delta rule
    another O(t C^2 log C). One step takes O(d e) time.

    Args:
        steps: dict of tensors. What `prepare` returns, or without it: `"q" (b, t, h, d)`,
            `"k" (b, t, hk, d)`, `"v" (b, t, hk, e)`, h a multiple of hk; and optional entries
            `"log_decay" (b or 1, t, hk, 1)` or `(b, t, hk, d)`, the logs of a_t, at most 0;
            `"beta" (b, t, hk)`, which asks for the delta rule; `"mask" (b, t)`, the valid steps.
            Other steps change nothing and get what the state gives; `"skip" (b, t, h, e)`, which
            is added to the output.
        state: dict with `"sums" (b, hk, d, e)`, in the dtype of sums, e + 1 with `normalise`. The
            state before the first step, zeros at the start. It may have entries of `prepare`.
        prepare: function `(steps, state, runs)` that returns the steps of a block as this function
            takes them, and the state with its own entries after them. In this way queries, keys
            and values are made where they are used. Defaults to `None`.
        rates: function that returns a tensor `(hk,)`, by which the log decays of heads are
            multiplied. Numbers of steps as `"log_decay"`, and a fixed decay as the rate, are more
            exact than sums of log decays. Defaults to `None`: 1.
        causal: bool. If False, each step also attends to the steps after it: a second scan runs
            backwards, and steps t and s fade by the same product of decays both ways (Afzal et
            al., 2025). It is not defined for the delta rule. Defaults to `True`.
        segments: int32 tensor `(b, t)`, of `timesteps.segment_numbers`. A step attends to steps of
            its own segment.
        normalise: bool. Whether to divide by the sum of the weights, which may then not be
            negative. Defaults to `False`.
        chunk_size: int, C. Defaults to 64.

    Returns:
        The output `(b, t, h, e)` and the state after the last step, both in the dtype of sums.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn.ops import decayed_attention
    >>> q, v = np.ones((2, 5, 4, 3), "float32"), np.ones((2, 5, 4, 6), "float32")
    >>> steps = {"q": q, "k": q, "v": v, "log_decay": np.full((1, 5, 4, 1), -0.1, "float32")}
    >>> state = {"sums": np.zeros((2, 4, 3, 6), "float32")}
    >>> output, state = decayed_attention(steps, state)
    >>> tuple(output.shape), tuple(state["sums"].shape)
    ((2, 5, 4, 6), (2, 4, 3, 6))

    Reference:
        - [Sun et al., 2023 (RetNet)](https://arxiv.org/abs/2307.08621), equations 3-7
        - [Yang et al., 2024 (GLA)](https://arxiv.org/abs/2312.06635), equations 4-6
        - [Yang et al., 2024 (DeltaNet)](https://arxiv.org/abs/2406.06484), equations 7-11
        - [Yang et al., 2025 (Gated DeltaNet)](https://arxiv.org/abs/2412.06464), equation 10
        - [Afzal et al., 2025 (LION)](https://arxiv.org/abs/2502.16249), both directions
    """
    prepare = prepare or _as_they_are
    size = decay_chunk(chunk_size)
    sums_of_block = functools.partial(
        _sums_of_block, rates=rates, largest=size, normalise=normalise
    )

    def step(state, block, runs):
        block, state = prepare(block, state, runs)
        skip = block.pop("skip", None)
        out, sums = sums_of_block(block, state["sums"], runs)
        return _finish(out, skip, normalise), {**state, "sums": sums}

    if causal:
        return causal_scan(step, steps, state, segments, size)
    prepared, state = prepare(steps, state, segments)
    skip = prepared.pop("skip", None)
    out, sums = _both_ways(sums_of_block, prepared, state["sums"], segments, size)
    return _finish(out, skip, normalise), {**state, "sums": sums}


def _finish(out, skip, normalise):
    out = arrays.divide(out) if normalise else out
    return out if skip is None else out + skip


def _as_they_are(steps, state, runs):
    return dict(steps), state


def _both_ways(sums_of_block, steps, sums, segments, size):
    if segments is None:
        segments = ops.zeros(ops.shape(steps["k"])[:2], "int32")
    steps = _zero_masked(steps)

    def step(state, block, runs, strict=False):
        out, sums = sums_of_block(block, state["sums"], runs, strict=strict)
        return out, {"sums": sums}

    out, state = causal_scan(step, steps, {"sums": sums}, segments, size)
    flipped = {name: ops.flip(x, axis=1) for name, x in steps.items()}
    if "log_decay" in flipped:  # between t and s lie the decays of t + 1 to s
        flipped["log_decay"] = arrays.pad_start(flipped["log_decay"], 1)[:, :-1]
    later = segments[:, -1:] - ops.flip(segments, axis=1)
    strict = functools.partial(step, strict=True)
    backwards, _ = causal_scan(strict, flipped, {"sums": ops.zeros_like(sums)}, later, size)
    return out + ops.flip(backwards, axis=1), state["sums"]


def _zero_masked(steps):
    """Return the steps in the dtype of sums. Those that are not valid write nothing."""
    mask = steps.get("mask")
    steps = {name: arrays.accumulate(x) for name, x in steps.items() if name != "mask"}
    written = {name: arrays.zero_masked(x, mask) for name, x in steps.items() if name != "q"}
    return {**written, "q": steps["q"]}


def _sums_of_block(steps, sums, runs, *, rates, largest, normalise, strict=False):
    """Return the outputs `(b, C, h, e)` of a block and the sums after it.

    With `strict` a step does not read what it writes itself.
    """
    steps = _zero_masked(steps)
    q, k, v, beta = steps["q"], steps["k"], steps["v"], steps.get("beta")
    v = arrays.append_ones(v) if normalise else v
    rate = None if rates is None else ops.reshape(rates(), (1, -1, 1, 1))
    decay = decay_of(steps.get("log_decay"), rate)
    if k.shape[1] == 1 and not strict:
        return _one_step(q, k, v, decay, beta, sums, runs)
    group, count = arrays.group_size(q, k), ops.shape(k)[1]
    q, k, v = map(_heads_first, (arrays.fold_groups(q, group), k, v))
    continues, remains, is_kept = _flags_of_runs(runs, k.dtype)

    def read(rows, group):
        """Return what rows get of the state before the block."""
        rows = decay.from_start(rows, group)
        if continues is not None:
            rows = rows * arrays.repeat_rows(continues, group, axis=2)
        return ops.matmul(rows, sums)

    if beta is not None:
        beta = ops.expand_dims(ops.swapaxes(beta, 1, 2), 3)
        before = decay.pairs(k, k, _past(count, runs, k.dtype, strict=True), 1)
        inverse = unit_lower_inverse(beta * before, largest)
        v = ops.matmul(inverse, beta * (v - read(k, 1)))
    past = arrays.repeat_rows(_past(count, runs, k.dtype, strict), group, axis=2)
    out = ops.matmul(decay.pairs(q, k, past, group), v) + read(q, group)
    keys, faded = decay.to_end(k), decay.of_state(sums)
    if remains is not None:
        keys, faded = keys * remains, faded * is_kept
    out = arrays.unfold_groups(_heads_first(out), group)
    return out, faded + ops.matmul(ops.swapaxes(keys, 2, 3), v)


def _one_step(q, k, v, decay, beta, sums, runs):
    """Return the same for a block of one step, without products of pairs."""
    if runs is not None:
        sums = sums * ops.reshape(ops.cast(ops.equal(runs, 0), sums.dtype), (-1, 1, 1, 1))
    k, v = _heads_first(k), _heads_first(v)  # (b, hk, 1, ..)
    sums = decay.of_state(sums)
    if beta is not None:
        v = (v - ops.matmul(k, sums)) * ops.reshape(beta, (-1, k.shape[1], 1, 1))
    sums = sums + ops.swapaxes(k, 2, 3) * v
    heads, d = q.shape[2:]
    rows = ops.reshape(q, (-1, k.shape[1], heads // k.shape[1], d))
    return ops.reshape(ops.matmul(rows, sums), (-1, 1, heads, v.shape[3])), sums


def _heads_first(x):
    """`(b, t, h, d) -> (b, h, t, d)`, and back.

    TFLite's converter fails where a loop transposes a sum of two tensors, unless it is an einsum.
    """
    return ops.einsum("bthd->bhtd", x)


def _past(count, runs, dtype, strict):
    """Return 1 for the keys that each step sees, 0 elsewhere: `(1, 1, C, C)`, or `(b, 1, C, C)`."""
    step: Any = np.arange(count) if isinstance(count, int) else ops.arange(count, dtype="int32")
    row = step[:, None]
    past = ops.cast(row > step if strict else row >= step, dtype)[None, None]
    if runs is None:
        return past
    same = ops.equal(ops.expand_dims(runs, (1, 3)), ops.expand_dims(runs, (1, 2)))
    return past * ops.cast(same, dtype)


def _flags_of_runs(runs, dtype):
    """Return 1 or 0: which steps read the state, `(b, 1, C, 1)`, which remain in it, if it is kept.

    None stands for 1.
    """
    if runs is None:
        return None, None, None
    last = ops.max(ops.pad(runs, ((0, 0), (1, 0))), axis=1, keepdims=True)  # there may be no steps
    flags = ops.equal(runs, 0), ops.equal(runs, last), ops.equal(last, 0)
    return tuple(ops.expand_dims(ops.cast(flag, dtype), (1, 3)) for flag in flags)
