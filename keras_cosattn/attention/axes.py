"""Inputs with several axes of steps, `(b, *axes, m)`, as the `(b', t, m)` that a layer computes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from keras import ops

Tensor = Any
Shape = tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class AttentionAxes:
    """Which axes of an input attention mixes.

    Attention mixes the steps along the axes `steps`, in that order, the last of them fastest. The
    axes `others` join the batch: each of their entries is a sequence of its own.

    Args:
        steps: Tuple of integers, the axes that attention mixes.
        others: Tuple of integers, all further axes between the batch and the features.

    Example:
    >>> from keras_cosattn.attention.axes import AttentionAxes
    >>> axes = AttentionAxes.of(2, rank=4)
    >>> axes
    AttentionAxes(steps=(2,), others=(1,))
    >>> axes.fold_shape((5, 3, 7, 16))
    (15, 7, 16)
    """

    steps: tuple[int, ...]
    others: tuple[int, ...] = ()

    @classmethod
    def of(cls, attention_axes: int | tuple[int, ...] | None, rank: int) -> AttentionAxes:
        """Return the axes of an input of this rank.

        Args:
            attention_axes: Integer, or tuple of integers, negative ones count from the end. None
                stands for all axes but the first and the last.
            rank: Integer, number of axes of the input.

        Raises:
            ValueError: If an axis does not lie between the batch and the features, or is repeated.
        """
        between = tuple(range(1, rank - 1))
        if attention_axes is None:
            return cls(between)
        given = (attention_axes,) if isinstance(attention_axes, int) else tuple(attention_axes)
        steps = tuple(axis + rank if axis < 0 else axis for axis in given)
        if not set(steps) <= set(between) or len(set(steps)) < len(steps):
            raise ValueError(
                "`attention_axes` must be different axes between the batch and the features, "
                f"of {between} for an input of rank {rank}. "
                f"Received: attention_axes={attention_axes}"
            )
        return cls(steps, tuple(axis for axis in between if axis not in steps))

    @property
    def is_single(self) -> bool:
        """Whether inputs are `(b, t, m)` already."""
        return self.steps == (1,) and not self.others

    def fold_shape(self, shape: Shape) -> Shape:
        """Return the shape `(b, *axes, ...)` as `(b', t, ...)`. None is an unknown size."""
        between = (0, *self.others, *self.steps)
        return self.fold_sizes([*(shape[axis] for axis in between), *shape[len(between) :]])

    def fold_sizes(self, sizes: Any) -> tuple:
        """Return the sizes of the axes `(0, *others, *steps, ...)` as those of `(b', t, ...)`."""
        first, second = 1 + len(self.others), 1 + len(self.others) + len(self.steps)
        return (_product(sizes[:first]), _product(sizes[first:second]), *sizes[second:])

    def score_groups(self, query_shape: Shape, value_shape: Shape, heads: Any) -> tuple:
        """Return the sizes of the axes of scores in four groups, which fold to `(b', h, t, s)`."""
        batch = tuple(query_shape[axis] for axis in (0, *self.others))
        queries, keys = (
            tuple(shape[axis] for axis in self.steps) for shape in (query_shape, value_shape)
        )
        return batch, (heads,), queries, keys

    def scores_shape(self, query_shape: Shape, value_shape: Shape, heads: int) -> Shape:
        """Return `(b, *others, h, *steps of the queries, *steps of the keys)`."""
        return tuple(
            n for group in self.score_groups(query_shape, value_shape, heads) for n in group
        )


@dataclasses.dataclass(frozen=True)
class Folding:
    """The folding of one call: its axes, and the sizes to which outputs and scores unfold.

    Args:
        axes: An `AttentionAxes`.
        query_sizes: Tuple of integers or tensors, the shape of the query `(b, *axes, m)`.
        value_sizes: As `query_sizes`, of the value.
    """

    axes: AttentionAxes
    query_sizes: tuple
    value_sizes: tuple

    def fold(self, x: Tensor) -> Tensor:
        """Return `x (b, *axes, ...)` as `(b', t, ...)`: inputs, or masks of steps."""
        axes = self.axes
        kept = range(1 + len(axes.others) + len(axes.steps), len(x.shape))
        x = ops.transpose(x, (0, *axes.others, *axes.steps, *kept))
        return ops.reshape(x, _sizes(axes.fold_sizes(ops.shape(x))))

    def fold_inputs(self, query: Tensor, value: Tensor, key: Tensor) -> tuple:
        """Return the three, of which those that are one tensor stay one."""
        folded = self.fold(value)
        query = folded if query is value else self.fold(query)
        return query, folded, folded if key is value else self.fold(key)

    def fold_attention_mask(self, mask: Tensor) -> Tensor:
        """Return an attention mask as `(b' or 1, h or 1, t or 1, s or 1)`.

        Args:
            mask: Tensor that broadcasts to the shape of the scores. As in
                `keras.layers.MultiHeadAttention`, missing axes are inserted before those of the
                queries' steps.

        Raises:
            ValueError: If the mask does not broadcast to that shape.
        """
        others, steps, rank = len(self.axes.others), len(self.axes.steps), len(mask.shape)
        missing = 2 + others + 2 * steps - rank
        if missing < 0 or rank < 2 * steps:
            raise ValueError(self._mask_message(mask))
        start = rank - 2 * steps
        whole = ops.expand_dims(mask, tuple(range(start, start + missing)))
        sizes = ops.shape(whole)
        groups, position = [], 0
        for group in self._groups(sizes[1 + others]):
            found = sizes[position : position + len(group)]
            if not all(_broadcasts(n, full) for n, full in zip(found, group, strict=True)):
                raise ValueError(self._mask_message(mask))
            are_ones = all(isinstance(n, int) and n == 1 for n in found)
            groups.append(found if are_ones else group)
            position += len(group)
        whole = ops.broadcast_to(whole, [n for group in groups for n in group])
        return ops.reshape(whole, _sizes([math.prod(group) for group in groups]))

    def unfold(self, x: Tensor) -> Tensor:
        """Return `x (b', t, ...)` as `(b, *axes, ...)`, with the axes of the query."""
        order = (0, *self.axes.others, *self.axes.steps)
        sizes = [self.query_sizes[axis] for axis in order]
        x = ops.reshape(x, _sizes([*sizes, *ops.shape(x)[2:]]))
        return ops.transpose(x, (*np.argsort(order).tolist(), *range(len(order), len(x.shape))))

    def unfold_scores(self, scores: Tensor) -> Tensor:
        """Return scores `(b', h, t, s)` in the shape that `AttentionAxes.scores_shape` gives."""
        groups = self._groups(scores.shape[1])
        return ops.reshape(scores, _sizes([n for group in groups for n in group]))

    def _groups(self, heads):
        return self.axes.score_groups(self.query_sizes, self.value_sizes, heads)

    def _mask_message(self, mask):
        shape = tuple(n for group in self._groups("h") for n in group)
        return (
            f"`attention_mask` must broadcast to {shape}, with at least its last "
            f"{2 * len(self.axes.steps)} axes. Received: attention_mask.shape={tuple(mask.shape)}"
        )


def _product(sizes):
    return None if any(n is None for n in sizes) else math.prod(sizes)


def _broadcasts(size, full):
    return not isinstance(size, int) or not isinstance(full, int) or size in (1, full)


def _sizes(sizes):
    """The sizes for a reshape, with -1 for one that is only known when the graph runs."""
    unknown = [n for n in sizes if not isinstance(n, int)]
    return [-1 if len(unknown) == 1 and n is unknown[0] else n for n in sizes]
