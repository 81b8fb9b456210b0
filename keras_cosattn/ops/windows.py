"""Softmax attention to the segment of a step and to the steps around it, whole and in streams."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from keras import ops

from keras_cosattn.ops import arrays, timesteps
from keras_cosattn.ops.block_attention import attend_in_blocks

Tensor = Any
Steps = Mapping[str, Tensor]


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    size: int,
    look_back: int = 0,
    look_ahead: int = 0,
    causal: bool = False,
    mask: Tensor | None = None,
    segments: Tensor | None = None,
    memory: tuple[Tensor, Tensor] | None = None,
    summaries: Steps | None = None,
    state: Steps | None = None,
    encode_positions: Callable | None = None,
    dropout: Callable | None = None,
    log_totals: bool = False,
    block_size: int | None = None,
) -> tuple[Any, Any]:
    """Attend inside segments of C steps, `look_back` steps before and `look_ahead` after them.

    Step t, in the segment that begins at `start_t = C floor(t / C)`, attends to the steps s with
    `start_t - look_back <= s < start_t + C + look_ahead`, and if `causal` `s <= t`. Queries and
    keys count their positions from the same start; their valid steps come first.

    O(t (C + look_back + look_ahead) (d + e)) time and O(t (C + look_back + look_ahead)) memory
    per head; the state is O((C + look_back) (d + e)).

    Args:
        q, k, v: `(b, t, h, d)`, `(b, s, hk, d)`, `(b, s, hk, e)`.
        size: Integer, C.
        look_back, look_ahead: Integers, in steps. The latter is not used if `causal`.
        causal: Boolean, whether query t attends to keys s <= t only.
        mask: Boolean `(b, s)`, the valid keys.
        segments: Integer `(b, t)`, t = s, from `timesteps.segment_numbers`: a step attends to its
            own number only, where positions begin at zero.
        memory: `(k, v)`, which queries use in place of k and v before their segment: the same
            numbers with another gradient. The state then gives no gradient there.
        summaries: Keys of whole segments, for queries that do not attend to their steps: a dict
            with `"key"`, `"value"` `(b, m, hk, d or e)`, `"index"` (that of the first step,
            counted from the first query), `"position"`, `"valid"`, `"bias"`, and `"segment"` if
            there are `segments`. `look_back` and `look_ahead` are then multiples of C. If
            `causal`, a query attends to those of the past.
        state: The state of an earlier call, for `causal` self-attention without `segments`.
        encode_positions, dropout, log_totals, block_size: As `attend_in_blocks`.

    Returns:
        The result of `attend_in_blocks`, and the new state (`None` without one): the last steps
        that later steps can attend to, `{"key", "value": (b, window_length(size, look_back), hk,
        d or e), "position": (b,)}`.
    """
    b, t = ops.shape(q)[:2]
    s = ops.shape(k)[1]
    aligned = state is None and segments is None
    k, v = arrays.zero_masked(k, mask), arrays.zero_masked(v, mask)
    if memory is not None:
        memory = (arrays.zero_masked(memory[0], mask), arrays.zero_masked(memory[1], mask))
    slack = 0 if aligned else size - 1
    before = -(-(look_back + slack) // size)
    after = 0 if causal else -(-(look_ahead + slack) // size)
    position = timesteps.positions(t, None, segments)
    if state is not None:
        position = position + ops.expand_dims(state["position"], 1)
    position = ops.broadcast_to(position, (b, t))
    index = ops.broadcast_to(ops.expand_dims(ops.arange(t, dtype="int32"), 0), (b, t))
    q_steps = {"index": index, "position": position, "start": index - position % size}
    valid = ops.ones((b, s), "bool") if mask is None else mask
    k_position = _steps(b, s) if aligned else position
    k_steps = {"index": _steps(b, s), "position": k_position, "valid": valid}
    if segments is not None:
        q_steps["segment"] = k_steps["segment"] = segments
    if summaries is not None:
        summaries = {**summaries, "summary": ops.ones_like(summaries["valid"])}
        k_steps |= {"summary": ops.zeros_like(valid), "bias": ops.zeros((b, s), "float32")}
    length = before * size
    k_steps = _steps_after_history(k_steps, state, length)
    if memory is not None:
        stopped = state and {name: ops.stop_gradient(x) for name, x in state.items()}
        memory = _after_history(*memory, stopped, length)
    k, v = _after_history(k, v, state, length)

    def can_attend(q, k):
        too_early = k["index"] < q["start"] - look_back
        last = q["index"] if causal else q["start"] + (size + look_ahead - 1)
        near = ops.logical_and(ops.logical_not(too_early), k["index"] <= last)
        if summaries is not None:
            near = ops.where(k["summary"], too_early if causal else ops.logical_not(near), near)
        near = ops.logical_and(near, k["valid"])
        if segments is None:
            return near
        return ops.logical_and(near, ops.equal(q["segment"], k["segment"]))

    def before_segment(q, k):
        return k["index"] < q["start"]

    global_keys = None if summaries is None else (summaries["key"], summaries["value"], summaries)
    mixed = attend_in_blocks(
        q, k, v, q_steps, k_steps, can_attend,
        size=size, before=before, after=after, global_keys=global_keys,
        memory=None if memory is None else (*memory, None if aligned else before_segment),
        encode_positions=encode_positions, dropout=dropout, log_totals=log_totals,
        block_size=block_size,
    )  # fmt: skip
    if state is None:
        return mixed, None
    return mixed, {
        "key": timesteps.last_valid(k, mask, length),
        "value": timesteps.last_valid(v, mask, length),
        "position": timesteps.advance(state["position"], s, mask),
    }


def window_length(size: int, look_back: int) -> int:
    """Return the number of steps in the state of `window_attention`: all that later steps need."""
    return -(-(look_back + size - 1) // size) * size


def _steps(b, s):
    return ops.broadcast_to(ops.expand_dims(ops.arange(s, dtype="int32"), 0), (b, s))


def _after_history(k, v, state, length):
    """Keys and values, preceded by those of the `length` steps before them."""
    if length == 0:
        return k, v
    if state is None:
        return arrays.pad_start(k, length), arrays.pad_start(v, length)
    past = ops.cast(state["key"], k.dtype), ops.cast(state["value"], v.dtype)
    return tuple(ops.concatenate(both, axis=1) for both in zip(past, (k, v), strict=True))


def _steps_after_history(steps, state, length):
    """The numbers of the keys, preceded by those of the `length` steps before them."""
    if length == 0:
        return steps
    b = ops.shape(steps["valid"])[0]
    index = _steps(b, length) - length  # -length .. -1
    if state is None:
        valid, count = ops.zeros((b, length), "bool"), 0
    else:
        count = ops.expand_dims(state["position"], 1)
        valid = index + count >= 0
    history = {"index": index, "position": ops.maximum(index + count, 0), "valid": valid}
    if "segment" in steps:
        history["segment"] = ops.full((b, length), -1, "int32")
    if "summary" in steps:
        history |= {"summary": ops.zeros_like(valid), "bias": ops.zeros((b, length), "float32")}
    return {name: ops.concatenate([history[name], x], axis=1) for name, x in steps.items()}
