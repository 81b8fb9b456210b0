"""A causal convolution of a few steps for each channel, which continues from a state."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_cosattn.ops import timesteps

Tensor = Any


def short_convolution(
    x: Tensor,
    kernel: Tensor,
    history: Tensor,
    *,
    mask: Tensor | None = None,
    runs: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Convolve each channel over the past: `out_t = sum_(j < K) w_j x_(t - K + 1 + j)`.

    A sum of K products: for kernels of a few steps this is faster than a convolution, and nothing
    is moved to other axes. O(t K c) time.

    Args:
        x: tensor `(b, t, c)`. Valid steps come first.
        kernel: tensor `(K, c)`.
        history: tensor `(b, K - 1, c)`, the valid steps before; zeros at the start.
        mask: bool tensor `(b, t)`, the valid steps. Defaults to `None`: all are.
        runs: int32 tensor `(b, t)` that never falls, 0 for steps of the run of `history`. A step
            reads no step of another run. Defaults to `None`: one run.

    Returns:
        The outputs `(b, t, c)`, and the history for the next steps.
    """
    taps, t = kernel.shape[0], ops.shape(x)[1]
    joined = ops.concatenate([ops.cast(history, x.dtype), x], axis=1)
    ids = None
    if runs is not None:
        before = ops.zeros((ops.shape(runs)[0], taps - 1), "int32")
        ids = ops.concatenate([before, runs], axis=1)
    out = x * kernel[taps - 1]
    for j in range(taps - 1):
        earlier = joined[:, j : j + t]
        if ids is not None:
            earlier = earlier * _same(ids[:, j : j + t], runs, x.dtype)
        out = out + earlier * kernel[j]
    if ids is not None:
        last = ops.max(ids, axis=1, keepdims=True)
        joined = joined * _same(ids, last, x.dtype)
    return out, timesteps.last_valid(joined, mask, taps - 1)


def _same(ids, others, dtype):
    return ops.expand_dims(ops.cast(ops.equal(ids, others), dtype), 2)
