"""Softmax attention through landmarks: means of the queries and of the keys."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_cosattn.ops import arrays, dense, timesteps

Tensor = Any


def nystrom_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_landmarks: int,
    pinv_iterations: int = 6,
    query_mask: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Nystrom attention: `softmax(q K~^T) pinv(softmax(Q~ K~^T)) softmax(Q~ k^T) v`.

    All scores are divided by sqrt(d). Q~ and K~ are L landmarks: of n valid steps, step i is
    averaged into landmark `floor(i L / n)`. If n < L, each step is its own landmark, and the other
    landmarks do not exist.

    It takes O((t + s) L (d + e) + pinv_iterations L^3) time and
    O((t + s) L + pinv_iterations L^2) memory for each head.

    Args:
        q: tensor `(b, t, h, d)`; h is a multiple of hk.
        k: tensor `(b, s, hk, d)`.
        v: tensor `(b, s, hk, e)`.
        num_landmarks: int, L.
        pinv_iterations: int, the iterations of `pseudo_inverse`. Defaults to `6`.
        query_mask: bool tensor `(b, t)`, the valid queries.
        mask: bool tensor `(b, s)`, the valid keys.

    Returns:
        Tensor `(b, t, h, e)`. A row with nothing to attend to is zero.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn.ops import nystrom_attention
    >>> q = np.ones((2, 5, 4, 3), "float32")
    >>> tuple(nystrom_attention(q, q, q, num_landmarks=2).shape)
    (2, 5, 4, 3)

    Reference:
        - [Xiong et al., 2021](https://arxiv.org/abs/2102.03902), equations 13-17
    """
    q, k = arrays.accumulate(q), arrays.zero_masked(arrays.accumulate(k), mask)
    v = arrays.zero_masked(arrays.accumulate(v), mask)
    q_mean, q_exists = landmarks(arrays.zero_masked(q, query_mask), num_landmarks, query_mask)
    k_mean, k_exists = landmarks(k, num_landmarks, mask)
    number = num_landmarks
    landmark_pairs = timesteps.pair_mask(number, number, query_mask=q_exists, key_mask=k_exists)
    between = dense.attention_weights(q_mean, k_mean, landmark_pairs)
    key_pairs = timesteps.pair_mask(number, ops.shape(k)[1], query_mask=q_exists, key_mask=mask)
    read, _ = dense.attend(q_mean, k, v, key_pairs)
    read = dense.mix(pseudo_inverse(between, pinv_iterations), read)
    mixed, _ = dense.attend(q, k_mean, read, timesteps.pair_mask(1, number, key_mask=k_exists))
    return arrays.zero_masked(mixed, query_mask)


def landmarks(x: Tensor, number: int, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Average the valid steps in groups of neighbours.

    Args:
        x: tensor `(b, t, h, d)`, zero at masked steps.
        number: int, the number of groups.
        mask: bool tensor `(b, t)`, the valid steps.

    Returns:
        The means `(b, number, h, d)`, and a bool tensor `(b or 1, number)` of those that exist.
    """
    b, t = ops.shape(x)[:2]
    position = timesteps.positions(t, mask)
    count = arrays.pad_start(position, 1)[:, -1:] + 1  # there may be no steps
    landmark = ops.floor_divide(position * ops.minimum(number, count), count)
    index = ops.arange(number, dtype="int32")
    inside = ops.equal(ops.reshape(index, (1, -1, 1)), ops.expand_dims(landmark, 1))
    if mask is not None:
        inside = ops.logical_and(inside, ops.expand_dims(mask, 1))
    inside = ops.cast(inside, x.dtype)  # (b or 1, number, t)
    size = ops.sum(inside, axis=2, keepdims=True)
    h, d = x.shape[2:]
    mean = ops.matmul(inside, ops.reshape(x, (b, t, h * d))) / ops.maximum(size, 1)
    return ops.reshape(mean, (b, number, h, d)), size[:, :, 0] > 0


def pseudo_inverse(matrix: Tensor, iterations: int) -> Tensor:
    """Approximate the Moore-Penrose inverse of each `matrix (..., m, n)`, a tensor `(..., n, m)`.

    `Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4`, from `Z = A^T / (|A|_1 |A|_inf)`

    The norms are those of each single matrix, so the result for a matrix does not depend on the
    others. While a singular value of A Z is small, an iteration multiplies it by 13 / 4. After
    that, each iteration cubes its distance from 1. Rows and columns of zeros stay zero, and do not
    change the rest.

    Reference:
        - [Xiong et al., 2021](https://arxiv.org/abs/2102.03902), equation 14 and lemma 1
    """
    size = ops.abs(matrix)
    norms = ops.max(ops.sum(size, axis=-2), axis=-1) * ops.max(ops.sum(size, axis=-1), axis=-1)
    norms = ops.expand_dims(ops.where(norms > 0, norms, 1.0), (-2, -1))
    inverse = ops.swapaxes(matrix, -1, -2) / norms
    eye = ops.eye(matrix.shape[-2], dtype=matrix.dtype)
    for _ in range(iterations):
        product = ops.matmul(matrix, inverse)
        inner = 15 * eye - ops.matmul(product, 7 * eye - product)
        inverse = ops.matmul(inverse, 13 * eye - ops.matmul(product, inner)) / 4
    return inverse


def convolve_steps(v: Tensor, kernel: Tensor, mask: Tensor | None = None) -> Tensor:
    """Convolve each head along time: `out_t = sum_j kernel_j v_(t + j - (n - 1) / 2)`.

    It takes O(t n e) time for each head.

    Args:
        v: tensor `(b, t, h, e)`.
        kernel: tensor `(n, h)`, n odd.
        mask: bool tensor `(b, t)`, the valid steps. Masked steps do not exist, and give zero.

    Returns:
        Tensor `(b, t, h, e)`.
    """
    b, t, h, e = ops.shape(v)
    v, restore = arrays.accumulate(v), None
    if mask is not None:
        order, restore = timesteps.valid_first(mask)
        v = timesteps.take_steps(arrays.zero_masked(v, mask), order)
    kernel = ops.expand_dims(ops.repeat(arrays.accumulate(kernel), e, axis=1), 2)  # (n, h e, 1)
    out = ops.depthwise_conv(ops.reshape(v, (b, t, h * e)), kernel, padding="same")
    out = ops.reshape(out, (b, t, h, e))
    return out if mask is None else arrays.zero_masked(timesteps.take_steps(out, restore), mask)
