"""LSH attention: each step attends to the steps whose hash is its own."""

import keras
from keras import ops

from keras_cosattn.attention.arguments import positive
from keras_cosattn.attention.bucketed import BucketedAttention, unit
from keras_cosattn.ops import buckets


@keras.saving.register_keras_serializable("keras_cosattn")
class LSHAttention(BucketedAttention):
    """LSH attention: `out_t = sum_s softmax_s(q_t . k_s / sqrt(d)) v_s`, `k = q / ||q||`, s near t.

    A round of hashing puts each step into the bucket `argmax([x R; -x R])`, x its query and R
    random, `(d, num_buckets / 2)` for each head: vectors of similar direction tend to meet. A step
    with r earlier steps in its bucket is in chunk `floor(r / C)`, `C = bucket_size`, and sees the
    steps of its bucket in its own chunk and the one before. The softmax is over all keys seen in
    any of the `num_hashes` rounds, each once. A step sees itself only if it sees nothing else.

    Both directions, causal, packed; self-attention only. n steps: O(num_hashes n (log n + C (d +
    e) + num_buckets d)) time and O(num_hashes n (C + d + e + num_buckets)) memory per head, and
    O(num_hashes^2 n C) for counting keys once. Streams with a cache of `max_length` steps: a step
    costs O(max_length (d + e + num_hashes)), the float32 state is O(max_length (d + e + 2
    num_hashes)) per head. Dropout acts on the mixed values.
    Positions: encodings, which change the scores and not the hashes.
    Kitaev et al., 2020 (Reformer), section 2, eq. 1-6.

    Where we leave the paper: its chunks cut the list of all steps sorted by bucket, so their
    borders move with later steps; ours begin with each bucket and count the past only. Hence the
    causal form never depends on the future, and a stream gives the same numbers. Our buckets
    can have any size; only two chunks of C of them are seen. Rotations are drawn once,
    saved, and used in every call, where its code draws them anew. Scores are divided by sqrt(d), as
    in eq. 1; its code takes `q_t . k_s` with unit keys as it is.

    Args:
        num_heads, key_dim, *args, **kwargs: as `Attention`; `seed` is also that of the rotations.
        num_hashes: rounds of hashing.
        num_buckets: in each round, even; or 1, which hashes nothing.
        bucket_size: C, the steps of a chunk.
        max_length: as `SoftmaxAttention`.
    """

    own_key_last = True

    def __init__(
        self, num_heads, key_dim, *args, num_hashes=4, num_buckets=32, bucket_size=64, **kwargs
    ):
        super().__init__(num_heads, key_dim, *args, **kwargs)
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
    def _chunk(self):
        return self.bucket_size

    @property
    def _rounds(self):
        return self.num_hashes

    def _buckets(self, q):
        b, t = ops.shape(q)[:2]
        shape = (b, t, self.num_heads, self.num_hashes)
        if self.num_buckets == 1:
            return ops.zeros(shape, "int32")
        turned = ops.einsum("bthd,hdf->bthf", q, ops.convert_to_tensor(self.rotations))
        rounds = self.num_heads * self.num_hashes
        turned = ops.reshape(turned, (b, t, rounds, self.num_buckets // 2))
        bucket = buckets.largest(ops.concatenate([turned, -turned], axis=-1))
        return ops.reshape(bucket, shape)

    def _query_and_key(self, q):
        return q, unit(q)

    def get_config(self):
        return {
            **super().get_config(),
            "num_hashes": self.num_hashes,
            "num_buckets": self.num_buckets,
            "bucket_size": self.bucket_size,
        }
