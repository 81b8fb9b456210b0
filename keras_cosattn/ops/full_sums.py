"""Sums over all steps of a sequence, the algorithm of linear attention in both directions.

One scan adds up the keys and values of all steps. A second scan reads the sums for each query. So
no tensor of features of the whole sequence is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import ops

from keras_cosattn.ops import arrays
from keras_cosattn.ops.scan import block_scan

Tensor = Any
State = dict[str, Any]
Block = dict[str, Any]


def sum_steps(
    write: Callable[[Block], State], keys: Block, state: State, block_size: int | None
) -> State:
    """Return the sums with all steps of `keys`, in O(s f e) time for each head.

    Args:
        write: function of a block of `keys`. It returns what the block adds to each sum.
        keys: dict of tensors `(b or 1, s, ...)`, or of lists of them.
        state: dict of the earlier sums, `(b, h, f, e)`.
        block_size: int, the number of steps in a block. None stands for all steps.
    """

    def add(sums, block):
        return {name: sums[name] + new for name, new in write(block).items()}, ()

    return block_scan(add, state, keys, block_size)[0]


def read_sums(
    read: Callable[[Block], dict[str, Tensor]], queries: Block, sums: State, block_size: int | None
) -> Tensor:
    """Return `q_t . sum` of each query, divided by its last column, in O(t f e) time for each head.

    Args:
        read: function of a block of `queries`. For each sum it returns `q (b, t, h * g, f)`.
        queries: dict of tensors `(b or 1, t, ...)`, or of lists of them.
        sums: dict of sums, `(b, h, f, e)`. With several sums, the outputs of all are columns beside
            each other before the division.
        block_size: int, the number of steps in a block. None stands for all steps.

    Returns:
        Tensor `(b, t, h * g, e)` without the last column.
    """

    def read_block(_, block, sums):
        outputs = []
        for name, q in read(block).items():
            group = q.shape[2] // sums[name].shape[1]
            q = arrays.groups_to_rows(arrays.heads_first(q), group)
            outputs.append(arrays.rows_to_groups(ops.matmul(q, sums[name]), group))
        out = outputs[0] if len(outputs) == 1 else ops.concatenate(outputs, axis=-1)
        return (), arrays.heads_first(arrays.divide(out))

    return block_scan(read_block, (), queries, block_size, sums)[1]
