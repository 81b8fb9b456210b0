"""The base of the layers that sort steps into buckets by their content."""

from __future__ import annotations

from keras import ops

from keras_cosattn.attention.cached import CachedAttention
from keras_cosattn.ops import arrays, buckets, fused, timesteps


class BucketedAttention(CachedAttention):
    """Base class of the layers in which a step attends to steps of its own bucket only.

    Of its bucket, a step attends to its own chunk and to the one before. One projection makes
    queries and keys, so that both have the same buckets. A subclass overrides `_buckets`,
    `_query_and_key`, `_bucket_count` and `_chunk_size`. A step is valid if its query and its value
    are.

    Dropout acts on the mixed values. Dropout of the sorted weights would change with later steps. A
    stream keeps of each step its key and its value, and its bucket and chunk in each round.
    """

    accepts_positions = ("rotation", "encoding")
    accepts_query_key_norm = False
    shares_query_and_key = True
    own_key_last = False

    @property
    def cannot(self) -> dict[str, str]:
        """What the layer refuses, each with its reason."""
        reason = (
            "queries and keys are one projection of the same steps. "
            "Use SoftmaxAttention or LinearAttention there."
        )
        return {**super().cannot, "cross": reason}

    @property
    def _bucket_count(self):
        raise NotImplementedError(f"{type(self).__name__} must override `_bucket_count`.")

    @property
    def _chunk_size(self):
        """C, the number of steps in a chunk."""
        raise NotImplementedError(f"{type(self).__name__} must override `_chunk_size`.")

    @property
    def _rounds(self):
        return 1

    def _buckets(self, q):
        """Return the bucket of each step, int32 `(b, t, h, rounds)`; q is float32."""
        raise NotImplementedError(f"{type(self).__name__} must override `_buckets`.")

    def _query_and_key(self, q):
        """Return the queries and keys `(b, t, h, d)` of the float32 projection q."""
        raise NotImplementedError(f"{type(self).__name__} must override `_query_and_key`.")

    def _mix(self, q, k, v, layout, training):
        mask, segments = layout.key_mask, layout.segments
        q = arrays.zero_masked(arrays.accumulate(q), mask)
        v = arrays.zero_masked(arrays.accumulate(v), mask)
        bucket = self._buckets(q)
        positions = layout.query_positions
        q, k, _ = self._encode_positions(*self._query_and_key(q), positions, positions)
        mixed = buckets.bucket_attention(
            q,
            k,
            v,
            bucket,
            self._bucket_count,
            size=self._chunk_size,
            causal=layout.causal,
            mask=mask,
            segments=segments,
            own_key_last=self.own_key_last,
        )
        return self.dropout_layer(mixed, training=training)

    def _cache_spec(self):
        shape = (self.num_heads, self._rounds)
        more = {"bucket": (shape, self.sum_dtype), "chunk": (shape, self.sum_dtype)}
        return {**super()._cache_spec(), **more}

    def _more_entries(self, past, q, mask):
        q = arrays.zero_masked(arrays.accumulate(q), mask)
        bucket = ops.cast(self._buckets(q) + 1, "float32")  # 0 is an empty slot
        bucket = arrays.zero_masked(bucket, mask)
        rank = buckets.earlier_in_bucket(past["bucket"], bucket)
        # Half a step is added so that rounding cannot change the chunk.
        return {"bucket": bucket, "chunk": ops.floor((rank + 0.5) / self._chunk_size)}

    def _compared(self, q, k):
        return self._query_and_key(arrays.accumulate(q))

    def _attend_to_cache(self, q, k, past, positions, bias, training):
        slots = ops.expand_dims(ops.arange(self.max_length, dtype="int32"), 0)
        own = ops.minimum(positions, self.max_length - 1)
        allowed = buckets.can_attend_in_cache(
            timesteps.take_steps(past["bucket"], own),
            timesteps.take_steps(past["chunk"], own),
            past["bucket"],
            past["chunk"],
        )
        distance = ops.expand_dims(positions, (1, 3)) - ops.expand_dims(slots, (1, 2))
        bias = buckets.own_key_bias(distance == 0, self.sum_dtype) if self.own_key_last else None
        allowed = ops.logical_and(allowed, distance >= 0)
        mixed = fused.attend(q, k, past["value"], allowed, bias)
        return self.dropout_layer(mixed, training=training)


def unit(x):
    """Return `x / ||x||`. Zero stays zero."""
    length = ops.sum(ops.square(x), axis=-1, keepdims=True)
    return x * ops.rsqrt(ops.maximum(length, arrays.SMALLEST_SUM))
