"""Where the steps of a cosFormer stand: lengths, positions and half-horizons."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_cosattn.ops.block_size import Sizes

Tensor = Any
Size = Any  # an int, or an integer tensor in a graph with dynamic shapes


def steps_of_half(steps: Sizes, half: int) -> tuple[Sizes, bool]:
    """Return sizes of chunks that end where half-horizons end, and whether there are such sizes."""
    chunk = min(steps.chunk, half)
    aligned = next(size for size in range(chunk, 0, -1) if half % size == 0)
    if 2 * aligned < chunk:
        return steps, False
    return Sizes(aligned, aligned if steps.loops_over_chunks else steps.block), True


def check_length(
    max_length: int | None, segments: Tensor | None, *sides: tuple[Size, Tensor | None]
) -> None:
    """Raise ValueError if a side, `(steps, mask)`, is known to have too many valid steps."""
    known = [n for n, mask in sides if isinstance(n, int) and mask is None and segments is None]
    if max_length is not None and max(known, default=0) > max_length:
        raise ValueError(
            f"The sequence has {max(known)} steps, but max_length={max_length}. Beyond it the "
            "cosine is negative. Build the layer with a larger `max_length`, or for causal "
            "input without end with `horizon` instead."
        )


def in_half(count: Tensor, half: int) -> Tensor:
    """Return `count (b,)` without the half-horizons that ended before the last step."""
    return count - ops.maximum(count - 1, 0) // half * half


def clip_positions(max_length: int | None, position: Tensor) -> Tensor:
    """Return positions of at most `max_length - 1`, which all steps beyond share."""
    return position if max_length is None else ops.minimum(position, max_length - 1)


def longest(t: Size, s: Size, query_mask: Tensor | None, mask: Tensor | None) -> Size:
    """Return M of the paper's code, the larger number of valid queries or keys.

    It is an integer, or an integer tensor `(b, 1)`.
    """
    if query_mask is None and mask is None and isinstance(t, int) and isinstance(s, int):
        return max(t, s)
    queries = t if query_mask is None else ops.sum(ops.cast(query_mask, "int32"), 1, keepdims=True)
    keys = s if mask is None else ops.sum(ops.cast(mask, "int32"), 1, keepdims=True)
    return ops.maximum(ops.maximum(queries, keys), 1)


def half_runs(half: Tensor, segments: Tensor | None, b: Size) -> Tensor:
    """Return runs that rise by 1 with each half-horizon and by 2 with each segment."""
    if segments is None:
        return ops.broadcast_to(half, (b, ops.shape(half)[1]))
    changed = ops.not_equal(segments[:, 1:], segments[:, :-1])
    rise = ops.where(changed, 2, half[:, 1:] - half[:, :-1])
    return ops.cumsum(ops.concatenate([half[:, :1], rise], axis=1), axis=1)
