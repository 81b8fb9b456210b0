"""Causal sums in chunks, the algorithm of all causal linear attention.

Inside a chunk of C steps the masked scores are computed, `(q k^T * kernel) v`. The steps before the
chunk are a sum, which `q @ sum` reads. A run is a part of the sequence whose steps attend to each
other: a segment of a packed sequence, or a half-horizon. Where the next run begins, the sum of the
run before is dropped or moved on.

`block_scan` gives one chunk after the other to this function, with the state between them. Where
few large products are faster than a loop, it gives many chunks at once: then each product is one
batched matrix product over all of them.

Shapes: n chunks of C steps, z = b * n; a head of k has R = g * C rows of q, g query heads each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_cosattn.ops import arrays, chunks
from keras_cosattn.ops.chunk_sums import ChunkSums

Tensor = Any
State = dict[str, Any]


def causal_sums(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: State | None,
    *,
    expand: Callable[..., Tensor] | None = None,
    offsets: Sequence[Tensor] = (),
    move_on: Callable[..., Sequence[Tensor]] | None = None,
    kernel: Callable[[Any, Any], Any] | None = None,
    positions: Sequence[Tensor] | None = None,
    runs: Tensor | None = None,
    strict: bool = False,
    aligned: bool = False,
    chunk_size: int | None = None,
) -> tuple[Tensor, State]:
    """Return `out_t = sum_(s <= t) (q_t . k_s) kernel(t - s) v_s`, continuing from `state`.

    The kernel must factor through the features that `expand` makes:
    `(q_t . k_s) kernel(t - s) = expand(q_t, *offsets_t) . expand(k_s, *offsets_s)` within a run.
    With `move_on`, t attends also to the run before its own, with `move_on(*offsets_t)` in place of
    `offsets_t`.

    It takes O(t C (d + e) + t f e) time and O(t C + t f e / C) memory for each head. With
    runs, n chunks at once take another O(n^1.5 f e) time.

    Args:
        q: tensor `(b, t, h * g, d)`.
        k: tensor `(b, t, h, d)`.
        v: tensor `(b, t, h, e)`.
        state: dict of `"sums" (b, h, f, e)`, the sum of `expand(k) v^T` over the earlier steps of
            the run numbered 0, and with `move_on` also `"previous"`, that of the run before it.
            None stands for zeros.
        expand: function of a tensor `(..., d)` and offsets that broadcast to it, which returns
            `(..., f)`. Defaults to no change, f = d.
        offsets: tensors `(b or 1, t)`, functions of the place of each step in its run.
        move_on: function of the offsets, which returns those at the same place of the next run.
            Defaults to `None`: t attends to its own run only.
        kernel: function of the positions of rows and columns, which broadcast. Defaults to 1.
        positions: tensors `(b or 1, t)`, functions of the position of each step; the kernel then
            takes lists. Defaults to the number of the step.
        runs: int32 tensor `(b, t)` that never falls, the run of each step, 0 for steps that
            continue the run of the state. Defaults to one run.
        strict: bool. If True, s = t is left out. Defaults to `False`.
        aligned: bool. If True, no run begins inside a chunk. Defaults to `False`.
        chunk_size: int, C. Defaults to `None`: all steps are one chunk.

    Returns:
        The output `(b, t, h * g, e)` and the new state, in which the run of the last step has
        number 0.
    """
    t, group, one_step = ops.shape(k)[1], arrays.group_size(q, k), k.shape[1] == 1 and not strict
    one_chunk = chunk_size is None or (isinstance(t, int) and t <= chunk_size)
    if one_chunk and runs is not None and (aligned or k.shape[1] == 1):
        state, runs = state and _enter_run(state, runs), None
    size: Any = t if one_chunk else chunk_size

    def split(x):
        return x if one_chunk or x is None else chunks.split(x, size)

    b, dtype = ops.shape(k)[0], k.dtype
    q, k, v = (arrays.heads_first(split(x)) for x in (q, k, v))
    q = arrays.groups_to_rows(q, group)
    q_read, k_write, q_previous = q, k, None
    if expand is not None:
        offsets = offsets if one_chunk else [ops.broadcast_to(x, (b, t)) for x in offsets]
        offsets = [ops.expand_dims(split(x), (1, 3)) for x in offsets]
        of_rows = [arrays.tile_rows(x, group, axis=2) for x in offsets]
        q_read, k_write = expand(q, *of_rows), expand(k, *offsets)
        q_previous = None if move_on is None else expand(q, *move_on(*of_rows))
    is_first = state is None
    if state is None:
        state = _zero_state(b, k_write, v, move_on is not None)
    if runs is not None:
        runs = ops.expand_dims(runs, 1) if one_chunk else chunks.split_ids(runs, size)
    count = 1 if one_chunk else -(-t // size)
    sums = ChunkSums(k_write, v, count, runs)
    around = sums.around_one_chunk if one_chunk else sums.around_many_chunks
    before, after = around(state)
    if one_step:
        out = _read(q_read, q_previous, after)
    else:
        places = positions and [split(x) for x in positions]
        weights = _kernel_weights(size, group, kernel, places, strict, dtype)
        if runs is not None:
            can_attend = _can_attend(runs, group, move_on is not None)
            weights = weights * ops.cast(can_attend, dtype)
        out = ops.matmul(ops.matmul(q, ops.swapaxes(k, 2, 3)) * weights, v)
        if runs is not None:
            out = out + _read_runs(q_read, q_previous, before, runs, sums.found_runs, group)
        elif not (is_first and one_chunk):
            out = out + _read(q_read, q_previous, before)
    out = arrays.heads_first(arrays.rows_to_groups(out, group))
    return (out if one_chunk else chunks.join(out, t, b)), after


def _zero_state(b, k_write, v, has_previous):
    h, _, f = k_write.shape[1:]
    zeros = ops.zeros((b, h, f, v.shape[3]), k_write.dtype)
    return {"sums": zeros, "previous": zeros} if has_previous else {"sums": zeros}


def _enter_run(state, runs):
    """Return the state for steps of one run: dropped or moved on if the run is new."""
    run = ops.max(ops.pad(runs, ((0, 0), (0, 1))), axis=1)  # there may be no steps
    run = ops.expand_dims(run, (1, 2, 3))
    sums = state["sums"]
    same, is_next = (ops.cast(ops.equal(run, i), sums.dtype) for i in (0, 1))
    if "previous" not in state:
        return {"sums": sums * same}
    return {"sums": sums * same, "previous": state["previous"] * same + sums * is_next}


def _read(q_read, q_previous, sums):
    """Return what each row reads of the sums, `(z, h, R, e)`."""
    out = ops.matmul(q_read, sums["sums"])
    return out if q_previous is None else out + ops.matmul(q_previous, sums["previous"])


def _read_runs(q_read, q_previous, sums, runs, found_runs, group):
    """Return what each row reads of the sums of its run, and of the run before it."""
    rows = ops.reshape(
        runs - ops.expand_dims(found_runs, 2), (ops.shape(q_read)[0], 1, ops.shape(runs)[2], 1)
    )
    rows = arrays.tile_rows(rows, group, axis=2)
    own, is_next = (ops.cast(ops.equal(rows, i), q_read.dtype) for i in (0, 1))
    if q_previous is None:
        return ops.matmul(q_read, sums["sums"]) * own
    return _read(q_read * own + q_previous * is_next, q_previous * own, sums)


def _kernel_weights(size, group, kernel, positions, strict, dtype):
    """Return the kernel of the distances in a chunk, `(R, C)` or `(z or n, 1, R, C)`.

    The weights of later steps are zero. A selection would cut a TFLite graph in two.
    """
    step: Any = np.arange(size) if isinstance(size, int) else ops.arange(size, dtype="int32")
    row = step[:, None] if isinstance(size, int) else ops.expand_dims(step, 1)
    weights = ops.cast(row > step if strict else row >= step, dtype)
    if kernel is not None and positions is None:
        weights = weights * ops.cast(kernel(row, step), dtype)
    weights = arrays.tile_rows(weights, group, axis=0)
    if kernel is None or positions is None:
        return weights
    rows = [ops.expand_dims(arrays.tile_rows(x, group, axis=1), (1, 3)) for x in positions]
    return weights * kernel(rows, [ops.expand_dims(x, (1, 2)) for x in positions])


def _can_attend(runs, group, to_previous):
    """Return whether a step's run is the row's, or also the one before it, `(z, 1, R, C)`."""
    b, n, size = ops.shape(runs)
    runs = ops.reshape(runs, (b * n, size))
    row = ops.expand_dims(arrays.tile_rows(runs, group, axis=1), 2)
    ahead = row - ops.expand_dims(runs, 1)
    allowed = ops.logical_and(ahead >= 0, ahead <= int(to_previous))
    return ops.expand_dims(allowed, 1)
