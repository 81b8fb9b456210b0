"""Attention among the members of clusters: each cluster takes the steps most similar to it.

Shapes: c clusters, z = b * h * c.
"""

from keras import ops

from keras_cosattn.ops import arrays, timesteps
from keras_cosattn.ops.buckets import rows_of_heads, take_rows
from keras_cosattn.ops.windows import attend_in_blocks

LEAST = -2.0  # below any cosine


def member_attention(q, k, v, similarity, *, size, causal=False, mask=None, segments=None):
    """Softmax attention inside clusters, each of the w steps that are most similar to it.

    A step in several clusters gets the mean of its results; a step in none gets zero.

    Args:
        q, k: `(b, t, h, d)`, of the same steps.
        v: `(b, t, hk, e)`; all three finite.
        similarity: of step and cluster, more than -2, `(b, t, h, c)`.
        size: w.
        causal: let query t see keys s <= t. Who is a member still depends on later steps.
        mask: `(b, t)`, the real steps.
        segments: `(b, t)`, from `timesteps.segment_numbers`: each segment has its own w members.

    Returns `(b, t, h, e)`.
    O(c t log t + c w^2 (d + e)) time, with segments O(c t (log t + w (d + e))), per head.
    """
    b, t, h, c = ops.shape(similarity)
    if isinstance(t, int):
        size = min(size, t)
    order, group = _members(similarity, size, mask, segments)
    steps = {"group": group, "index": order}

    def sees(q, k):
        same = ops.logical_and(q["group"] == k["group"], k["group"] > 0)
        return ops.logical_and(same, k["index"] <= q["index"]) if causal else same

    reach = 0 if segments is None else 1
    before = reach * size
    mixed = attend_in_blocks(
        take_rows(q, order, c),
        arrays.pad_start(take_rows(k, order, c), before),
        arrays.pad_start(take_rows(v, order, h // v.shape[2] * c), before),
        steps,
        {name: arrays.pad_start(x, before) for name, x in steps.items()},
        sees,
        size=size,
        before=reach,
        after=reach,
    )
    e = v.shape[3]
    found = arrays.zero_masked(arrays.append_ones(mixed), group > 0)
    row = ops.expand_dims(ops.arange(ops.shape(order)[0], dtype="int32") // c, 1) * t + order
    total = ops.segment_sum(
        ops.reshape(found, (-1, e + 1)), ops.reshape(row, (-1,)), num_segments=b * h * t
    )
    return ops.transpose(ops.reshape(arrays.divide(total), (b, h, t, e)), (0, 2, 1, 3))


def _members(similarity, size, mask, segments):
    """Steps of each cluster in an order that has all its members, and their group: `(z, n)` both.

    Steps of one group see each other; group 0 is no member. n is w, or t with segments.
    """
    _, t, h, c = ops.shape(similarity)
    if mask is not None:
        real = ops.expand_dims(ops.expand_dims(mask, -1), -1)
        similarity = ops.where(real, similarity, LEAST)  # the last to be taken
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
        real = ops.take_along_axis(rows_of_heads(mask, h * c), order, axis=1)
        group = ops.where(real, group, 0)
    return order, group
