"""Attention whose past is every key and value: the base of the variants that stream by a cache."""

from keras import ops

from keras_cosattn.attention.arguments import optional, positive
from keras_cosattn.attention.base import Attention
from keras_cosattn.ops import arrays, cache, timesteps


class CachedAttention(Attention):
    """Base of the layers whose stream keeps `max_length` steps.

    More steps raise ValueError, or fail an assertion in a TensorFlow graph. Under XLA the steps
    beyond are not stored, and attend to the stored ones.

    A variant fills in `_mix` and `_mix_past`, and may keep more of each step than key and value:
    `_cache_spec` and `_remember`.

    Args:
        num_heads, key_dim, **kwargs: as `Attention`.
        max_length: steps that a stream can hold; None cannot stream. Whole sequences may have any
            length.
    """

    def __init__(self, num_heads, key_dim, *args, max_length=None, **kwargs):
        super().__init__(num_heads, key_dim, *args, **kwargs)
        self.max_length = optional(positive, "max_length", max_length)

    @property
    def cannot(self):
        """What the layer refuses: use -> reason."""
        if self.max_length is not None:
            return {}
        return {
            "stream": "it keeps every key, so it needs to know how many. "
            "Build it with `max_length`."
        }

    def _cache_spec(self):
        """Name -> shape of what a stream keeps of each step, `(heads, size)`, float32."""
        key_heads = self.num_heads if self.shares_query_and_key else self.num_key_value_heads
        return {
            "key": (key_heads, self.key_dim),
            "value": (self.num_key_value_heads, self.value_dim),
        }

    def _remember(self, past, q, k, v, positions, mask):
        """What is kept of these steps: name -> `(b, t, heads, size)`. `past` is what was kept."""
        return {"key": k, "value": v}

    def _mix_past(self, q, past, positions, training):
        """Mix the values in `past` for q, whose steps stand at `positions (b, t)` of the cache.

        `past` has a `(b, max_length, heads, size)` for each name of `_cache_spec`; slots that are
        not yet taken are zero. Returns `(b, t, h, e)`.
        """
        raise NotImplementedError(f"{type(self).__name__} must fill in `_mix_past`.")

    def _attend_in_stream(self, q, k, v, layout, stream, training):
        n, spec, mask = self.max_length, self._cache_spec(), layout.key_mask
        slot, state = stream.read(
            self,
            ops.shape(q)[0],
            limit=n,
            **{name: ((n, *shape), self.sum_dtype) for name, shape in spec.items()},
            position=((), "int32"),
        )
        start, t = state["position"], layout.query_steps
        positions = timesteps.positions(t, mask, start=start)
        positions = ops.broadcast_to(positions, ops.shape(q)[:2])
        past = {name: state[name] for name in spec}
        for name, new in self._remember(past, q, k, v, positions, mask).items():
            new = arrays.zero_masked(new, mask)
            past[name] = cache.append(state[name], ops.cast(new, self.sum_dtype), positions, mask)
        stream.write(slot, {**past, "position": timesteps.advance(start, t, mask)})
        return self._mix_past(q, past, positions, training)

    def get_config(self):
        return {**super().get_config(), "max_length": self.max_length}
