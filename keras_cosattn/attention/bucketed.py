"""Attention among steps of equal content: the base of the variants that sort steps into buckets."""

from keras import ops

from keras_cosattn.attention.cached import CachedAttention
from keras_cosattn.ops import arrays, buckets, dense, timesteps


class BucketedAttention(CachedAttention):
    """Base of the layers in which a step sees its bucket only: its own chunk and the one before.

    One projection makes queries and keys, so that both fall into the same buckets. A variant fills
    in `_buckets`, `_query_and_key`, `_bucket_count` and `_chunk`. A step takes part if its query
    and its value do.

    Dropout acts on the mixed values: weights lie sorted, so noise on them would move with later
    steps. A stream keeps of each step its key, its value, and its bucket and chunk in each round.
    """

    accepts_positions = ("rotation", "encoding")
    shares_query_and_key = True
    own_key_last = False

    @property
    def cannot(self):
        """What the layer refuses: use -> reason."""
        reason = (
            "queries and keys are one projection of the same steps. "
            "Use SoftmaxAttention or LinearAttention there."
        )
        return {**super().cannot, "cross": reason}

    @property
    def _bucket_count(self):
        raise NotImplementedError(f"{type(self).__name__} must fill in `_bucket_count`.")

    @property
    def _chunk(self):
        """C: the steps of a chunk."""
        raise NotImplementedError(f"{type(self).__name__} must fill in `_chunk`.")

    @property
    def _rounds(self):
        return 1

    def _buckets(self, q):
        """The bucket of each step, from the float32 q `(b, t, h, d)`: int32 `(b, t, h, rounds)`."""
        raise NotImplementedError(f"{type(self).__name__} must fill in `_buckets`.")

    def _query_and_key(self, q):
        """What is compared, q and k `(b, t, h, d)`, from the float32 projection."""
        raise NotImplementedError(f"{type(self).__name__} must fill in `_query_and_key`.")

    def _mix(self, q, k, v, layout, training):
        mask, segments = layout.key_mask, layout.segments
        q = arrays.zero_masked(arrays.accumulate(q), mask)
        v = arrays.zero_masked(arrays.accumulate(v), mask)
        found = self._buckets(q)
        position = layout.query_positions
        q, k, _ = self._encode_positions(*self._query_and_key(q), position, position)
        mixed = buckets.bucket_attention(
            q,
            k,
            v,
            found,
            self._bucket_count,
            size=self._chunk,
            causal=layout.causal,
            mask=mask,
            segments=segments,
            own_key_last=self.own_key_last,
        )
        return self.dropout_layer(mixed, training=training)

    def _cache_spec(self):
        numbers = (self.num_heads, self._rounds)
        return {**super()._cache_spec(), "bucket": numbers, "chunk": numbers}

    def _remember(self, past, q, k, v, positions, mask):
        q, v = (arrays.zero_masked(arrays.accumulate(x), mask) for x in (q, v))
        bucket = ops.cast(self._buckets(q) + 1, "float32")  # 0 is an empty slot
        bucket = arrays.zero_masked(bucket, mask)
        rank = buckets.earlier_in_bucket(past["bucket"], bucket)
        return {
            "key": self._query_and_key(q)[1],
            "value": v,
            "bucket": bucket,
            "chunk": ops.floor((rank + 0.5) / self._chunk),  # half a step: no rounding decides
        }

    def _mix_past(self, q, past, positions, training):
        slots = ops.expand_dims(ops.arange(self.max_length, dtype="int32"), 0)
        own = ops.minimum(positions, self.max_length - 1)
        q, _ = self._query_and_key(arrays.accumulate(q))
        q, k, _ = self._encode_positions(q, past["key"], positions, slots)
        seen = buckets.seen_in_cache(
            timesteps.take_steps(past["bucket"], own),
            timesteps.take_steps(past["chunk"], own),
            past["bucket"],
            past["chunk"],
        )
        distance = ops.expand_dims(ops.expand_dims(positions, 2) - ops.expand_dims(slots, 1), 1)
        bias = ops.where(distance == 0, buckets.LAST, 0.0) if self.own_key_last else None
        seen = ops.logical_and(seen, distance >= 0)
        mixed, _ = dense.attend(q, k, past["value"], seen, bias=bias)
        return self.dropout_layer(mixed, training=training)


def unit(x):
    """`x / ||x||`; zero stays zero."""
    length = ops.sum(ops.square(x), axis=-1, keepdims=True)
    return x * ops.rsqrt(ops.maximum(length, arrays.SMALLEST_SUM))
