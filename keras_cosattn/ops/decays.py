"""Decay inside a block of steps: by what each step and the state before have faded.

`c_t` is the sum of the log decays of the steps of the block up to t. A key s fades by
`exp(c_t - c_s)` until step t. No exponent is large: later keys, where it would be positive, are
masked before the exponential.

Shapes: R = C * g rows of queries, g for each of the C steps, one after the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from keras_cosattn.ops import arrays

Tensor = Any

SMALLEST_LOG_DECAY = -5.0
"""Where each channel has a decay, a step fades by a factor of at least exp(-5) = 0.0067, so that
the exponents of a sub-chunk stay within 40."""

SUB_CHUNK = 16


def decay_of(log_decay: Tensor | None, rate: Tensor | None = None) -> NoDecay:
    """Return the decay of a block.

    Args:
        log_decay: tensor `(b or 1, C, h or 1, 1)` with a number for each head, or `(b, C, h, d)`
            with one for each channel of a key; at most 0. None stands for no decay.
        rate: tensor `(1, h, 1, 1)`, by which log decays of heads are multiplied. Differences of
            their sums are taken before, and are exact if the log decays are whole numbers.
    """
    if log_decay is None:
        return NoDecay()
    return HeadDecay(log_decay, rate) if log_decay.shape[3] == 1 else ChannelDecay(log_decay)


class NoDecay:
    """Nothing fades."""

    def pairs(self, rows: Tensor, keys: Tensor, allowed: Tensor, group: int) -> Tensor:
        """Return `rows . keys`, faded, where `allowed` is 1, and 0 elsewhere.

        Args:
            rows: tensor `(b, h, C * group, d)`.
            keys: tensor `(b, h, C, d)`.
            allowed: tensor that broadcasts to `(b, h, C * group, C)`, 0 for later keys.
            group: int, the rows of each step.
        """
        return ops.matmul(rows, ops.swapaxes(keys, 2, 3)) * allowed

    def from_start(self, rows: Tensor, group: int) -> Tensor:
        """Return rows that read the state before the block."""
        return rows

    def to_end(self, keys: Tensor) -> Tensor:
        """Return keys `(b, h, C, d)`, faded until the last step."""
        return keys

    def of_state(self, sums: Tensor) -> Tensor:
        """Return `sums (b, h, d, e)`, faded by all steps."""
        return sums


class HeadDecay(NoDecay):
    """One decay for each head and step. Arguments are those of `decay_of`."""

    def __init__(self, log_decay: Tensor, rate: Tensor | None = None) -> None:
        log_decay = arrays.heads_first(log_decay)
        self.rate = 1.0 if rate is None else rate
        self.sums = ops.cumsum(log_decay, axis=2)
        self.total = ops.sum(log_decay, axis=2, keepdims=True)

    def pairs(self, rows: Tensor, keys: Tensor, allowed: Tensor, group: int) -> Tensor:
        apart = arrays.repeat_rows(self.sums, group, axis=2) - ops.swapaxes(self.sums, 2, 3)
        return super().pairs(rows, keys, allowed, group) * ops.exp(apart * allowed * self.rate)

    def from_start(self, rows: Tensor, group: int) -> Tensor:
        return rows * arrays.repeat_rows(ops.exp(self.sums * self.rate), group, axis=2)

    def to_end(self, keys: Tensor) -> Tensor:
        return keys * ops.exp((self.total - self.sums) * self.rate)

    def of_state(self, sums: Tensor) -> Tensor:
        return sums * ops.exp(ops.swapaxes(self.total, 2, 3) * self.rate)


class ChannelDecay(HeadDecay):
    """One decay for each channel of a key, head and step, from log decays `(b, C, h, d)`.

    The product `sum_d rows exp(c_t - c_s) keys` is split as `(rows exp(c_t - r)) (keys exp(r -
    c_s))`, with a reference r in the middle of each sub-chunk of 16 steps (Yang et al., 2024,
    section 4.3). So a positive exponent is at most the decay of 8 steps.
    """

    def pairs(self, rows: Tensor, keys: Tensor, allowed: Tensor, group: int) -> Tensor:
        b, h, steps, d = ops.shape(keys)
        count = -(-steps // SUB_CHUNK)
        rest = self.total + ops.zeros((1, 1, count * SUB_CHUNK - steps, 1), self.total.dtype)
        sums = ops.concatenate([self.sums, rest], axis=2)
        sums = ops.reshape(sums, (b * h, count, SUB_CHUNK, d))
        reference = sums[:, :, SUB_CHUNK // 2 - 1 : SUB_CHUNK // 2]
        rows = arrays.pad_end(arrays.heads_first(rows), (count * SUB_CHUNK - steps) * group)
        rows = ops.reshape(arrays.heads_first(rows), (b * h, count, SUB_CHUNK * group, d))
        rows = rows * arrays.repeat_rows(ops.exp(sums - reference), group, axis=2)
        until_then = reference - ops.reshape(self.sums, (b * h, 1, steps, d))
        seen = _up_to_own_sub_chunk(steps, count, rows.dtype)
        keys = ops.reshape(keys, (b * h, 1, steps, d)) * ops.exp(until_then * seen)
        scores = ops.matmul(rows, ops.swapaxes(keys, 2, 3))
        scores = ops.reshape(scores, (b, h, count * SUB_CHUNK * group, steps))
        return scores[:, :, : steps * group] * allowed


def _up_to_own_sub_chunk(steps, count, dtype):
    """Return 1 for keys up to the end of each sub-chunk, `(count, steps, 1)`."""
    known = isinstance(steps, int)
    end: Any = np.arange(1, count + 1) if known else ops.arange(1, count + 1, dtype="int32")
    step: Any = np.arange(steps) if known else ops.arange(steps, dtype="int32")
    end, step = ops.reshape(end * SUB_CHUNK, (-1, 1, 1)), ops.reshape(step, (1, -1, 1))
    return ops.cast(step < end, dtype)
