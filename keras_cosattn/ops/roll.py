"""Rolling the features of a tensor, with operations that TFLite has."""

from __future__ import annotations

from typing import Any

from keras import ops


def roll(x: Any, shift: int) -> Any:
    """Return `ops.roll(x, shift, axis=-1)`, for which TFLite has no operation."""
    cut = -shift % x.shape[-1]
    return ops.concatenate([x[..., cut:], x[..., :cut]], axis=-1)
