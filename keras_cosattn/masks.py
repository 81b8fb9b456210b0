"""The three kinds of mask, and what they look like together.

The layers take masks as factors, which cost O(t + s): padding as `query_mask` and `value_mask`,
packed sequences as `segment_ids`, the look-ahead mask as `use_causal_mask=True`. The functions of
this module make these masks, and their product with one entry for each query and key.
`SoftmaxAttention` also takes such a product, or any other mask, as its `attention_mask`. True (`#`
in the pictures) means takes part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from keras import ops

from keras_cosattn.ops import timesteps

Tensor = Any


def padding_mask(lengths: Any, steps: int, side: Literal["left", "right"] = "right") -> Tensor:
    """Return which steps are valid: bool tensor of shape `(b, steps)`.

    `padding_mask([3, 5], 5)`, and with `side="left"`:

        # # # . .        . . # # #
        # # # # #        # # # # #

    Pass it as `query_mask` and `value_mask`, or as the `mask` of a Keras layer. The cost is
    O(b steps).

    Args:
        lengths: integers of shape `(b,)`, the number of valid steps of each example.
        steps: int, number of steps t.
        side: `"right"` if the padding is after the valid steps, or `"left"`. Defaults to `"right"`.

    Raises:
        ValueError: if `side` is something else, or `lengths` has another rank.

    Example:
    >>> from keras_cosattn import masks
    >>> masks.padding_mask([1, 2], 3).numpy().astype(int)
    array([[1, 0, 0],
           [1, 1, 0]])
    """
    if side not in ("left", "right"):
        raise ValueError(f"`side` must be 'left' or 'right'. Received: side={side!r}")
    lengths = ops.cast(lengths, "int32")
    if len(lengths.shape) != 1:
        raise ValueError(
            f"`lengths` must have shape (b,). Received: lengths.shape={tuple(lengths.shape)}"
        )
    lengths = ops.expand_dims(lengths, 1)
    index = ops.expand_dims(ops.arange(steps, dtype="int32"), 0)
    return index < lengths if side == "right" else index >= steps - lengths


def segment_ids(lengths: Sequence[int]) -> Tensor:
    """Return the ids of packed sequences of these lengths: int32 tensor of shape `(1, t)`.

    Pass them as `segment_ids`. The cost is O(t).

    Args:
        lengths: integers, the number of steps of each sequence.

    Example:
    >>> from keras_cosattn import masks
    >>> masks.segment_ids([2, 3]).numpy()
    array([[0, 0, 1, 1, 1]], dtype=int32)
    """
    counts = np.asarray(lengths, "int32")
    ids = np.repeat(np.arange(len(counts), dtype="int32"), counts)
    return ops.convert_to_tensor(ids[None], dtype="int32")


def segment_mask(segment_ids: Any) -> Tensor:
    """Return which pairs of steps are in the same run of equal ids: bool tensor `(b, t, t)`.

    `segment_mask([[7, 7, 2, 2, 2]])`:

        # # . . .
        # # . . .
        . . # # #
        . . # # #
        . . # # #

    The cost is O(b t^2); the layers take `segment_ids` and never make this mask.

    Args:
        segment_ids: integers of shape `(b, t)`.

    Example:
    >>> from keras_cosattn import masks
    >>> masks.segment_mask([[7, 2, 2]]).numpy().astype(int)
    array([[[1, 0, 0],
            [0, 1, 1],
            [0, 1, 1]]])
    """
    numbers = timesteps.segment_numbers(ops.convert_to_tensor(segment_ids))
    return ops.equal(ops.expand_dims(numbers, 2), ops.expand_dims(numbers, 1))


def look_ahead_mask(queries: int, keys: int | None = None) -> Tensor:
    """Return which keys are not after the query: bool tensor `(1, t, s)`, the causal mask.

    `look_ahead_mask(4)`, and `look_ahead_mask(3, 5)`:

        # . . .        # . . . .
        # # . .        # # . . .
        # # # .        # # # . .
        # # # #

    Queries and keys are counted from the same start. The cost is O(t s); the layers take
    `use_causal_mask=True` instead.

    Args:
        queries: int, number of queries t.
        keys: int, number of keys s. Defaults to None, s = t.

    Example:
    >>> from keras_cosattn import masks
    >>> masks.look_ahead_mask(2).numpy().astype(int)
    array([[[1, 0],
            [1, 1]]])
    """
    rows = ops.expand_dims(ops.arange(queries, dtype="int32"), 1)
    columns = ops.arange(queries if keys is None else keys, dtype="int32")
    return ops.expand_dims(rows >= columns, 0)


def combined_mask(
    queries: int,
    keys: int | None = None,
    *,
    query_mask: Any = None,
    value_mask: Any = None,
    segment_ids: Any = None,
    causal: bool = False,
) -> Tensor:
    """Return the product of all masks, as a layer understands them: bool tensor `(b or 1, t, s)`.

    One masked first step and two packed sequences, causal and not causal:

        . . . . . .        . . . . . .
        . # . . . .        . # # . . .
        . # # . . .        . # # . . .
        . . . # . .        . . . # # #
        . . . # # .        . . . # # #
        . . . # # #        . . . # # #

    The causal mask counts valid steps only, so it does not depend on where queries and keys are
    padded. With `segment_ids`, one mask, the product of those that are given, serves queries and
    keys. So does `value_mask` with `causal` and no `query_mask`, if t = s. The cost is O(b t s).

    Args:
        queries: int, number of queries t.
        keys: int, number of keys s. Defaults to None, s = t.
        query_mask: `(b, t)`, True where a query is valid.
        value_mask: `(b, s)`, True where a key is valid.
        segment_ids: integers of shape `(b, t)`, for t = s.
        causal: bool: query t sees keys s <= t. Defaults to `False`.

    Example:
    >>> from keras_cosattn import masks
    >>> masks.combined_mask(3, value_mask=[[True, True, False]]).numpy().astype(int)
    array([[[1, 1, 0],
            [1, 1, 0],
            [1, 1, 0]]])
    """
    query_mask, value_mask = (
        None if mask is None else ops.cast(mask, "bool") for mask in (query_mask, value_mask)
    )
    keys = queries if keys is None else keys
    is_packed = segment_ids is not None
    if is_packed:
        segment_ids = timesteps.segment_numbers(ops.convert_to_tensor(segment_ids))
    shared = timesteps.queries_take_mask_of_keys(query_mask, value_mask, causal)
    if is_packed or (shared and queries == keys):
        query_mask = value_mask = timesteps.combine(query_mask, value_mask)
    seen = timesteps.pair_mask(
        queries,
        keys,
        query_mask=query_mask,
        key_mask=value_mask,
        segments=segment_ids,
        causal=causal,
    )
    everything = ops.ones((1, queries, keys), "bool")
    return everything if seen is None else ops.logical_and(everything, seen[:, 0])
