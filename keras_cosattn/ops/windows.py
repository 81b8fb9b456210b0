"""Softmax attention in blocks: each block of queries attends to the few blocks of keys around it.

Which of those keys a query can attend to is decided by a function of numbers of each step, such as
its index, its segment or its bucket. So windows, segments and sorted buckets are one algorithm. It
has no loop: blocks are a batch axis, and the graph is the same for every length.

Shapes: n blocks of C steps, z = b * n; S = (before + 1 + after) C keys for each block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras import ops

from keras_cosattn.ops import arrays, dense, timesteps

Tensor = Any
Steps = Mapping[str, Tensor]


def attend_in_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_steps: Steps,
    k_steps: Steps,
    can_attend: Callable[[Steps, Steps], Tensor],
    *,
    size: int,
    before: int = 0,
    after: int = 0,
    memory: Sequence[Any] | None = None,
    global_keys: tuple[Tensor, Tensor, Steps] | None = None,
    encode_positions: Callable | None = None,
    dropout: Callable | None = None,
    log_totals: bool = False,
) -> Any:
    """Attend, for each query, to the keys of its blocks that `can_attend` allows.

    The keys begin `before * size` steps earlier than the queries: query i is at the same step as
    key `before * size + i`. `can_attend` must be False for missing steps there. It must be False,
    too, for steps past the end, for which all numbers are zero.

    O(t (before + 1 + after) C (d + e)) time, O(t (before + 1 + after) C) memory per head. The m
    `global_keys` add O(t m (d + e)) time and O(t m (1 + (d + e) / C)) memory.

    Args:
        q: `(b, t, h, d)`; h is a multiple of the key heads.
        k: `(b, before * size + s, hk, d)`, any s; finite.
        v: `(b, before * size + s, hk, e)`, finite.
        q_steps: Dict of numbers of each query, `(b, t)`, with `"position"` if `encode_positions`
            is given.
        k_steps: Dict of numbers of each key, `(b, before * size + s)`, likewise. Its `"bias"` is
            added to the scores.
        can_attend: Function of the two dicts, with values `(z, C, 1)` and `(z, 1, S)`, to the bool
            `(z, C, S)`.
        size: Integer, C.
        before, after: Integers, the numbers of blocks around its own that a query can attend to.
        memory: `(k, v, which)`: keys and values in place of k and v, of their shapes, for the
            pairs that `which` selects: a function like `can_attend`, at twice the cost, or `None`
            for the keys before the query's block.
        global_keys: `(k, v, steps)`: m additional keys that all blocks of an example share,
            `(b, m, hk, d)` and `(b, m, hk, e)`; `steps` is a dict like `k_steps`.
        encode_positions: Function `(q, k, query_positions, key_positions) -> (q, k, bias)` of
            blocks.
        dropout: Function applied to the weights `(z, h, C, S)`.
        log_totals: Boolean, whether to return the log totals of `dense.attend`, too, `(b, t, h)`.

    Returns:
        `(b, t, h, e)`. A query that attends to nothing gives zero.
    """
    b, t = ops.shape(q)[:2]
    if isinstance(t, int) and t <= size:
        n, size_q, reach = 1, max(t, 1), (before + 1 + after) * size
        reach = min(reach, k.shape[1] or reach)
    else:
        n, size_q, reach = -(-t // size), size, None

    def queries(x):
        return ops.reshape(arrays.pad_end(x, n * size_q - t), (-1, size_q, *x.shape[2:]))

    def keys(x, earlier=None):
        if reach is not None:
            if earlier is not None:
                x = ops.concatenate([earlier[:, : before * size], x[:, before * size :]], axis=1)
            return arrays.fit_length(x, reach)
        length = (n + before + after) * size
        x = arrays.fit_length(x, length)
        earlier = None if earlier is None else arrays.fit_length(earlier, length)
        return _reach(x, n, size, before, after, earlier)

    *memory, which = (None, None, None) if memory is None else memory
    q, (k, v) = queries(q), map(keys, (k, v), memory if which is None else (None, None))
    q_steps = {name: queries(x) for name, x in q_steps.items()}
    k_steps = {name: keys(x) for name, x in k_steps.items()}
    if which is not None:
        memory = [keys(x) for x in memory]
    if global_keys is not None:
        *more, more_steps = global_keys
        k, v = (_join(x, new, n) for x, new in zip((k, v), more, strict=True))
        if which is not None:
            memory = [_join(x, new, n) for x, new in zip(memory, more, strict=True)]
        k_steps = {name: _join(x, more_steps[name], n) for name, x in k_steps.items()}
    rows = {name: ops.expand_dims(x, 2) for name, x in q_steps.items()}
    columns = {name: ops.expand_dims(x, 1) for name, x in k_steps.items()}
    allowed = can_attend(rows, columns)
    if which is not None:
        # Every key is there twice, as itself and as memory. A pair uses one of the two.
        earlier = ops.logical_and(allowed, which(rows, columns))
        allowed = ops.concatenate([ops.logical_xor(allowed, earlier), earlier], axis=2)
        k, v = (ops.concatenate(both, axis=1) for both in zip((k, v), memory, strict=True))
        k_steps = {name: ops.concatenate([x, x], axis=1) for name, x in k_steps.items()}
    bias = None
    if encode_positions is not None:
        q, k, bias = encode_positions(q, k, q_steps["position"], k_steps["position"])
    if "bias" in k_steps:
        added = ops.expand_dims(k_steps["bias"], (1, 2))
        bias = added if bias is None else bias + added
    mixed, *more = dense.attend(q, k, v, ops.expand_dims(allowed, 1), dropout, bias, log_totals)
    mixed = ops.reshape(mixed, (b, n * size_q, *mixed.shape[2:]))[:, :t]
    if not log_totals:
        return mixed
    totals = ops.transpose(more[1], (0, 2, 1))
    return mixed, ops.reshape(totals, (b, n * size_q, totals.shape[2]))[:, :t]


def _reach(x, n, size, before, after, earlier=None):
    """`(b, (n + before + after) C, ...)` as the keys of each of n blocks, `(z, S, ...)`.

    If `earlier`, of the same shape, is given, it has the keys before a block.
    """
    width = size
    for axis in x.shape[2:]:
        width *= axis
    shape = (-1, n + before + after, width)
    own = ops.reshape(x, shape)
    past = own if earlier is None else ops.reshape(earlier, shape)
    parts = [(past if j < before else own)[:, j : j + n] for j in range(before + 1 + after)]
    joined = parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=2)
    return ops.reshape(joined, (-1, (before + 1 + after) * size, *x.shape[2:]))


def _join(x, more, n):
    """`x (b * n, S, ...)` followed by `more (b, m, ...)` for each of the n blocks."""
    if not (isinstance(n, int) and n == 1):
        b, m = ops.shape(more)[:2]
        width = m * math.prod(x.shape[2:])
        each = ops.broadcast_to(ops.reshape(more, (b, 1, width)), (b, n, width))
        more = ops.reshape(each, (-1, m, *x.shape[2:]))
    return ops.concatenate([x, more], axis=1)


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
        encode_positions, dropout, log_totals: As `attend_in_blocks`.

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
        k_steps |= {"summary": ops.zeros_like(valid), "bias": ops.zeros((b, s))}
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
        return near if segments is None else ops.logical_and(near, q["segment"] == k["segment"])

    def before_segment(q, k):
        return k["index"] < q["start"]

    global_keys = None if summaries is None else (summaries["key"], summaries["value"], summaries)
    mixed = attend_in_blocks(
        q, k, v, q_steps, k_steps, can_attend,
        size=size, before=before, after=after, global_keys=global_keys,
        memory=None if memory is None else (*memory, None if aligned else before_segment),
        encode_positions=encode_positions, dropout=dropout, log_totals=log_totals,
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
        history |= {"summary": ops.zeros_like(valid), "bias": ops.zeros((b, length))}
    return {name: ops.concatenate([history[name], x], axis=1) for name, x in steps.items()}
