"""The scan of causal sums over the blocks of a sequence, and over its steps in both directions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_cosattn.ops import arrays
from keras_cosattn.ops.scan import block_scan

Tensor = Any
State = dict[str, Any]
Step = Callable[[State, dict[str, Any], Tensor | None], tuple[Tensor, State]]


def causal_scan(
    step: Step, xs: dict[str, Any], state: State, runs: Tensor | None, block_size: int | None
) -> tuple[Tensor, State]:
    """Apply `out, state = step(state, block, runs)` to one block after the other.

    Args:
        step: function of the state, of the block's part of `xs`, and of the runs of its steps,
            which are 0 where a step continues the run of the state.
        xs: dict of tensors `(b or 1, t, ...)`, or of lists of them.
        state: dict of tensors.
        runs: int32 tensor `(b, t)` that never falls, or None. Its 0 is the run of `state`.
        block_size: int, or None for all steps.

    Returns:
        The outputs of all steps, and the state after the last.
    """
    if runs is None:

        def body(state, block):
            out, state = step(state, block, None)
            return state, out

        state, out = block_scan(body, state, xs, block_size)
        return out, state

    def body_with_runs(state, block):
        run, sums = state["run"], state["sums"]
        out, sums = step(sums, block["xs"], block["runs"] - ops.expand_dims(run, 1))
        seen = ops.concatenate([ops.expand_dims(run, 1), block["runs"]], axis=1)
        return {"sums": sums, "run": ops.max(seen, axis=1)}, out

    start = {"sums": state, "run": ops.zeros((ops.shape(runs)[0],), "int32")}
    end, out = block_scan(body_with_runs, start, {"xs": xs, "runs": runs}, block_size)
    return out, end["sums"]


def both_ways(
    step: Callable[..., tuple[Tensor, State]],
    xs: dict[str, Any],
    state: State,
    runs: Tensor,
    block_size: int | None,
) -> tuple[Tensor, State]:
    """Sum over the whole run of each step, by two causal scans.

    The second scan runs over the steps after each step. Arguments and returns are those of
    `causal_scan`, and the state is that of the first scan. With `divide=False` the step returns
    numerators and the normaliser, and with `strict=True` it leaves out its own step.
    """
    out, after = causal_scan(functools.partial(step, divide=False), xs, state, runs, block_size)
    flipped = keras.tree.map_structure(lambda x: ops.flip(x, axis=1), xs)
    later_runs = runs[:, -1:] - ops.flip(runs, axis=1)
    empty = {name: ops.zeros_like(x) for name, x in state.items()}
    later = functools.partial(step, divide=False, strict=True)
    out = out + ops.flip(causal_scan(later, flipped, empty, later_runs, block_size)[0], axis=1)
    return arrays.divide(out), after
