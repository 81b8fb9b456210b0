"""Softmax attention through landmarks: means of the queries and of the keys."""

from keras import ops

from keras_cosattn.ops import arrays, dense, timesteps


def nystrom_attention(q, k, v, *, num_landmarks, pinv_iterations=6, query_mask=None, mask=None):
    """`softmax(q K~^T) pinv(softmax(Q~ K~^T)) softmax(Q~ k^T) v`, all scaled by `1 / sqrt(d)`.

    Q~ and K~ are L landmarks: of n real steps, step i is averaged into landmark `floor(i L / n)`;
    if n < L each step is a landmark of its own, and the other landmarks do not exist.

    Args:
        q: `(b, t, h, d)`; h a multiple of the key heads.
        k, v: `(b, s, hk, d)` and `(b, s, hk, e)`.
        num_landmarks: L.
        pinv_iterations: of `pseudo_inverse`.
        query_mask, mask: `(b, t)` and `(b, s)`, True where a query or key takes part.

    Returns `(b, t, h, e)`; a row with nothing to attend to is zero.
    O((t + s) L (d + e) + pinv_iterations L^3) time and O((t + s) L + pinv_iterations L^2) memory
    per head. Xiong et al., 2021, eq. 13-17.
    """
    q, k = arrays.accumulate(q), arrays.zero_masked(arrays.accumulate(k), mask)
    v = arrays.zero_masked(arrays.accumulate(v), mask)
    q_mean, q_exists = landmarks(arrays.zero_masked(q, query_mask), num_landmarks, query_mask)
    k_mean, k_exists = landmarks(k, num_landmarks, mask)
    number = num_landmarks
    among = timesteps.pair_mask(number, number, query_mask=q_exists, key_mask=k_exists)
    between = dense.attention_weights(q_mean, k_mean, among)
    over_keys = timesteps.pair_mask(number, ops.shape(k)[1], query_mask=q_exists, key_mask=mask)
    read, _ = dense.attend(q_mean, k, v, over_keys)
    read = dense.mix(pseudo_inverse(between, pinv_iterations), read)
    mixed, _ = dense.attend(q, k_mean, read, timesteps.pair_mask(1, number, key_mask=k_exists))
    return arrays.zero_masked(mixed, query_mask)


def landmarks(x, number, mask=None):
    """The means of `number` runs of real steps of `x (b, t, h, d)`, and which of them exist.

    Returns `(b, number, h, d)` and bool `(b or 1, number)`. x must be zero where masked.
    """
    b, t = ops.shape(x)[:2]
    position = timesteps.positions(t, mask)
    count = ops.reshape(position[:, -1] + 1, (-1, 1))
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


def pseudo_inverse(matrix, iterations):
    """The Moore-Penrose inverse of each `matrix (..., m, n)`, nearly: `(..., n, m)`.

    `Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4` from `Z = A^T / (|A|_1 |A|_inf)`, with the
    norms of each matrix, so that no matrix depends on its neighbours. While a singular value of
    A Z is small, an iteration multiplies it by 13 / 4; then its distance from 1 is cubed. Zero
    rows and columns stay zero, and change nothing. Xiong et al., 2021, eq. 14 and lemma 1.
    """
    size = ops.abs(matrix)
    norms = ops.max(ops.sum(size, axis=-2), axis=-1) * ops.max(ops.sum(size, axis=-1), axis=-1)
    norms = ops.expand_dims(ops.expand_dims(ops.where(norms > 0, norms, 1.0), -1), -1)
    inverse = ops.swapaxes(matrix, -1, -2) / norms
    eye = ops.eye(matrix.shape[-2], dtype=matrix.dtype)
    for _ in range(iterations):
        product = ops.matmul(matrix, inverse)
        inner = 15 * eye - ops.matmul(product, 7 * eye - product)
        inverse = ops.matmul(inverse, 13 * eye - ops.matmul(product, inner)) / 4
    return inverse


def convolve_steps(v, kernel, mask=None):
    """`out_t = sum_j kernel_j v_(t + j - (n - 1) / 2)`: `(b, t, h, e)`, each head by itself.

    kernel `(n, h)`, n odd. Masked steps do not exist, and give zero. O(t n e) time per head.
    """
    b, t, h, e = ops.shape(v)
    v, restore = arrays.accumulate(v), None
    if mask is not None:
        order, restore = timesteps.valid_first(mask)
        v = timesteps.take_steps(arrays.zero_masked(v, mask), order)
    each = ops.repeat(arrays.accumulate(kernel), e, axis=1)  # (n, h * e)
    each = ops.expand_dims(each, 2)
    out = ops.depthwise_conv(ops.reshape(v, (b, t, h * e)), each, padding="same")
    out = ops.reshape(out, (b, t, h, e))
    return out if mask is None else arrays.zero_masked(timesteps.take_steps(out, restore), mask)
