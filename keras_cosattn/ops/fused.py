"""Softmax attention without its weights, by the backend's own operation where that is faster."""

from __future__ import annotations

from typing import Any

import keras
from keras import backend, ops

from keras_cosattn.ops import arrays, dense, timesteps

Tensor = Any


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    causal: bool = False,
    may_see_nothing: bool = True,
    flash_attention: bool | None = None,
    logit_soft_cap: float | None = None,
) -> Tensor:
    """Return what `dense.attend` returns first, without the weights.

    On JAX and PyTorch this is `keras.ops.dot_product_attention`, which has kernels that never
    store the scores. Its products then take operands in the dtype of v and sum in float32. On
    TensorFlow the same operation rounds the scores of half precision, and has no such kernel.
    There, and wherever scores are capped, this is two products, as in `dense.attend`.

    It takes O(t s (d + e)) time for each head, and O(t s) memory where no kernel saves it.

    Args:
        q: tensor `(b, t, h, d)`; h is a multiple of hk.
        k: tensor `(b, s, hk, d)`.
        v: tensor `(b, s, hk, e)`.
        allowed: bool tensor that broadcasts to `(b, h, t, s)`. None means all pairs.
        bias: tensor `(b or 1, h or 1, t, s)`, added to the scaled scores. t and s may also be 1.
        causal: bool. If True, query t attends to keys s <= t only. Defaults to `False`.
        may_see_nothing: bool. If False, it is known that each query is allowed to attend to some
            key, or that its output does not count. If True, the output of a query without any key
            is made zero. Defaults to `True`.
        flash_attention: bool. If False, the kernels that never store the scores are not used.
            Defaults to `None`, the choice of the backend.
        logit_soft_cap: float, as in `softmax_attention`. Defaults to `None`, no cap.

    Returns:
        Tensor `(b, t, h, e)`.
    """
    t, s = ops.shape(q)[1], ops.shape(k)[1]
    if allowed is not None and len(allowed.shape) < 4:
        allowed = ops.expand_dims(allowed, tuple(range(4 - len(allowed.shape))))
    if logit_soft_cap is None and _has_operation(k, v):
        mixed = _by_operation(q, k, v, allowed, bias, causal, flash_attention)
    else:
        pairs = timesteps.pair_mask(t, s, causal=causal)
        logits = dense.logits(q, k, timesteps.combine(allowed, pairs), bias, logit_soft_cap)
        mixed = dense.mix(ops.softmax(logits), arrays.accumulate(v))
    if allowed is None or not may_see_nothing:
        return mixed
    # Numbers, as GPU delegates have no `any`.
    sees = ops.max(ops.cast(allowed, mixed.dtype), axis=-1, keepdims=True, initial=0)
    return mixed * ops.transpose(sees, (0, 2, 1, 3))


def _has_operation(k, v):
    """Whether the backend's operation is faster and as exact as two products.

    On TensorFlow it is not: `benchmarks/formulations.py` measures both, and XLA's gradient is
    faster in two products. On JAX and PyTorch it computes float64 in float32, and takes as many
    heads of values as of keys. On JAX these have one size.
    """
    if backend.standardize_dtype(v.dtype) == "float64" or k.shape[2] != v.shape[2]:
        return False
    same_size = k.shape[-1] == v.shape[-1]
    return backend.backend() == "torch" or (backend.backend() == "jax" and same_size)


def _by_operation(q, k, v, allowed, bias, causal, flash_attention):
    """`keras.ops.dot_product_attention`. Rows with nothing to attend to are finite."""
    if bias is None:
        q, k = ops.cast(q, v.dtype), ops.cast(k, v.dtype)
    else:  # the operation rounds the bias to the dtype of the others
        q, k, v, bias = map(arrays.accumulate, (q, k, v, bias))
    pairs = ops.shape(q)[1], ops.shape(k)[1]
    if allowed is not None:  # cuDNN's kernel has masks of all pairs only
        allowed = ops.broadcast_to(allowed, (*allowed.shape[:2], *pairs))
    if bias is not None:
        bias = ops.broadcast_to(bias, (*bias.shape[:2], *pairs))
    if None not in (allowed, bias):  # PyTorch takes one of them
        allowed, bias = None, ops.where(allowed, bias, dense.FORBIDDEN)
    return ops.dot_product_attention(
        q,
        k,
        v,
        bias=bias,
        mask=allowed,
        scale=q.shape[-1] ** -0.5,
        is_causal=causal,
        flash_attention=_kernels(flash_attention),
    )


def _kernels(flash_attention):
    """Return False if kernels that never store the scores are not wanted, or wrong."""
    # On TPUs, Keras 3.15 gives all examples the mask of the first one, and a causal mask to a call
    # without any.
    wrong = backend.backend() == "jax" and any(
        name.startswith("tpu") for name in keras.distribution.list_devices()
    )
    wanted = False not in (flash_attention, keras.config.is_flash_attention_enabled())
    return None if wanted and not wrong else False
