"""The three kinds of mask, and what they look like together.

The layers take masks in factors, which cost O(t + s): padding as `query_mask` and `value_mask`,
packed sequences as `segment_ids`, look-ahead as `use_causal_mask=True`. What these mean together,
one entry for each query and key, is drawn here; `SoftmaxAttention` also takes such a product, or
any other, as its `attention_mask`. True (`#` below) means takes part.
"""

from keras import ops

from keras_cosattn.ops import timesteps


def padding_mask(lengths, steps, side="right"):
    """Which steps are real: bool `(b, steps)`.

    `padding_mask([3, 5], 5)`, and with `side="left"`:

        # # # . .        . . # # #
        # # # # #        # # # # #

    Give it as `query_mask` and `value_mask`, or as a Keras layer's `mask`. O(b steps).

    Args:
        lengths: `(b,)` integers, how many steps of each example are real.
        steps: t, an integer.
        side: where the padding is, "right" (after the real steps) or "left".
    """
    if side not in ("left", "right"):
        raise ValueError(f"`side` must be 'left' or 'right'. Received: side={side!r}")
    lengths = ops.expand_dims(ops.cast(lengths, "int32"), 1)
    if len(lengths.shape) != 2:
        raise ValueError(
            f"`lengths` must have shape (b,). Received: lengths.shape={lengths.shape[:1]}"
        )
    index = ops.expand_dims(ops.arange(steps, dtype="int32"), 0)
    return index < lengths if side == "right" else index >= steps - lengths


def segment_ids(lengths):
    """The ids of sequences of these lengths, packed one behind the other: int32 `(1, t)`.

    `segment_ids([2, 3])` is `[[0, 0, 1, 1, 1]]`. Give it as `segment_ids`. O(t).
    """
    return ops.expand_dims(
        ops.concatenate([ops.full((n,), i, "int32") for i, n in enumerate(lengths)]), 0
    )


def segment_mask(segment_ids):
    """Which pairs of steps are in the same run of equal ids: bool `(b, t, t)`.

    `segment_mask([[7, 7, 2, 2, 2]])`:

        # # . . .
        # # . . .
        . . # # #
        . . # # #
        . . # # #

    O(b t^2); the layers take `segment_ids` itself and never make this.
    """
    numbers = timesteps.segment_numbers(ops.convert_to_tensor(segment_ids))
    return ops.equal(ops.expand_dims(numbers, 2), ops.expand_dims(numbers, 1))


def look_ahead_mask(queries, keys=None):
    """Which keys are not ahead of the query: bool `(1, t, s)`, also called the causal mask.

    `look_ahead_mask(4)`, and `look_ahead_mask(3, 5)`:

        # . . .        # . . . .
        # # . .        # # . . .
        # # # .        # # # . .
        # # # #

    Queries and keys count from the same start. O(t s); the layers take `use_causal_mask=True`.
    """
    rows = ops.expand_dims(ops.arange(queries, dtype="int32"), 1)
    columns = ops.arange(queries if keys is None else keys, dtype="int32")
    return ops.expand_dims(rows >= columns, 0)


def combined_mask(
    queries, keys=None, *, query_mask=None, value_mask=None, segment_ids=None, causal=False
):
    """All kinds multiplied out, as a layer understands them: bool `(b or 1, t, s)`.

    One step of padding in front and two packed sequences, causal and both ways:

        . . . . . .        . . . . . .
        . # . . . .        . # # . . .
        . # # . . .        . # # . . .
        . . . # . .        . . . # # #
        . . . # # .        . . . # # #
        . . . # # #        . . . # # #

    Causality counts the real steps only, so it holds however the two sides are padded. O(b t s).

    Args:
        queries, keys: t and s; None is s = t.
        query_mask, value_mask: `(b, t)` and `(b, s)`.
        segment_ids: `(b, t)`, t = s.
        causal: query t sees keys s <= t.
    """
    query_mask, value_mask = (
        None if mask is None else ops.cast(mask, "bool") for mask in (query_mask, value_mask)
    )
    keys = queries if keys is None else keys
    if segment_ids is not None:
        segment_ids = timesteps.segment_numbers(ops.convert_to_tensor(segment_ids))
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
