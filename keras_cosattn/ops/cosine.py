"""cosFormer's re-weighting: relu features, and a cosine that falls with distance.

`cos(a - b) = cos a cos b + sin a sin b` splits the weight of a pair into features of its two
positions, so the sum stays linear in time. Inside a chunk the scores take d features and a table
of cosines; only what is summed over chunks needs the 2 d features `[x cos, x sin]`.
"""

import math

from keras import ops

from keras_cosattn.ops import arrays, dense, timesteps
from keras_cosattn.ops.chunked import CHUNK_SIZE, causal_sums
from keras_cosattn.ops.linear import both_ways, zero_sums


def cosine_attention(
    q,
    k,
    v,
    *,
    max_length=None,
    query_mask=None,
    mask=None,
    segment_ids=None,
    lengths=None,
    chunk_size=CHUNK_SIZE,
):
    """`out_t = sum_s w_ts v_s / sum_s w_ts`, `w_ts = relu(q_t) . relu(k_s) cos(pi/2 (t - s) / M)`.

    A row whose weights sum to nothing is zero. M is `max_length`, or if that is None the larger
    of each example's numbers of real queries and keys, after the paper's code.

    At distances beyond M the cosine is negative. So more than `max_length` steps raise ValueError
    if their number is known (a static shape, no mask). Otherwise all steps from `max_length` on
    share the position `max_length - 1`.

    Args:
        q: `(b, t, h, d)`; h a multiple of the key heads.
        k, v: `(b, s, hk, d)` and `(b, s, hk, e)`.
        max_length: M, in steps.
        query_mask, mask: `(b, t)` and `(b, s)`, True where a query or key takes part. Positions
            count the steps that do.
        segment_ids: `(b, t)`, t = s: a step sees its own run of equal ids only, from position 0;
            `query_mask` and `mask` are then the same.
        lengths: (t, s), where they were read already, earlier in the graph.
        chunk_size: steps per chunk; used with segments only.

    Returns `(b, t, h, e)`. O((t + s) d e) time, with segments another
    O((t / chunk_size)^1.5 d e). Qin et al., 2022, "cos-based re-weighting".
    """
    q, k, v, group = _prepare(q, k, v, mask)
    t, s = lengths or (ops.shape(q)[1] // group, ops.shape(k)[1])
    segments = timesteps.segment_numbers(segment_ids)
    _check_length(max_length, segments, (t, query_mask), (s, mask))
    if segments is not None and max_length is None:
        raise ValueError("Packed sequences (`segment_ids`) need `max_length`: M may not depend on "
                         "the neighbours of a segment. Received: max_length=None")  # fmt: skip
    span = _longest(t, s, query_mask, mask) if max_length is None else max_length
    q_position = _up_to(max_length, timesteps.positions(t, query_mask, segments))
    k_position = _up_to(max_length, timesteps.positions(s, mask, segments))
    q_read = _apply_rotation(q, arrays.repeat_rows(q_position, group), span, _cos_and_sin)
    k_write = _apply_rotation(k, k_position, span, _cos_and_sin)
    if segments is None:
        out = ops.einsum("bthf,bhfe->bthe", q_read, arrays.sums_and_totals(k_write, v))
    else:
        v, q_angle = arrays.append_ones(v), _angles(q_position, span, q.dtype)
        out, _ = both_ways(
            q, k, v, zero_sums(k_write, v), q_read=q_read, k_write=k_write, kernel=ops.cos,
            positions=q_angle, runs=segments, group=group, chunk_size=chunk_size,
        )  # fmt: skip
    return arrays.unfold_groups(arrays.divide(out), group)


def causal_cosine_attention(
    q,
    k,
    v,
    *,
    max_length=None,
    horizon=None,
    query_mask=None,
    mask=None,
    segment_ids=None,
    state=None,
    chunk_size=CHUNK_SIZE,
):
    """As `cosine_attention`, over s <= t only, and going on from a state.

    Query t and key t stand at the same position, that of query t. With `horizon` H the sum has
    no end: t sees its own and the previous half-horizon of H / 2 steps, and M = H. Every distance
    is then below M and no weight is negative, however long the input.

    With `max_length`, steps from `max_length` on share a position as in `cosine_attention`. With
    neither, M is that of the paper's code,
    and no state is taken or returned: it would change with every call.

    Args:
        q, k, v, query_mask, mask, segment_ids: as `cosine_attention`.
        max_length, horizon: M, in steps; at most one of them. A horizon is even.
        state: what an earlier call returned; it belongs to the first segment.
        chunk_size: steps per chunk.

    Returns:
        `(b, t, h, e)` and the state: `"sums" (b, hk, 2 d, e + 1)`, `"position" (b,)` int32 and,
        with a horizon, `"previous"` like the sums; in float32, or float64 for float64 inputs.

    O(t d e) time, with segments or a horizon another O((t / chunk_size)^1.5 d e); O(d e) state.
    Qin et al., 2022, "cos-based re-weighting"; the horizon is ours.
    """
    q, k, v, group = _prepare(q, k, v, mask)
    t, s = ops.shape(q)[1] // group, ops.shape(k)[1]
    segments = timesteps.segment_numbers(segment_ids)
    if state is None:
        _check_length(max_length, segments, (t, query_mask))
    span = max_length or horizon or _longest(t, s, query_mask, mask)
    k, v = arrays.fit_length(k, t), arrays.append_ones(arrays.fit_length(v, t))
    start = None if state is None else state["position"]
    count = timesteps.count_valid(t, query_mask, segments, start)
    position = _up_to(max_length, ops.maximum(count - 1, 0))

    half = None if horizon is None else ops.floor_divide(position, horizon // 2)
    offset = position if horizon is None else position - half * (horizon // 2)
    q_read = _apply_rotation(q, arrays.repeat_rows(offset, group), span)
    k_write = _apply_rotation(k, offset, span)
    options = {"group": group, "chunk_size": chunk_size, "runs": segments}
    if query_mask is None and segments is None and isinstance(span, int):
        options["kernel"] = lambda distance: ops.cos(_angles(distance, span, q.dtype))
    else:
        options |= {"kernel": ops.cos, "positions": _angles(position, span, q.dtype)}
    if horizon is not None:
        earlier = arrays.repeat_rows(offset + horizon // 2, group)
        options["q_previous"] = _apply_rotation(q, earlier, span)
        options["runs"] = _half_runs(half, segments, ops.shape(k)[0])
        options["chunk_size"] = min(chunk_size, horizon // 2)
    if state is None:
        state = zero_sums(k_write, v)
        if horizon is not None:
            state["previous"] = ops.zeros_like(state["sums"])
    out, state = causal_sums(q, k, v, state, q_read=q_read, k_write=k_write, **options)
    out = arrays.unfold_groups(arrays.divide(out), group)
    if segments is None:
        start = ops.zeros((ops.shape(k)[0],), "int32") if start is None else start
        read = timesteps.wrap(timesteps.advance(start, t, query_mask), 1)
    else:
        read = count[:, -1]
    state["position"] = read if horizon is None else _in_half(read, horizon // 2)
    return out, state


def cosine_weights(
    q, k, *, max_length=None, horizon=None, causal=False, query_mask=None, mask=None,
    segment_ids=None,
):  # fmt: skip
    """The weights that the two functions above imply, normalised, `(b, h, t, s)`.

    Arguments as theirs. O(t s d) time and O(t s) memory.
    """
    t, s = ops.shape(q)[1], ops.shape(k)[1]
    segments = timesteps.segment_numbers(segment_ids)
    allowed = timesteps.pair_mask(
        t, s, query_mask=query_mask, key_mask=mask, segments=segments, causal=causal
    )
    span = max_length or horizon or _longest(t, s, query_mask, mask)
    span = _per_example(span)
    q_position = _up_to(max_length, timesteps.positions(t, query_mask, segments))
    k_position = _up_to(max_length, timesteps.positions(s, mask, segments))
    q_position, k_position = (
        ops.expand_dims(q_position, (1, 3)),
        ops.expand_dims(k_position, (1, 2)),
    )
    if horizon is not None:
        halves = [ops.floor_divide(p, horizon // 2) for p in (q_position, k_position)]
        allowed = timesteps.combine(allowed, halves[0] - halves[1] <= 1)
    weights = dense.scores(ops.relu(q), ops.relu(arrays.zero_masked(k, mask)))
    weights = weights * ops.cos(_angles(q_position - k_position, span, weights.dtype))
    return dense.normalise(weights, allowed)


def _prepare(q, k, v, mask):
    """relu, precision, head groups as rows, masked keys as zeros."""
    group = arrays.group_size(q, k)
    q = arrays.fold_groups(ops.relu(arrays.accumulate(q)), group)
    k = arrays.zero_masked(ops.relu(arrays.accumulate(k)), mask)
    return q, k, arrays.zero_masked(arrays.accumulate(v), mask), group


def _check_length(max_length, segments, *sides):
    """Raise ValueError if a side, `(steps, mask)`, is known to have too many valid steps."""
    known = [n for n, mask in sides if isinstance(n, int) and mask is None and segments is None]
    if max_length is not None and max(known, default=0) > max_length:
        raise ValueError(
            f"The sequence has {max(known)} steps, but max_length={max_length}: beyond it the "
            "cosine turns negative. Build the layer with a larger `max_length`, or for causal "
            "input without end with `horizon` instead."
        )


def _in_half(count, half):
    """`count (b,)` without the half-horizons that were finished before the last step."""
    return count - ops.maximum(count - 1, 0) // half * half


def _up_to(max_length, position):
    """Positions that end at `max_length - 1`: all steps beyond share it."""
    return position if max_length is None else ops.minimum(position, max_length - 1)


def _longest(t, s, query_mask, mask):
    """M as in the paper's code: the larger number of real queries or keys, `(b, 1)` or `()` int."""
    if query_mask is None and mask is None and isinstance(t, int) and isinstance(s, int):
        return max(t, s)
    queries = t if query_mask is None else ops.sum(ops.cast(query_mask, "int32"), 1, keepdims=True)
    keys = s if mask is None else ops.sum(ops.cast(mask, "int32"), 1, keepdims=True)
    return ops.maximum(ops.maximum(queries, keys), 1)


def _per_example(span):
    """M as it stands beside `(b, ..., ..., ...)`."""
    return span if isinstance(span, int) else ops.reshape(span, (-1, 1, 1, 1))


def _angles(position, span, dtype):
    """`pi/2 position / span`, taken modulo a full turn while still an integer: exact."""
    position = ops.mod(position, 4 * span)
    return ops.cast(position, dtype) * (math.pi / 2 / ops.cast(span, dtype))


def _apply_rotation(x, position, span, cos_and_sin=lambda angle: (ops.cos(angle), ops.sin(angle))):
    """`(b, t, h, d)` and positions `(b or 1, t)` -> `[x cos, x sin] (b, t, h, 2 d)`."""
    position = ops.expand_dims(ops.expand_dims(position, -1), -1)
    cos, sin = cos_and_sin(_angles(position, _per_example(span), x.dtype))
    return ops.concatenate([x * cos, x * sin], axis=-1)


def _cos_and_sin(x):
    """Both for x in [0, pi/2], by their series: 1e-7 off. COS and SIN cut a TFLite graph."""
    square = x * x
    cos, sin = 1.0, 1.0
    for n in range(14, 0, -2):
        cos = 1.0 - cos * square * (1.0 / (n * (n - 1)))
        sin = 1.0 - sin * square * (1.0 / (n * (n + 1)))
    return cos, x * sin


def _half_runs(half, segments, b):
    """Runs that rise by one into the next half-horizon and by two into the next segment."""
    if segments is None:
        return ops.broadcast_to(half, (b, ops.shape(half)[1]))
    changed = ops.not_equal(segments[:, 1:], segments[:, :-1])
    rise = ops.where(changed, 2, half[:, 1:] - half[:, :-1])
    return ops.cumsum(ops.concatenate([half[:, :1], rise], axis=1), axis=1)
