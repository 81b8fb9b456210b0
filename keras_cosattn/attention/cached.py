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

    A key is stored with its position in it, if the position encodes keys alone, as `Rotary` does.

    A subclass overrides `_mix` and `_attend_to_cache`. If it compares something else than the
    projections, it also overrides `_compared`. To keep more of each step than key and value, it
    also overrides `_cache_spec` and `_more_entries`.

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
        """Return shape `(heads, size)` and dtype of each entry that a stream keeps of a step."""
        key_heads = self.num_heads if self.shares_query_and_key else self.num_key_value_heads
        return {
            "key": ((key_heads, self.key_dim), self.compute_dtype),
            "value": ((self.num_key_value_heads, self.value_dim), self.compute_dtype),
        }

    def _more_entries(self, past, q, mask):
        """Return what a stream keeps of these steps beside key and value, a dict of tensors.

        `past` has the entries of the earlier steps. The tensors have shape `(b, t, heads, size)`.
        """
        return {}

    def _compared(self, q, k):
        """Return the queries and keys whose products are the scores, before their positions."""
        return q, k

    def _attend_to_cache(self, q, k, past, positions, bias, training):
        """Mix the values in `past` for q, whose steps have the `positions (b, t)` in the cache.

        `past` has a tensor `(b, max_length, heads, size)` for each name of `_cache_spec`. Empty
        slots are zero. q and k, the keys of all slots, have their positions in them. `bias` is
        that of the positions, or None. Returns a tensor `(b, t, h, e)`.
        """
        raise NotImplementedError(f"{type(self).__name__} must override `_attend_to_cache`.")

    def _attend_in_stream(self, q, k, v, layout, stream, training):
        n, spec, mask = self.max_length, self._cache_spec(), layout.key_mask
        slot, state = stream.read(
            self,
            ops.shape(q)[0],
            limit=n,
            **{name: ((n, *shape), dtype) for name, (shape, dtype) in spec.items()},
            position=((), "int32"),
        )
        start, t = state["position"], layout.query_steps
        positions = timesteps.positions(t, mask, start=start)
        positions = ops.broadcast_to(positions, ops.shape(q)[:2])
        new = {"value": v, **self._more_entries(state, q, mask)}
        q, k = self._compared(q, k)
        once = self.position is not None and self.position.encodes_keys_alone
        encoded, new["key"] = self.position.encode(q, k, positions, positions) if once else (q, k)
        past = {
            name: cache.append(state[name], arrays.zero_masked(new[name], mask), positions, mask)
            for name in spec
        }
        stream.write(slot, {**past, "position": timesteps.advance(start, t, mask)})
        slots = ops.expand_dims(ops.arange(n, dtype="int32"), 0)
        if once:
            bias = self.position.bias(q, positions, slots)
            q, k = encoded, past["key"]
        else:
            q, k, bias = self._encode_positions(q, past["key"], positions, slots)
        return self._attend_to_cache(q, k, past, positions, bias, training)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "max_length": self.max_length}
