"""LSH attention: each step attends to steps with the same hash."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from keras_cosattn.attention.arguments import positive
from keras_cosattn.attention.bucketed import BucketedAttention, unit
from keras_cosattn.ops import buckets

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from keras_cosattn.attention.options import AttentionOptions


@keras.saving.register_keras_serializable("keras_cosattn")
class LSHAttention(BucketedAttention):
    """LSH attention (Reformer): each step attends to steps with the same hash.

    `out_t = sum_s softmax_s(q_t . k_s / sqrt(d)) v_s`, with `k = q / ||q||` and s near t

    A round of hashing puts a step with query x into the bucket `argmax([x R; -x R])`. R is a random
    matrix `(d, num_buckets / 2)` for each head, so queries of similar direction often share a
    bucket. A step with r earlier steps in its bucket belongs to chunk `floor(r / C)` of the bucket,
    with `C = bucket_size`. It attends to the steps of its bucket in its own chunk and the one
    before. The softmax is over the keys of all `num_hashes` rounds, and each key counts once. A
    step attends to itself only if it attends to nothing else.

    The layer attends in both directions or causally, and inside packed sequences. It cannot do
    cross-attention. A `position` that rotates or encodes changes the scores and not the hashes.
    Dropout acts on the mixed values.

    For n steps it takes O(num_hashes n (log n + C (d + e) + num_buckets d)) time and
    O(num_hashes n (C + d + e + num_buckets)) memory for each head. To count each key once takes
    another O(num_hashes^2 n C) time. A stream keeps `max_length` steps: a step takes
    O(max_length (d + e + num_hashes)) time, and the state has
    O(max_length (d + e + 2 num_hashes)) numbers for each head.

    Where this differs from the paper: the paper cuts the list of all steps, sorted by bucket, into
    chunks. Their borders move with later steps. Here the chunks begin with each bucket, and only
    earlier steps count. So the causal form never depends on the future, and a stream gives the same
    numbers. Buckets can have any size, but only two chunks of C steps are attended to. The matrices
    R are drawn once, saved, and used in every call, where the paper's code draws them in each call.
    Scores are divided by sqrt(d), as in equation 1. The paper's code uses `q_t . k_s` with unit
    keys without a division.

    Args:
        num_heads: int, h, the number of query heads.
        key_dim: int, d, the size of a query or key head.
        num_hashes: int, the number of rounds of hashing. Defaults to `4`.
        num_buckets: int, the number of buckets in each round: an even number, or 1, which puts all
            steps into one bucket. Defaults to `32`.
        bucket_size: int, C, the number of steps in a chunk. Defaults to `64`.
        max_length: int, the number of steps that a stream can hold. A layer without it cannot
            stream. A whole sequence may have any length. Defaults to `None`.
        *args, **kwargs: Other arguments of `Attention`, such as `dropout` and
            `num_key_value_heads`. `seed` is also the seed of the matrices R.

    Raises:
        ValueError: If `num_buckets` is odd and not 1, or if a call asks for what the layer cannot
            do.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn import LSHAttention
    >>> layer = LSHAttention(num_heads=2, key_dim=4, num_hashes=2, num_buckets=4, bucket_size=8)
    >>> x = np.ones((1, 10, 8), "float32")
    >>> tuple(layer(x, x, use_causal_mask=True).shape)
    (1, 10, 8)

    Reference:
        - [Kitaev et al., 2020](https://arxiv.org/abs/2001.04451), section 2, equations 1-6
    """

    own_key_last = True

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        *args: Any,
        num_hashes: int = 4,
        num_buckets: int = 32,
        bucket_size: int = 64,
        max_length: int | None = None,
        **kwargs: Unpack[AttentionOptions],
    ):
        super().__init__(num_heads, key_dim, *args, max_length=max_length, **kwargs)
        self.num_hashes = positive("num_hashes", num_hashes)
        self.num_buckets = positive("num_buckets", num_buckets)
        self.bucket_size = positive("bucket_size", bucket_size)
        if num_buckets > 1 and num_buckets % 2:
            raise ValueError(
                "`num_buckets` must be even, a direction and its opposite, or 1. "
                f"Received: num_buckets={num_buckets}"
            )

    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        if self.num_buckets > 1:
            self.rotations = self.add_weight(
                name="rotations",
                shape=(self.num_heads, self.key_dim, self.num_hashes * self.num_buckets // 2),
                initializer=keras.initializers.RandomNormal(stddev=1.0, seed=self.seed),
                trainable=False,
                dtype="float32",
                autocast=False,
            )

    @property
    def _bucket_count(self):
        return self.num_buckets

    @property
    def _chunk_size(self):
        return self.bucket_size

    @property
    def _rounds(self):
        return self.num_hashes

    def _buckets(self, q):
        b, t = ops.shape(q)[:2]
        shape = (b, t, self.num_heads, self.num_hashes)
        if self.num_buckets == 1:
            return ops.zeros(shape, "int32")
        projected = ops.einsum("bthd,hdf->bthf", q, ops.convert_to_tensor(self.rotations))
        rounds = self.num_heads * self.num_hashes
        projected = ops.reshape(projected, (b, t, rounds, self.num_buckets // 2))
        bucket = buckets.largest(ops.concatenate([projected, -projected], axis=-1))
        return ops.reshape(bucket, shape)

    def _query_and_key(self, q):
        return q, unit(q)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_hashes": self.num_hashes,
            "num_buckets": self.num_buckets,
            "bucket_size": self.bucket_size,
        }
