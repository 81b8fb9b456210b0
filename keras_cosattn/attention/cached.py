"""The base of the layers whose streams keep every key and value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keras import ops

from keras_cosattn.attention.arguments import optional, positive
from keras_cosattn.attention.base import Attention
from keras_cosattn.ops import arrays, cache, timesteps

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from keras_cosattn.attention.options import AttentionOptions


class CachedAttention(Attention):
    """Base class of the layers whose stream keeps `max_length` steps.

    More steps raise ValueError, or fail an assertion in a TensorFlow graph. Under XLA the steps
    beyond are not stored, and attend to the stored ones.

    A subclass overrides `_mix` and `_attend_to_cache`. To keep more of each step than key and
    value, it also overrides `_cache_spec` and `_cache_entries`.

    Args:
        num_heads: int, h, the number of query heads.
        key_dim: int, d, the size of a query or key head.
        max_length: int, the number of steps that a stream can hold. A layer without it cannot
            stream. A whole sequence may have any length. Defaults to `None`.
        *args, **kwargs: Other arguments of `Attention`, such as `dropout`, `num_key_value_heads`
            and `seed`.
    """

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        *args: Any,
        max_length: int | None = None,
        **kwargs: Unpack[AttentionOptions],
    ):
        super().__init__(num_heads, key_dim, *args, **kwargs)
        self.max_length = optional(positive, "max_length", max_length)

    @property
    def cannot(self) -> dict[str, str]:
        """What the layer refuses, each with its reason."""
        if self.max_length is not None:
            return {}
        return {
            "stream": "it keeps every key, so it needs to know how many. "
            "Build it with `max_length`."
        }

    def _cache_spec(self):
        """Return the shape `(heads, size)` of each entry that a stream keeps of a step."""
        key_heads = self.num_heads if self.shares_query_and_key else self.num_key_value_heads
        return {
            "key": (key_heads, self.key_dim),
            "value": (self.num_key_value_heads, self.value_dim),
        }

    def _cache_entries(self, past, q, k, v, positions, mask):
        """Return what a stream keeps of these steps, a dict of tensors `(b, t, heads, size)`.

        `past` has the entries of the earlier steps.
        """
        return {"key": k, "value": v}

    def _attend_to_cache(self, q, past, positions, training):
        """Mix the values in `past` for q, whose steps have the `positions (b, t)` in the cache.

        `past` has a tensor `(b, max_length, heads, size)` for each name of `_cache_spec`. Empty
        slots are zero. Returns a tensor `(b, t, h, e)`.
        """
        raise NotImplementedError(f"{type(self).__name__} must fill in `_attend_to_cache`.")

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
        for name, new in self._cache_entries(past, q, k, v, positions, mask).items():
            new = arrays.zero_masked(new, mask)
            past[name] = cache.append(state[name], ops.cast(new, self.sum_dtype), positions, mask)
        stream.write(slot, {**past, "position": timesteps.advance(start, t, mask)})
        return self._attend_to_cache(q, past, positions, training)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "max_length": self.max_length}
