"""Clustered routing attention: each step attends to steps of its own clusters."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from keras_cosattn.attention.arguments import positive
from keras_cosattn.attention.bucketed import BucketedAttention, unit
from keras_cosattn.ops import arrays, buckets
from keras_cosattn.ops.members import member_attention

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from keras_cosattn.attention.options import AttentionOptions


@keras.saving.register_keras_serializable("keras_cosattn")
class ClusteredRoutingAttention(BucketedAttention):
    """Routing attention: each step attends to the steps of the clusters that it belongs to.

    `out_t = sum_s softmax_s(sqrt(d) x_t . x_s) v_s`, over the steps s in a cluster of t

    x is the query divided by its length, and it is the key too. Each head has `num_clusters`
    centroids.

    Without `use_causal_mask`, a cluster takes the `cluster_size` steps x with the largest cosine to
    its centroid, and these attend to each other. A step in several clusters gets the mean of its
    results, and a step in none gets zero. Such a choice needs the whole sequence, as a later step
    can take the place of an earlier one. So the causal form is another one: a step belongs to its
    nearest centroid only. If the cluster has r earlier steps, the step is in chunk
    `floor(r / cluster_size)`, and attends to the earlier steps of its cluster in its own chunk and
    the one before. This form never depends on the future, and it streams. With `strict=False` the
    causal form chooses as without `use_causal_mask`, and only masks later keys. This is the form of
    the paper. Its outputs depend on later steps, as these change which steps a cluster takes.

    In training each centroid c moves, after the outputs are computed, to
    `decay c + (1 - decay) mean of its nearest x`. A centroid without such x stays. Centroids also
    stay if the layer is not trainable, and in inference. In training the layer must not be called
    in `keras.remat`, which calls it twice: the centroids would move between the two calls.

    The layer attends in both directions or causally, and inside packed sequences. It cannot do
    cross-attention. A `position` that rotates or encodes changes the scores and not the clusters.
    Dropout acts on the mixed values.

    For n steps and k clusters of w steps it takes O(n k d + k n log n + k w^2 (d + e)) time for
    each head without `use_causal_mask`, which is O(n^1.5 d) for k = w = sqrt(n). In packed
    sequences the last term is O(k n w (d + e)). The causal form takes
    O(n (k d + log n + w (d + e))) time. Memory is O(n k + k w (w + d + e)), and
    O(n (k + w + d + e)) for the causal form. A stream keeps `max_length` steps: a step takes
    O(max_length (d + e) + k d) time, and the state has O(max_length (d + e)) numbers for each head.

    Where this differs from the paper: the causal form is the one above. x is not centred before it
    gets unit length. Cosines choose, so the length of a centroid does not count. Centroids move to
    a mean and not to a sum. No other heads with local attention are added.

    Args:
        num_heads: int, h, the number of query heads.
        key_dim: int, d, the size of a query or key head.
        num_clusters: int, k, the number of clusters of each head. Defaults to `16`.
        cluster_size: int, w, the number of steps of a cluster, and of a chunk of the causal form.
            Defaults to `64`.
        decay: float from 0 to 1, the decay of the moving averages of the centroids. Defaults to
            `0.999`.
        strict: bool. If True, the causal form never depends on the future. If False, it is the form
            of the paper, for comparison. Defaults to `True`.
        max_length: int, the number of steps that a stream can hold. A layer without it cannot
            stream. A whole sequence may have any length. Defaults to `None`.
        *args, **kwargs: Other arguments of `Attention`, such as `dropout` and
            `num_key_value_heads`. `seed` is also the seed of the centroids.

    Raises:
        ValueError: If `decay` is not between 0 and 1, or if a call asks for what the layer cannot
            do.

    Example:
    >>> import numpy as np
    >>> from keras_cosattn import ClusteredRoutingAttention
    >>> layer = ClusteredRoutingAttention(num_heads=2, key_dim=4, num_clusters=3, cluster_size=4)
    >>> x = np.ones((1, 10, 8), "float32")
    >>> tuple(layer(x, x).shape)
    (1, 10, 8)

    Reference:
        - [Roy et al., 2021](https://arxiv.org/abs/2003.05997), section 4 and algorithm 1
    """

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        *args: Any,
        num_clusters: int = 16,
        cluster_size: int = 64,
        decay: float = 0.999,
        strict: bool = True,
        max_length: int | None = None,
        **kwargs: Unpack[AttentionOptions],
    ):
        super().__init__(num_heads, key_dim, *args, max_length=max_length, **kwargs)
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
    def cannot(self) -> dict[str, str]:
        """What the layer refuses, each with its reason."""
        if self.strict:
            return super().cannot
        reason = "later steps change which steps a cluster has. Use `strict=True`."
        return {**super().cannot, "stream": reason}

    @property
    def _bucket_count(self):
        return self.num_clusters

    @property
    def _chunk_size(self):
        return self.cluster_size

    def _buckets(self, q):
        return ops.expand_dims(buckets.largest(self._similarity(unit(q))), -1)

    def _query_and_key(self, q):
        q = unit(q) * math.sqrt(self.key_dim)
        return q, q

    def _similarity(self, x):
        """Return the cosines of unit vectors `x (b, t, h, d)` and centroids, `(b, t, h, k)`."""
        centroids = unit(ops.convert_to_tensor(self.centroids))
        return ops.einsum("bthd,hkd->bthk", ops.stop_gradient(x), centroids)

    def _attend(self, q, k, v, layout, training, return_weights):
        mixed, weights = super()._attend(q, k, v, layout, training, return_weights)
        if training and self.trainable:
            self._move_centroids(q, layout.key_mask)
        return mixed, weights

    def _mix(self, q, k, v, layout, training):
        if layout.causal and self.strict:
            return super()._mix(q, k, v, layout, training)
        return self._mix_members(q, v, layout, training)

    def _mix_members(self, q, v, layout, training):
        mask, segments = layout.key_mask, layout.segments
        q = arrays.zero_masked(arrays.accumulate(q), mask)
        v = arrays.zero_masked(arrays.accumulate(v), mask)
        similarity = self._similarity(unit(q))
        positions = layout.query_positions
        q, k, _ = self._encode_positions(*self._query_and_key(q), positions, positions)
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

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_clusters": self.num_clusters,
            "cluster_size": self.cluster_size,
            "decay": self.decay,
            "strict": self.strict,
        }
