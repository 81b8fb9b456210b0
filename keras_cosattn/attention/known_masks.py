"""The factors of an attention mask whose numbers are known: padding and a lower triangle."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class MaskFactors:
    """Factors of an attention mask.

    Args:
        query_mask: Boolean array `(b or 1, t)`, True for queries that see any key. None means all.
        key_mask: Boolean array `(b or 1, s)`, True for keys that are seen.
        causal: Boolean, whether query i sees keys j <= i only.
    """

    query_mask: np.ndarray | None
    key_mask: np.ndarray
    causal: bool


def known_factors(mask: np.ndarray) -> MaskFactors | None:
    """Return the factors of a mask, or None if it has others than padding and causality.

    Two kinds are found: padding alone, `mask[b, i, j] == query[b, i] and key[b, j]`, and padding
    times a lower triangle, `mask[b, i, j] == (j <= i) and key[b, j]`. In the second kind the rows
    of steps that are no keys may also be False: steps that take no part give no output.

    Args:
        mask: Boolean array that broadcasts to `(b, h, t, s)`; of rank 3 it is `(b, t, s)`.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn.attention.known_masks import known_factors
    >>> mask = np.tril(np.ones((1, 3, 3), bool)) & np.array([True, True, False])
    >>> known_factors(mask)
    MaskFactors(query_mask=None, key_mask=array([[ True,  True, False]]), causal=True)
    """
    mask = _without_heads(np.asarray(mask, bool))
    if mask is None:
        return None
    rows, keys = np.any(mask, axis=2), np.any(mask, axis=1)
    if np.array_equal(mask, rows[:, :, None] & keys[:, None]):
        return MaskFactors(None if rows.all() else rows, keys, causal=False)
    queries, steps = mask.shape[1:]
    if queries != steps:
        return None
    causal = np.tril(np.ones((steps, steps), bool)) & keys[:, None]
    as_expected = (mask == causal).all(2) | ~(rows | keys)
    return MaskFactors(None, keys, causal=True) if as_expected.all() else None


def _without_heads(mask):
    """The mask as `(b or 1, t, s)`. None if the heads differ."""
    if mask.ndim == 4:
        return mask[:, 0] if (mask == mask[:, :1]).all() else None
    return mask.reshape((1,) * (3 - mask.ndim) + mask.shape)
