"""The caches of a decoder before its first step."""

from __future__ import annotations

from typing import Any

from keras_cosattn.transformer import key_value_cache, state_cache
from keras_cosattn.transformer.decoder_checks import WITHOUT_ENCODER


class InitialCaches:
    """The methods of `TransformerDecoder` that make its caches."""

    name: str
    built: bool
    self_attention: Any
    cross_attention: Any
    _widths: tuple[int, Any]  # of the decoder's and the encoder's sequence

    def initial_self_attention_cache(self, batch_size: Any, max_length: int | None = None) -> Any:
        """Return the cache of the self-attention before the first step.

        Args:
            batch_size: Integer or scalar tensor, b.
            max_length: Integer n. If it is given, the cache is KerasHub's, zeros of shape
                `(b, 2, n, hk, d)`, which needs `SoftmaxAttention`. Defaults to `None`, the state
                of the layer's stream, a dict.

        Raises:
            ValueError: If the layer has no such cache, or the block is not built.
        """
        self._check_built()
        if max_length is not None:
            return key_value_cache.initial_cache(self.self_attention, batch_size, max_length)
        return state_cache.initial_cache(self.self_attention, batch_size, self._widths[0])

    def initial_cross_attention_cache(self, batch_size: Any, max_length: int | None = None) -> Any:
        """Return the cache of the cross-attention before it has read the encoder's output.

        Args:
            batch_size: Integer or scalar tensor, b.
            max_length: Integer, the length n of the encoder's output. It decides on the format as
                in `initial_self_attention_cache`. Defaults to `None`.

        Raises:
            ValueError: If the layer has no such cache, or the block has no cross-attention.
        """
        self._check_built()
        if self.cross_attention is None:
            raise ValueError(f"{self.name} {WITHOUT_ENCODER}")
        if max_length is not None:
            return key_value_cache.initial_cache(self.cross_attention, batch_size, max_length)
        return state_cache.initial_memory(self.cross_attention, batch_size, *self._widths)

    def _check_built(self):
        if not self.built:
            raise ValueError(f"{self.name} is not built. Call it once, then make its caches.")
