"""Causal sums in chunks, the algorithm of all causal linear attention.

Inside a chunk of C steps the masked scores are computed, `(q k^T * kernel) v`. The steps before the
chunk are a sum, `state_c = keep_c * state_(c-1) + new_c`, which `q @ state` reads. keep is 1 within
a run of steps and 0 where the next run begins. A run is a segment of a packed sequence, or a
half-horizon. Each product is one batched matrix product over all chunks. There is no loop, so the
graph is the same for every length, and XLA, TFLite and automatic differentiation support it.

Shapes: n chunks of C steps, z = b * n, g rows per step (query heads that share a key head).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import ops

from keras_cosattn.ops import arrays, chunks

Tensor = Any
State = dict[str, Any]

CHUNK_SIZE = 64


def causal_sums(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: State,
    *,
    q_read: Tensor | None = None,
    k_write: Tensor | None = None,
    q_previous: Tensor | None = None,
    kernel: Callable[[Tensor], Tensor] | None = None,
    positions: Tensor | None = None,
    runs: Tensor | None = None,
    group: int = 1,
    strict: bool = False,
    chunk_size: int = CHUNK_SIZE,
) -> tuple[Tensor, State]:
    """Return `out_t = sum_(s <= t) (q_t . k_s) kernel(t - s) v_s`, continuing from `state`.

    The kernel must factor through the features that are read and written:
    `(q_t . k_s) kernel(t - s) = q_read_t . k_write_s` within a run, and
    `= q_previous_t . k_write_s` where s lies in the run before that of t.

    It takes O(t C (d + e) + t f e) time and O(t C + t f e / C) memory for each head. With runs, the
    sums over chunks take O((t / C)^1.5 f e) time.

    Args:
        q, k, v: tensors `(b, t * g, h, d)`, `(b, t, h, d)` and `(b, t, h, e)`; see
            `arrays.fold_groups`.
        state: dict of `"sums" (b, h, f, e)`, the sum of `k_write v^T` over the earlier steps of the
            run numbered 0, and with `q_previous` also `"previous"`, that of the run before it.
        q_read: tensor `(b, t * g, h, f)`. Defaults to q.
        k_write: tensor `(b, t, h, f)`. Defaults to k.
        q_previous: tensor like q_read.
        kernel: function of the differences of `positions`. Defaults to 1.
        positions: tensor `(b or 1, t)`. Defaults to the number of the step.
        runs: int32 tensor `(b, t)` that never falls. A step attends to its own run, and with
            `q_previous` also to the run numbered one less. Defaults to one run.
        group: int, g. Defaults to `1`.
        strict: bool. If True, s = t is left out. Defaults to `False`.
        chunk_size: int, C. Defaults to `64`.

    Returns:
        The output `(b, t * g, h, e)` and the new state, in which the run of the last step has
        number 0.
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

    weights = ops.cast(_causal_mask(size, group, strict), k.dtype)
    if kernel is not None:
        weights = weights * _kernel_weights(size, group, kernel, positions)
    v = chunks.split(v, size)
    if runs is not None:
        runs = chunks.split_ids(runs, size)
        allowed = _can_attend(runs, group, 1 if q_previous is not None else 0)
        weights = weights * ops.cast(allowed, k.dtype)
    out = _within_chunks(chunks.split(q, size * group), chunks.split(k, size), v, weights)

    q_read, k_write = chunks.split(q_read, size * group), chunks.split(k_write, size)
    if runs is None:
        before, state = _sums_before(k_write, v, state, one_chunk, -(-t // size))
        out = out + chunks.read(q_read, before)
    else:
        q_previous = None if q_previous is None else chunks.split(q_previous, size * group)
        before, state = _read_runs(q_read, q_previous, k_write, v, state, runs, group)
        out = out + before
    return chunks.join(out, t * group, ops.shape(k)[0]), state


def segmented_cumsum(x: Tensor, ids: Tensor) -> Tensor:
    """Return cumulative sums of `x (b, n, w)` along n that restart where `ids (b, n)` change.

    There are two levels of about sqrt(n) steps, each a product with a 0/1 matrix, so it takes
    O(n^1.5 w) time. The difference of two cumulative sums would take O(n) time, but it loses
    precision by cancellation.
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
    same_run = ops.cast(ops.equal(ids, ops.expand_dims(carried_ids, 2)), x.dtype)
    carried = ops.expand_dims(carried, 2) * ops.expand_dims(same_run, 3)
    return ops.reshape(within + carried, (b, rows * side, width))[:, :n]


def _same_run(ids, dtype):
    """Return 1 where i >= j and both have the same id, 0 elsewhere: `(..., n) -> (..., n, n)`."""
    n = ops.shape(ids)[-1]
    same = ops.equal(ops.expand_dims(ids, -1), ops.expand_dims(ids, -2))
    return ops.cast(ops.logical_and(same, _causal_mask(n, 1, False)), dtype)


def _one_step(q_read, k_write, v, state, q_previous, runs):
    """Write one step, then read it, in O(f e) time."""
    sums, previous = state["sums"], state.get("previous")
    if runs is not None:
        run = ops.expand_dims(runs, (2, 3))  # (b, 1, 1, 1)
        if previous is not None:
            earlier = ops.where(ops.equal(run, 1), sums, ops.zeros_like(sums))
            previous = ops.where(ops.equal(run, 0), previous, earlier)
        sums = ops.where(ops.equal(run, 0), sums, ops.zeros_like(sums))
    sums = sums + chunks.outer_sum(k_write, v)
    out = chunks.read(q_read, sums)
    if previous is None:
        return out, {"sums": sums}
    return out + chunks.read(q_previous, previous), {"sums": sums, "previous": previous}


def _within_chunks(q, k, v, weights):
    """Return attention among the steps of each chunk, `(z, C g, h, e)`.

    The weights are zero for pairs that are not allowed. A selection would cut a TFLite graph in
    two.
    """
    scores = ops.einsum("zihd,zjhd->zhij", q, k) * weights
    return ops.einsum("zhij,zjhe->zihe", scores, v)


def _causal_mask(size, group, strict):
    """Return the steps of a chunk that are not later than each row, `(C g, C)`."""
    step = ops.arange(size, dtype="int32")
    row = ops.expand_dims(arrays.repeat_rows(step, group, axis=0), 1)
    return row > step if strict else row >= step


def _kernel_weights(size, group, kernel, positions):
    """Return the kernel of the distances in a chunk, `(C g, C)` or `(z or n, 1, C g, C)`."""
    if positions is None:
        step = ops.arange(size, dtype="int32")
        return kernel(ops.expand_dims(arrays.repeat_rows(step, group, axis=0), 1) - step)
    step = chunks.split(positions, size)
    distance = ops.expand_dims(arrays.repeat_rows(step, group), 2) - ops.expand_dims(step, 1)
    return kernel(ops.expand_dims(distance, 1))


def _can_attend(runs, group, reach):
    """Return whether a step's run is the row's or up to `reach` earlier, `(z, 1, C g, C)`."""
    size = runs.shape[2]
    runs = ops.reshape(runs, (-1, size))
    ahead = ops.expand_dims(arrays.repeat_rows(runs, group), 2) - ops.expand_dims(runs, 1)
    return ops.expand_dims(ops.logical_and(ahead >= 0, ahead <= reach), 1)


def _sums_before(k_write, v, state, one_chunk, count):
    """Return the sums before each chunk, `(z, h, f, e)`, and those after the last."""
    new = chunks.outer_sum(k_write, v)
    if one_chunk:
        return state["sums"], {"sums": state["sums"] + new}
    new = _with_chunks(new, state["sums"], count)
    sums = ops.cumsum(ops.concatenate([_flat(state["sums"]), new], axis=1), axis=1)
    like = state["sums"]
    return _unflat(sums[:, :-1], like), {"sums": _unflat(sums[:, -1:], like)}


def _read_runs(q_read, q_previous, k_write, v, state, runs, group):
    """Return what each row reads from the chunks before its own, and the state after the last."""
    like = state["sums"]
    last = runs[:, :, -1]  # (b, n)
    ids = ops.concatenate([ops.zeros((ops.shape(runs)[0], 1), "int32"), last], axis=1)
    found_run = ids[:, :-1]  # the run whose sums each chunk continues

    def new_sums_of(run):
        chosen = ops.equal(runs, ops.expand_dims(run, 2))
        return _with_chunks(chunks.outer_sum(_choose(chosen, k_write), v), like, ops.shape(runs)[1])

    sums = ops.concatenate([_flat(like), new_sums_of(last)], axis=1)
    sums = segmented_cumsum(sums, ids)
    before, state_after = _unflat(sums[:, :-1], like), {"sums": _unflat(sums[:, -1:], like)}
    rows = arrays.repeat_rows(runs - ops.expand_dims(found_run, 2), group, axis=2)
    own, next_ = ops.equal(rows, 0), ops.equal(rows, 1)
    if q_previous is None:
        return chunks.read(_choose(own, q_read), before), state_after

    step = ops.expand_dims(last - found_run, 2)
    same_run, next_run = (ops.cast(x, sums.dtype) for x in (ops.equal(step, 0), ops.equal(step, 1)))
    new = (new_sums_of(last - 1) + sums[:, :-1] * next_run) * (1.0 - same_run)
    previous = ops.concatenate([_flat(state["previous"]), new], axis=1)
    previous = segmented_cumsum(previous, ids)
    state_after["previous"] = _unflat(previous[:, -1:], like)
    q_sums = _choose(own, q_read) + _choose(next_, q_previous)
    previous = _unflat(previous[:, :-1], like)
    out = chunks.read(q_sums, before) + chunks.read(_choose(own, q_previous), previous)
    return out, state_after


def _choose(chosen, x):
    """Return `x (z, C, h, f)` where `chosen (b, n, C)` is True, and zeros elsewhere."""
    return x * ops.cast(ops.reshape(chosen, (-1, chosen.shape[2], 1, 1)), x.dtype)


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
