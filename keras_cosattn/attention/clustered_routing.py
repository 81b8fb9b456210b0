"""Clustered routing attention: each step attends inside the clusters that its content chooses."""

import math

import keras
from keras import ops

from keras_cosattn.attention.arguments import positive
from keras_cosattn.attention.bucketed import BucketedAttention, unit
from keras_cosattn.ops import arrays, buckets
from keras_cosattn.ops.members import member_attention


@keras.saving.register_keras_serializable("keras_cosattn")
class ClusteredRoutingAttention(BucketedAttention):
    """Routing attention: `out_t = sum_s softmax_s(sqrt(d) x_t . x_s) v_s`, s in a cluster of t.

    x is the unit query, which is the key too. Each head has `num_clusters` centroids.

    Both ways, a cluster takes the `cluster_size` steps x whose cosine to its centroid is largest,
    and they attend to each other. A step in several clusters gets the mean of its results, a step
    in none zero. Such a choice needs the whole sequence: a later step can push an earlier one out.
    So the causal form is another: a step belongs to the nearest centroid alone; with r earlier
    steps there it is in chunk `floor(r / cluster_size)`, and sees the past steps of its cluster in
    its own chunk and the one before. It never depends on the future, and streams.
    With `strict=False` the causal form chooses as both ways does, and hides later keys only: the
    paper's form, whose outputs do depend on later steps through who is chosen.

    In training, after the outputs, each centroid c moves to `decay c + (1 - decay) mean of its
    nearest x`; one with none stays. Otherwise they are fixed.

    Both directions, causal, packed; self-attention only. n steps, k clusters of w: O(n k d + k n
    log n + k w^2 (d + e)) time both ways, O(n^1.5 d) for k = w = sqrt(n); packed O(k n w (d + e))
    for the last term. Causal O(n (k d + log n + w (d + e))). Memory O(n k + k w (w + d + e)) and
    O(n (k + w + d + e)) per head. Streams with a cache of `max_length` steps: a step costs
    O(max_length (d + e) + k d), the float32 state is O(max_length (d + e)) per head.
    Dropout acts on the mixed values. Positions: encodings, which change the scores and
    not the clusters. Roy et al., 2021 (Routing Transformer), section 4 and algorithm 1.

    Where we leave the paper: the causal form above; x is not centred before it gets unit length;
    cosines choose, so a centroid's length does not count; centroids move to a mean, not to a sum;
    there are no heads of local attention beside.

    Args:
        num_heads, key_dim, *args, **kwargs: as `Attention`; `seed` is also that of the centroids.
        num_clusters: k, for each head.
        cluster_size: w, and the chunk of the causal form.
        decay: of the centroids' moving averages.
        strict: never look at the future if causal; False is the paper's form, for comparison.
        max_length: as `SoftmaxAttention`.
    """

    def __init__(
        self,
        num_heads,
        key_dim,
        *args,
        num_clusters=16,
        cluster_size=64,
        decay=0.999,
        strict=True,
        **kwargs,
    ):
        super().__init__(num_heads, key_dim, *args, **kwargs)
        self.num_clusters = positive("num_clusters", num_clusters)
        self.cluster_size = positive("cluster_size", cluster_size)
        if not 0 <= decay <= 1:
            raise ValueError(f"`decay` must be between 0 and 1. Received: decay={decay!r}")
        self.decay = decay
        self.strict = strict

    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        self.centroids = self.add_weight(
            name="centroids",
            shape=(self.num_heads, self.num_clusters, self.key_dim),
            initializer=keras.initializers.RandomNormal(
                stddev=1 / math.sqrt(self.key_dim), seed=self.seed
            ),
            trainable=False,
            dtype="float32",
            autocast=False,
            aggregation="mean",
        )

    @property
    def cannot(self):
        """What the layer refuses: use -> reason."""
        if self.strict:
            return super().cannot
        reason = "later steps change which steps a cluster has. Use `strict=True`."
        return {**super().cannot, "stream": reason}

    @property
    def _bucket_count(self):
        return self.num_clusters

    @property
    def _chunk(self):
        return self.cluster_size

    def _buckets(self, q):
        return ops.expand_dims(buckets.largest(self._similarity(unit(q))), -1)

    def _query_and_key(self, q):
        q = unit(q) * math.sqrt(self.key_dim)
        return q, q

    def _similarity(self, x):
        """Cosines of `x (b, t, h, d)`, of unit length, and centroids: `(b, t, h, k)`."""
        centroids = unit(ops.convert_to_tensor(self.centroids))
        return ops.einsum("bthd,hkd->bthk", ops.stop_gradient(x), centroids)

    def _mix(self, q, k, v, layout, training):
        if layout.causal and self.strict:
            mixed = super()._mix(q, k, v, layout, training)
        else:
            mixed = self._mix_members(q, v, layout, training)
        if training and self.trainable:
            self._move_centroids(q, layout.key_mask)
        return mixed

    def _mix_members(self, q, v, layout, training):
        mask, segments = layout.key_mask, layout.segments
        q = arrays.zero_masked(arrays.accumulate(q), mask)
        v = arrays.zero_masked(arrays.accumulate(v), mask)
        similarity = self._similarity(unit(q))
        position = layout.query_positions
        q, k, _ = self._encode_positions(*self._query_and_key(q), position, position)
        mixed = member_attention(
            q,
            k,
            v,
            similarity,
            size=self.cluster_size,
            causal=layout.causal,
            mask=mask,
            segments=segments,
        )
        return self.dropout_layer(mixed, training=training)

    def _move_centroids(self, q, mask):
        x = ops.stop_gradient(unit(arrays.zero_masked(ops.cast(q, "float32"), mask)))
        nearest = ops.one_hot(self._buckets(x)[..., 0], self.num_clusters, dtype="float32")
        nearest = arrays.zero_masked(nearest, mask)
        total = ops.einsum("bthk,bthd->hkd", nearest, x)
        count = ops.expand_dims(ops.sum(nearest, axis=(0, 1)), -1)
        old = ops.convert_to_tensor(self.centroids)
        moved = self.decay * old + (1 - self.decay) * total / ops.maximum(count, 1.0)
        self.centroids.assign(ops.where(count > 0, moved, old))

    def get_config(self):
        return {
            **super().get_config(),
            "num_clusters": self.num_clusters,
            "cluster_size": self.cluster_size,
            "decay": self.decay,
            "strict": self.strict,
        }
