"""Softmax attention in blocks: each block of queries attends to the few blocks of keys around it.

Which of those keys a query can attend to is decided by a function of numbers of each step, such as
its index, its segment or its bucket. So windows, segments and sorted buckets are one algorithm.

Blocks are a batch axis. With `block_size`, a loop takes some of them at a time with the keys around
them, so the scores of the whole sequence are never in memory together.

A block of queries has C steps. `block_size` counts the steps of an iteration of the loop.

Shapes: n blocks of C steps, z = b * n; S = (before + 1 + after) C keys for each block.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_cosattn.ops import arrays, dense
from keras_cosattn.ops.block_size import windows_at_once
from keras_cosattn.ops.scan import block_scan

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
    block_size: int | None = None,
) -> Any:
    """Attend, for each query, to the keys of its blocks that `can_attend` allows.

    The keys begin `before * size` steps earlier than the queries: query i is at the same step as
    key `before * size + i`. `can_attend` must be False for missing steps there. It must be False,
    too, for steps past the end, for which all numbers are zero.

    O(t (before + 1 + after) C (d + e)) time and O(B (before + 1 + after) C) memory per head, for
    the B steps that are taken at once. The m `global_keys` add O(t m (d + e)) time and
    O(B m (1 + (d + e) / C)) memory.

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
        block_size: Integer, B, rounded up to a multiple of C. With `None`, and with dropout, all
            steps are taken at once: the gradient of the loop computes the weights again, and other
            weights would be dropped.

    Returns:
        `(b, t, h, e)`. A query that attends to nothing gives zero.
    """
    *memory, which = (None, None, None) if memory is None else memory
    attend = functools.partial(
        _attend_at_once, can_attend=can_attend, which=which, size=size, before=before, after=after,
        encode_positions=encode_positions, dropout=dropout, log_totals=log_totals,
    )  # fmt: skip
    queries = {"q": q, "steps": dict(q_steps)}
    keys = {"k": k, "v": v, "steps": dict(k_steps)}
    if memory[0] is not None:
        keys["memory"] = memory
    shared = () if global_keys is None else global_keys
    t, at_once = ops.shape(q)[1], windows_at_once(block_size, size)
    if at_once is None or dropout is not None or (isinstance(t, int) and t <= at_once):
        return attend(queries, keys, shared)

    whole, around = -(-t // size) * size, (before + after) * size
    xs = {
        "queries": keras.tree.map_structure(lambda x: arrays.pad_end(x, whole - t), queries),
        "keys": keras.tree.map_structure(lambda x: arrays.fit_length(x[:, around:], whole), keys),
    }
    first = keras.tree.map_structure(lambda x: arrays.fit_length(x[:, :around], around), keys)

    def body(earlier, block, shared):
        keys = keras.tree.map_structure(_join_steps, earlier, block["keys"])
        steps = ops.shape(block["queries"]["q"])[1]
        out = attend(block["queries"], keys, shared)
        return keras.tree.map_structure(lambda x: x[:, steps:], keys), out

    _, out = block_scan(body, first, xs, at_once, shared)
    return keras.tree.map_structure(lambda x: x[:, :t], out)


def _attend_at_once(
    queries, keys, shared, *, can_attend, which, size, before, after, encode_positions, dropout,
    log_totals,
):  # fmt: skip
    """Attend as `attend_in_blocks` does, in all blocks at once."""
    q, (b, t) = queries["q"], ops.shape(queries["q"])[:2]
    k, v, memory = keys["k"], keys["v"], keys.get("memory")
    if isinstance(t, int) and t <= size:
        n, size_q, reach = 1, max(t, 1), (before + 1 + after) * size
        reach = min(reach, k.shape[1] or reach)
    else:
        n, size_q, reach = -(-t // size), size, None

    def split_queries(x):
        return ops.reshape(arrays.pad_end(x, n * size_q - t), (-1, size_q, *x.shape[2:]))

    def split_keys(x, earlier=None):
        if reach is not None:
            if earlier is not None:
                x = ops.concatenate([earlier[:, : before * size], x[:, before * size :]], axis=1)
            return arrays.fit_length(x, reach)
        length = (n + before + after) * size
        x = arrays.fit_length(x, length)
        earlier = None if earlier is None else arrays.fit_length(earlier, length)
        return _reach(x, n, size, before, after, earlier)

    q_steps = {name: split_queries(x) for name, x in queries["steps"].items()}
    k_steps = {name: split_keys(x) for name, x in keys["steps"].items()}
    q = split_queries(q)
    if memory is None or which is not None:
        k, v = split_keys(k), split_keys(v)
    else:
        k, v = (split_keys(*both) for both in zip((k, v), memory, strict=True))
    if which is not None:
        memory = [split_keys(x) for x in memory]
    if shared:
        *more, more_steps = shared
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


def _join_steps(earlier, x):
    return ops.concatenate([earlier, x], axis=1)


def _join(x, more, n):
    """`x (b * n, S, ...)` followed by `more (b, m, ...)` for each of the n blocks."""
    if not (isinstance(n, int) and n == 1):
        b, m = ops.shape(more)[:2]
        width = m * math.prod(x.shape[2:])
        each = ops.broadcast_to(ops.reshape(more, (b, 1, width)), (b, n, width))
        more = ops.reshape(each, (ops.shape(x)[0], m, *x.shape[2:]))  # m may be 0
    return ops.concatenate([x, more], axis=1)
