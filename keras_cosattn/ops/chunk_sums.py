"""The sums before and after each chunk, for `causal_sums`.

Shapes: n chunks of C steps, z = b * n.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_cosattn.ops import arrays

Tensor = Any
State = dict[str, Any]


class ChunkSums:
    """The sums of `k v^T` over the steps of each chunk, by the runs of these steps.

    Args:
        k: tensor `(z, h, C, f)`.
        v: tensor `(z, h, C, e)`.
        count: int or integer tensor, n.
        runs: int32 tensor `(b, n, C)` that never falls. None stands for one run.

    Attributes:
        last_runs: int32 tensor `(b, n)`, the run of the last step of each chunk.
        found_runs: int32 tensor `(b, n)`, the run whose sums each chunk continues.
    """

    def __init__(self, k: Tensor, v: Tensor, count: Any, runs: Tensor | None) -> None:
        self.k, self.v, self.count, self.runs = k, v, count, runs
        if runs is None:
            return
        start = ops.zeros((ops.shape(runs)[0], 1, 1), "int32")
        if runs.shape[1] == 1:  # the chunk may have no steps
            self.last_runs = ops.max(ops.concatenate([start, runs], axis=2), axis=2)
        else:
            self.last_runs = runs[:, :, -1]
        self.found_runs = ops.concatenate([start[:, :, 0], self.last_runs[:, :-1]], axis=1)

    def around_one_chunk(self, state: State) -> tuple[State, State]:
        """Return the state before and after the only chunk of each example."""
        if self.runs is None:
            return state, {**state, "sums": state["sums"] + self._new()}
        last = ops.expand_dims(self.last_runs, (2, 3))  # (b, 1, 1, 1)
        same, is_next = (ops.cast(ops.equal(last, i), self.k.dtype) for i in (0, 1))
        after = {"sums": state["sums"] * same + self._new(self.last_runs)}
        if "previous" in state:
            new = state["sums"] * is_next + self._new(self.last_runs - 1)
            after["previous"] = state["previous"] * same + new * (1.0 - same)
        return state, after

    def around_many_chunks(self, state: State) -> tuple[State, State]:
        """Return the states before each chunk, `(z, h, f, e)`, and after the last."""
        start, like = _flat(state["sums"]), state["sums"]
        b = ops.shape(like)[0]
        if self.runs is None:
            new = self._of_chunks(b)
            before, after = _shift(ops.cumsum(ops.concatenate([start, new], axis=1), axis=1), like)
            return {"sums": before}, {"sums": after}
        ids = ops.concatenate([ops.zeros_like(self.last_runs[:, :1]), self.last_runs], axis=1)
        new = self._of_chunks(b, self.last_runs)
        sums = segmented_cumsum(ops.concatenate([start, new], axis=1), ids)
        before, after = ({"sums": x} for x in _shift(sums, like))
        if "previous" not in state:
            return before, after
        step = ops.expand_dims(self.last_runs - self.found_runs, 2)
        same, is_next = (ops.cast(ops.equal(step, i), sums.dtype) for i in (0, 1))
        new = self._of_chunks(b, self.last_runs - 1)
        new = (new + sums[:, :-1] * is_next) * (1.0 - same)
        previous = ops.concatenate([_flat(state["previous"]), new], axis=1)
        previous = segmented_cumsum(previous, ids)
        before["previous"], after["previous"] = _shift(previous, like)
        return before, after

    def _new(self, run=None):
        """Return the sums of each chunk over its steps of `run (b, n)`, `(z, h, f, e)`."""
        v = self.v
        if run is not None:
            chosen = ops.cast(ops.equal(self.runs, ops.expand_dims(run, 2)), v.dtype)
            v = v * ops.reshape(chosen, (ops.shape(v)[0], 1, ops.shape(chosen)[2], 1))
        return ops.matmul(ops.swapaxes(self.k, 2, 3), v)

    def _of_chunks(self, b, run=None):
        """Return the same for the chunks of each example, `(b, n, h f e)`."""
        new = self._new(run)
        h, f, e = new.shape[1:]
        return ops.reshape(new, (b, self.count, h * f * e))


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
    index = ops.arange(ops.shape(ids)[-1], dtype="int32")
    past = ops.expand_dims(index, 1) >= index
    same = ops.equal(ops.expand_dims(ids, -1), ops.expand_dims(ids, -2))
    return ops.cast(ops.logical_and(same, past), dtype)


def _flat(sums):
    """`(b, h, f, e) -> (b, 1, h f e)`: rank 3, so that no axis beyond four is ever made."""
    h, f, e = sums.shape[1:]
    return ops.reshape(sums, (-1, 1, h * f * e))


def _shift(x, like):
    """Return sums `(b, n + 1, h f e)` before each chunk, and after the last, `(.., h, f, e)`."""
    shape = (-1, *like.shape[1:])
    return ops.reshape(x[:, :-1], shape), ops.reshape(x[:, -1:], shape)
