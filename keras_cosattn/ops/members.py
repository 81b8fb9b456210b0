"""Attention among the members of clusters. Each cluster takes the steps most similar to it.

Shapes: c clusters, z = b * h * c.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_cosattn.ops import arrays, timesteps
from keras_cosattn.ops.block_attention import attend_in_blocks
from keras_cosattn.ops.buckets import rows_of_heads, take_rows

Tensor = Any

SMALLEST_SIMILARITY = -2.0  # below any cosine


def member_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    similarity: Tensor,
    *,
    size: int,
    causal: bool = False,
    mask: Tensor | None = None,
    segments: Tensor | None = None,
) -> Tensor:
    """Softmax attention inside clusters, each of the w steps that are most similar to it.

    A step in several clusters gets the mean of its results, and a step in none gets zero.

    It takes O(c t log t + c w^2 (d + e)) time for each head, and O(c t (log t + w (d + e))) time
    with segments.

    Args:
        q, k: tensors `(b, t, h, d)` of the same steps.
        v: tensor `(b, t, hk, e)`. q, k and v must be finite, also at masked steps.
        similarity: tensor `(b, t, h, c)`, the similarity of step and cluster, above -2.
        size: int, w.
        causal: bool. If True, query t attends to keys s <= t. Which steps are members still depends
            on later steps. Defaults to `False`.
        mask: bool tensor `(b, t)`, the valid steps.
        segments: int32 tensor `(b, t)`, of `timesteps.segment_numbers`. Each segment has its own w
            members.

    Returns:
        Tensor `(b, t, h, e)`.
    """
    b, t, h, c = ops.shape(similarity)
    if isinstance(t, int):
        size = min(size, t)
    order, group = _members(similarity, size, mask, segments)
    steps = {"group": group, "index": order}

    def can_attend(q, k):
        same = ops.logical_and(ops.equal(q["group"], k["group"]), k["group"] > 0)
        return ops.logical_and(same, k["index"] <= q["index"]) if causal else same

    reach = 0 if segments is None else 1
    before = reach * size
    mixed = attend_in_blocks(
        take_rows(q, order, c),
        arrays.pad_start(take_rows(k, order, c), before),
        arrays.pad_start(take_rows(v, order, h // v.shape[2] * c), before),
        steps,
        {name: arrays.pad_start(x, before) for name, x in steps.items()},
        can_attend,
        size=size,
        before=reach,
        after=reach,
    )
    e = v.shape[3]
    results = arrays.zero_masked(arrays.append_ones(mixed), group > 0)
    row = ops.expand_dims(ops.arange(ops.shape(order)[0], dtype="int32") // c, 1) * t + order
    total = ops.segment_sum(
        ops.reshape(results, (-1, e + 1)), ops.reshape(row, (-1,)), num_segments=b * h * t
    )
    return ops.transpose(ops.reshape(arrays.divide(total), (b, h, t, e)), (0, 2, 1, 3))


def _members(similarity, size, mask, segments):
    """Return the steps of each cluster, its members among them, and their group, `(z, n)` both.

    Steps of one group attend to each other. Group 0 has the steps that are no members. n is w, or t
    with segments.
    """
    _, t, h, c = ops.shape(similarity)
    if mask is not None:
        valid = ops.expand_dims(mask, (2, 3))
        similarity = ops.where(valid, similarity, SMALLEST_SIMILARITY)  # sorted to the end
    similarity = ops.reshape(ops.transpose(similarity, (0, 2, 3, 1)), (-1, t))
    order = ops.argsort(-similarity, axis=1)
    if segments is None:
        order = order[:, :size]
        group = ops.ones_like(order)
    else:
        segments = rows_of_heads(segments, h * c)
        by_segment = timesteps.stable_argsort(ops.take_along_axis(segments, order, axis=1))
        order = ops.take_along_axis(order, by_segment, axis=1)
        group = ops.take_along_axis(segments, order, axis=1)
        rank = timesteps.positions(t, None, timesteps.segment_numbers(group))
        group = ops.where(rank < size, group + 1, 0)
    if mask is not None:
        valid = ops.take_along_axis(rows_of_heads(mask, h * c), order, axis=1)
        group = ops.where(valid, group, 0)
    return order, group
