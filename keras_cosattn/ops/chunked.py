"""Causal sums in chunks: the one algorithm under every causal linear attention.

Inside a chunk of C steps the masked scores are formed, `(q k^T * kernel) v`. What lies before the
chunk is a sum, `state_c = keep_c * state_(c-1) + new_c`, read by `q @ state`. keep is 1 within a
run of steps and 0 where the next run begins; a run is a segment of a packed sequence, or a
half-horizon. Every product is one batched matrix product over all chunks: no loop, so the graph
is the same for every length, and XLA, TFLite and automatic differentiation all take it.

Shapes: n chunks of C steps, z = b * n, g rows per step (query heads that share a key head).
"""

from keras import ops

from keras_cosattn.ops import arrays

CHUNK_SIZE = 64


def causal_sums(
    q,
    k,
    v,
    state,
    *,
    q_read=None,
    k_write=None,
    q_previous=None,
    kernel=None,
    positions=None,
    runs=None,
    group=1,
    strict=False,
    chunk_size=CHUNK_SIZE,
):
    """`out_t = sum_(s <= t) (q_t . k_s) kernel(t - s) v_s`, going on from `state`.

    The kernel must factor through the features that are read and written:
    `(q_t . k_s) kernel(t - s) = q_read_t . k_write_s` within a run, and
    `= q_previous_t . k_write_s` where s lies in the run before that of t.

    Args:
        q, k, v: `(b, t * g, h, d)`, `(b, t, h, d)`, `(b, t, h, e)`; see `arrays.fold_groups`.
        state: dict of `"sums" (b, h, f, e)`, the sum of `k_write v^T` over the steps so far of
            the run numbered 0, and with `q_previous` also `"previous"`, that of the run before.
        q_read, k_write, q_previous: features `(b, t * g, h, f)`, `(b, t, h, f)`, as q_read;
            the first two default to q and k.
        kernel: function of the differences of `positions`; None is 1.
        positions: `(b or 1, t)`; None counts the steps.
        runs: `(b, t)` int32, never falling. Without `q_previous` a step sees its own run only,
            with it also the run numbered one less. None is one run.
        group: g.
        strict: leave out s = t.
        chunk_size: C.

    Returns:
        `(b, t * g, h, e)` and the new state, in which the run of the last step is numbered 0.

    O(t C (d + e) + t f e) time per head and O(t C + t f e / C) memory; with runs, the sums over
    chunks take O((t / C)^1.5 f e) time.
    """
    q_read = q if q_read is None else q_read
    k_write = k if k_write is None else k_write
    t = ops.shape(k)[1]
    if k.shape[1] == 0:
        return arrays.zeros_in_time(v, 0), state
    if k.shape[1] == 1 and not strict:
        return _one_step(q_read, k_write, v, state, q_previous, runs)
    one_chunk = isinstance(t, int) and t <= chunk_size
    size = t if one_chunk else chunk_size

    weights = ops.cast(_past(size, group, strict), k.dtype)
    if kernel is not None:
        weights = weights * _kernel_weights(size, group, kernel, positions)
    v = _split(v, size)
    if runs is not None:
        runs = _split_ids(runs, size)
        seen = _sees(runs, group, 1 if q_previous is not None else 0)
        weights = weights * ops.cast(seen, k.dtype)
    out = _inside(_split(q, size * group), _split(k, size), v, weights)

    q_read, k_write = _split(q_read, size * group), _split(k_write, size)
    if runs is None:
        before, state = _sums_before(k_write, v, state, one_chunk, -(-t // size))
        out = out + _read(q_read, before)
    else:
        q_previous = None if q_previous is None else _split(q_previous, size * group)
        before, state = _read_runs(q_read, q_previous, k_write, v, state, runs, group)
        out = out + before
    return _join(out, t * group, ops.shape(k)[0]), state


def segmented_cumsum(x, ids):
    """Running sums of `x (b, n, w)` along n that start afresh where `ids (b, n)` change.

    In two levels of about sqrt(n), each a product with a 0/1 matrix: O(n^1.5 w) time. (A
    difference of running sums would be O(n) and would cancel.)
    """
    b, n, width = ops.shape(x)
    side = arrays.ceil_sqrt(n)
    rows = -(-n // side)
    x = ops.reshape(arrays.pad_end(x, -n % side), (b, rows, side, width))
    ids = ops.reshape(arrays.pad_with_last(ids, -n % side), (b, rows, side))
    within = ops.matmul(_same_run(ids, x.dtype), x)
    last = ids[:, :, -1]
    totals = ops.matmul(_same_run(last, x.dtype), within[:, :, -1])
    carried = ops.concatenate([ops.zeros_like(totals[:, :1]), totals[:, :-1]], axis=1)
    carried_ids = ops.concatenate([ids[:, :1, 0], last[:, :-1]], axis=1)
    goes_on = ops.cast(ops.equal(ids, ops.expand_dims(carried_ids, 2)), x.dtype)
    carried = ops.expand_dims(carried, 2) * ops.expand_dims(goes_on, 3)
    return ops.reshape(within + carried, (b, rows * side, width))[:, :n]


def _same_run(ids, dtype):
    """`(..., n) -> (..., n, n)`: 1 where i >= j and both have the same id."""
    n = ops.shape(ids)[-1]
    same = ops.equal(ops.expand_dims(ids, -1), ops.expand_dims(ids, -2))
    return ops.cast(ops.logical_and(same, _past(n, 1, False)), dtype)


def _one_step(q_read, k_write, v, state, q_previous, runs):
    """The form of one step: write, then read. O(f e)."""
    sums, previous = state["sums"], state.get("previous")
    if runs is not None:
        run = ops.expand_dims(ops.expand_dims(runs, -1), -1)  # (b, 1, 1, 1)
        if previous is not None:
            earlier = ops.where(ops.equal(run, 1), sums, ops.zeros_like(sums))
            previous = ops.where(ops.equal(run, 0), previous, earlier)
        sums = ops.where(ops.equal(run, 0), sums, ops.zeros_like(sums))
    sums = sums + _outer(k_write, v)
    out = _read(q_read, sums)
    if previous is None:
        return out, {"sums": sums}
    return out + _read(q_previous, previous), {"sums": sums, "previous": previous}


def _outer(k, v):
    return ops.einsum("zjhf,zjhe->zhfe", k, v)


def _read(q, sums):
    return ops.einsum("zihf,zhfe->zihe", q, sums)


def _inside(q, k, v, weights):
    """Attention among the steps of one chunk, `(z, C g, h, e)`.

    The weights are zero where a step is not seen: a choice would cut a TFLite graph in two.
    """
    scores = ops.einsum("zihd,zjhd->zhij", q, k) * weights
    return ops.einsum("zhij,zjhe->zihe", scores, v)


def _past(size, group, strict):
    """`(C g, C)`: which steps each row of a chunk may see by their order."""
    step = ops.arange(size, dtype="int32")
    row = ops.expand_dims(arrays.repeat_rows(step, group, axis=0), 1)
    return row > step if strict else row >= step


def _kernel_weights(size, group, kernel, positions):
    """The kernel at the distances inside a chunk, `(C g, C)` or `(z or n, 1, C g, C)`."""
    if positions is None:
        step = ops.arange(size, dtype="int32")
        return kernel(ops.expand_dims(arrays.repeat_rows(step, group, axis=0), 1) - step)
    step = ops.reshape(arrays.pad_end(positions, -ops.shape(positions)[1] % size), (-1, size))
    distance = ops.expand_dims(arrays.repeat_rows(step, group), 2) - ops.expand_dims(step, 1)
    return kernel(ops.expand_dims(distance, 1))


def _sees(runs, group, reach):
    """`(z, 1, C g, C)`: whether a step's run is that of the row, or up to `reach` before it."""
    size = runs.shape[2]
    runs = ops.reshape(runs, (-1, size))
    ahead = ops.expand_dims(arrays.repeat_rows(runs, group), 2) - ops.expand_dims(runs, 1)
    return ops.expand_dims(ops.logical_and(ahead >= 0, ahead <= reach), 1)


def _sums_before(k_write, v, state, one_chunk, count):
    """The sums before each chunk `(z, h, f, e)`, and after the last."""
    new = _outer(k_write, v)
    if one_chunk:
        return state["sums"], {"sums": state["sums"] + new}
    new = _with_chunks(new, state["sums"], count)
    sums = ops.cumsum(ops.concatenate([_flat(state["sums"]), new], axis=1), axis=1)
    like = state["sums"]
    return _unflat(sums[:, :-1], like), {"sums": _unflat(sums[:, -1:], like)}


def _read_runs(q_read, q_previous, k_write, v, state, runs, group):
    """What each row reads from the chunks before its own, and the state after the last."""
    like = state["sums"]
    last = runs[:, :, -1]  # (b, n)
    ids = ops.concatenate([ops.zeros((ops.shape(runs)[0], 1), "int32"), last], axis=1)
    found = ids[:, :-1]  # the run whose sums each chunk finds

    def written_by(run):
        chosen = ops.equal(runs, ops.expand_dims(run, 2))
        return _with_chunks(_outer(_choose(chosen, k_write), v), like, ops.shape(runs)[1])

    sums = ops.concatenate([_flat(like), written_by(last)], axis=1)
    sums = segmented_cumsum(sums, ids)
    before, state_after = _unflat(sums[:, :-1], like), {"sums": _unflat(sums[:, -1:], like)}
    rows = arrays.repeat_rows(runs - ops.expand_dims(found, 2), group, axis=2)
    own, next_ = ops.equal(rows, 0), ops.equal(rows, 1)
    if q_previous is None:
        return _read(_choose(own, q_read), before), state_after

    step = ops.expand_dims(last - found, 2)
    goes_on, next_one = (ops.cast(x, sums.dtype) for x in (ops.equal(step, 0), ops.equal(step, 1)))
    new = (written_by(last - 1) + sums[:, :-1] * next_one) * (1.0 - goes_on)
    previous = ops.concatenate([_flat(state["previous"]), new], axis=1)
    previous = segmented_cumsum(previous, ids)
    state_after["previous"] = _unflat(previous[:, -1:], like)
    q_sums = _choose(own, q_read) + _choose(next_, q_previous)
    out = _read(q_sums, before) + _read(_choose(own, q_previous), _unflat(previous[:, :-1], like))
    return out, state_after


def _choose(chosen, x):
    """`x (z, C, h, f)` where `chosen (b, n, C)`, zeros elsewhere."""
    return x * ops.cast(ops.reshape(chosen, (-1, chosen.shape[2], 1, 1)), x.dtype)


def _split(x, size):
    """`(b, t, h, d) -> (z, size, h, d)`, with zeros after the end."""
    x = arrays.pad_end(x, -ops.shape(x)[1] % size)
    return ops.reshape(x, (-1, size, *x.shape[2:]))


def _split_ids(ids, size):
    """`(b, t) -> (b, n, size)`, the last id held after the end."""
    b, t = ops.shape(ids)
    return ops.reshape(arrays.pad_with_last(ids, -t % size), (b, -(-t // size), size))


def _join(x, rows, b):
    """`(z, C g, h, e) -> (b, t g, h, e)`."""
    padded = -(-rows // x.shape[1]) * x.shape[1]
    return ops.reshape(x, (b, padded, *x.shape[2:]))[:, :rows]


def _flat(sums):
    """`(b, h, f, e) -> (b, 1, h f e)`: rank 3, so that no axis beyond four is ever made."""
    h, f, e = sums.shape[1:]
    return ops.reshape(sums, (-1, 1, h * f * e))


def _with_chunks(new, like, count):
    """`(z, h, f, e) -> (b, n, h f e)`."""
    h, f, e = like.shape[1:]
    return ops.reshape(new, (ops.shape(like)[0], count, h * f * e))


def _unflat(x, like):
    """`(b, n, h f e) -> (b n, h, f, e)`."""
    return ops.reshape(x, (-1, *like.shape[1:]))
