"""Softmax attention in blocks: each block of queries against the few blocks of keys around it.

What a query may see inside that reach is told by a function of numbers known of each step (its
index, its segment, its bucket), so windows, segments and sorted buckets are one algorithm. No
loop: blocks are a batch axis, the graph is the same for every length.

Shapes: n blocks of C steps, z = b * n; S = (before + 1 + after) C keys for each block.
"""

import math

from keras import ops

from keras_cosattn.ops import arrays, dense, timesteps


def attend_in_blocks(
    q,
    k,
    v,
    q_steps,
    k_steps,
    sees,
    *,
    size,
    before=0,
    after=0,
    memory=None,
    beside=None,
    place=None,
    dropout=None,
    log_totals=False,
):
    """Each query attends, among the keys of its reach, to those that `sees` allows.

    The keys begin `before * size` steps earlier than the queries: query i stands where key
    `before * size + i` does. (What is not there is False in `sees`, as are steps past the end,
    where all numbers are zero.)

    Args:
        q: `(b, t, h, d)`; h a multiple of the key heads.
        k, v: `(b, before * size + s, hk, d)` and `(.., e)`, any s; must be finite.
        q_steps, k_steps: dicts of numbers of each step, `(b, t)` and `(b, before * size + s)`;
            both have `"position"` if `place` is given. Of keys, `"bias"` is added to the scores.
        sees: function of the two dicts, whose values are then `(z, C, 1)` and `(z, 1, S)`, to the
            bool `(z, C, S)`.
        size: C.
        before, after: how many blocks the reach goes back and forth.
        memory: `(k, v, which)`: keys and values to take in place of k and v, of their shapes, for
            the pairs that `which` tells: a function as `sees`, at twice the cost, or None for
            the keys before the query's block.
        beside: m more keys of each example that all its blocks have: `(k, v, steps)`, of shapes
            `(b, m, hk, d)` and `(b, m, hk, e)`; steps as `k_steps`.
        place: function `(q, k, query_positions, key_positions) -> (q, k, bias)` for blocks.
        dropout: function applied to the weights `(z, h, C, S)`.
        log_totals: also return what `dense.attend` says of it, `(b, t, h)`.

    Returns `(b, t, h, e)`; a query that sees nothing gives zero.
    O(t (before + 1 + after) C (d + e)) time, O(t (before + 1 + after) C) memory per head; m
    keys beside them add O(t m (d + e)) time and O(t m (1 + (d + e) / C)) memory.
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
    if beside is not None:
        k, v = _join(k, beside[0], n), _join(v, beside[1], n)
        if which is not None:
            memory = [_join(x, more, n) for x, more in zip(memory, beside[:2], strict=True)]
        k_steps = {name: _join(x, beside[2][name], n) for name, x in k_steps.items()}
    rows = {name: ops.expand_dims(x, 2) for name, x in q_steps.items()}
    columns = {name: ops.expand_dims(x, 1) for name, x in k_steps.items()}
    allowed = sees(rows, columns)
    if which is not None:
        # Every key twice, the second time that of the memory; a pair sees one of the two.
        earlier = ops.logical_and(allowed, which(rows, columns))
        allowed = ops.concatenate([ops.logical_xor(allowed, earlier), earlier], axis=2)
        k, v = (ops.concatenate(both, axis=1) for both in zip((k, v), memory, strict=True))
        k_steps = {name: ops.concatenate([x, x], axis=1) for name, x in k_steps.items()}
    bias = None
    if place is not None:
        q, k, bias = place(q, k, q_steps["position"], k_steps["position"])
    if "bias" in k_steps:
        added = ops.expand_dims(ops.expand_dims(k_steps["bias"], 1), 1)
        bias = added if bias is None else bias + added
    found = dense.attend(q, k, v, ops.expand_dims(allowed, 1), dropout, bias, log_totals)
    mixed = ops.reshape(found[0], (b, n * size_q, *found[0].shape[2:]))[:, :t]
    if not log_totals:
        return mixed
    totals = ops.transpose(found[2], (0, 2, 1))
    return mixed, ops.reshape(totals, (b, n * size_q, totals.shape[2]))[:, :t]


def _reach(x, n, size, before, after, earlier=None):
    """`(b, (n + before + after) C, ...)` as the keys of each of n blocks, `(z, S, ...)`.

    Those before a block are from `earlier`, of the same shape, if it is given.
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
    q,
    k,
    v,
    *,
    size,
    look_back=0,
    look_ahead=0,
    causal=False,
    mask=None,
    segments=None,
    memory=None,
    summaries=None,
    state=None,
    place=None,
    dropout=None,
    log_totals=False,
):
    """Attention inside segments of C steps and `look_back` steps before, `look_ahead` after each.

    Step t, in the segment that begins at `start_t = C floor(t / C)`, sees the steps s with
    `start_t - look_back <= s < start_t + C + look_ahead`, and if `causal` `s <= t`. Queries and
    keys count their positions from the same start; their real steps come first.

    Args:
        q, k, v: `(b, t, h, d)`, `(b, s, hk, d)`, `(b, s, hk, e)`.
        size: C.
        look_back, look_ahead: in steps; the latter is not used if `causal`.
        causal: let query t see keys s <= t.
        mask: `(b, s)`, the real keys.
        segments: `(b, t)`, t = s, from `segment_numbers`: a step sees its own number only,
            and positions count from its first step.
        memory: `(k, v)`, which queries see in place of k and v before their segment: the same
            numbers with another gradient. The state then gives none there.
        summaries: of whole segments, for the queries that do not see their steps: a dict with
            `"key"`, `"value"` `(b, m, hk, d or e)`, `"index"` (that of the first step, counted
            from the first query), `"position"`, `"real"`, `"bias"`, and `"segment"` if there are
            `segments`; `look_back` and `look_ahead` are then multiples of C. If `causal`, a query
            sees those of the past.
        state: what an earlier call returned, for `causal` self-attention without `segments`.
        place, dropout, log_totals: as `attend_in_blocks`.

    Returns:
        What `attend_in_blocks` does, and the new state (None without one): the last steps that can
        still be seen, `{"key", "value": (b, window_length(size, look_back), hk, d or e),
        "position": (b,)}`.

    O(t (C + look_back + look_ahead) (d + e)) time and O(t (C + look_back + look_ahead)) memory
    per head; the state is O((C + look_back) (d + e)).
    """
    b, t = ops.shape(q)[:2]
    s = ops.shape(k)[1]
    aligned = state is None and segments is None
    k, v = arrays.zero_masked(k, mask), arrays.zero_masked(v, mask)
    if memory is not None:
        memory = [arrays.zero_masked(x, mask) for x in memory]
    slack = 0 if aligned else size - 1
    before = -(-(look_back + slack) // size)
    after = 0 if causal else -(-(look_ahead + slack) // size)
    position = timesteps.positions(t, None, segments)
    if state is not None:
        position = position + ops.expand_dims(state["position"], 1)
    position = ops.broadcast_to(position, (b, t))
    index = ops.broadcast_to(ops.expand_dims(ops.arange(t, dtype="int32"), 0), (b, t))
    q_steps = {"index": index, "position": position, "start": index - position % size}
    real = ops.ones((b, s), "bool") if mask is None else mask
    k_position = _steps(b, s) if aligned else position
    k_steps = {"index": _steps(b, s), "position": k_position, "real": real}
    if segments is not None:
        q_steps["segment"] = k_steps["segment"] = segments
    if summaries is not None:
        summaries = {**summaries, "summary": ops.ones_like(summaries["real"])}
        k_steps |= {"summary": ops.zeros_like(real), "bias": ops.zeros((b, s))}
    length = before * size
    k_steps = _steps_after_history(k_steps, state, length)
    if memory is not None:
        still = state and {name: ops.stop_gradient(x) for name, x in state.items()}
        memory = _after_history(*memory, still, length)
    k, v = _after_history(k, v, state, length)

    def sees(q, k):
        far = k["index"] < q["start"] - look_back
        last = q["index"] if causal else q["start"] + (size + look_ahead - 1)
        seen = ops.logical_and(ops.logical_not(far), k["index"] <= last)
        if summaries is not None:
            seen = ops.where(k["summary"], far if causal else ops.logical_not(seen), seen)
        seen = ops.logical_and(seen, k["real"])
        return seen if segments is None else ops.logical_and(seen, q["segment"] == k["segment"])

    def earlier(q, k):
        return k["index"] < q["start"]

    beside = None if summaries is None else (summaries["key"], summaries["value"], summaries)
    mixed = attend_in_blocks(
        q, k, v, q_steps, k_steps, sees,
        size=size, before=before, after=after, place=place, dropout=dropout, beside=beside,
        memory=None if memory is None else (*memory, None if aligned else earlier),
        log_totals=log_totals,
    )  # fmt: skip
    if state is None:
        return mixed, None
    return mixed, {
        "key": timesteps.last_valid(k, mask, length),
        "value": timesteps.last_valid(v, mask, length),
        "position": state["position"] + ops.sum(ops.cast(real, "int32"), axis=1),
    }


def window_length(size, look_back):
    """How many steps the state of `window_attention` holds: the next step can see no more."""
    return -(-(look_back + size - 1) // size) * size


def _steps(b, s):
    return ops.broadcast_to(ops.expand_dims(ops.arange(s, dtype="int32"), 0), (b, s))


def _after_history(k, v, state, length):
    """Keys and values behind those of the `length` steps that came before."""
    if length == 0:
        return k, v
    if state is None:
        return arrays.pad_start(k, length), arrays.pad_start(v, length)
    past = ops.cast(state["key"], k.dtype), ops.cast(state["value"], v.dtype)
    return tuple(ops.concatenate(both, axis=1) for both in zip(past, (k, v), strict=True))


def _steps_after_history(steps, state, length):
    """The numbers of the keys behind those of the `length` steps that came before."""
    if length == 0:
        return steps
    b = ops.shape(steps["real"])[0]
    behind = _steps(b, length) - length  # -length .. -1
    if state is None:
        known, count = ops.zeros((b, length), "bool"), 0
    else:
        count = ops.expand_dims(state["position"], 1)
        known = behind + count >= 0
    before = {"index": behind, "position": ops.maximum(behind + count, 0), "real": known}
    if "segment" in steps:
        before["segment"] = ops.full((b, length), -1, "int32")
    if "summary" in steps:
        before |= {"summary": ops.zeros_like(known), "bias": ops.zeros((b, length))}
    return {name: ops.concatenate([before[name], x], axis=1) for name, x in steps.items()}
