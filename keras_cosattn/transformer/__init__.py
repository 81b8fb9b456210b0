"""Transformer blocks with KerasHub's signatures and any attention layer of this package."""

from keras_cosattn.transformer.decoder import TransformerDecoder
from keras_cosattn.transformer.encoder import TransformerEncoder

__all__ = ["TransformerDecoder", "TransformerEncoder"]
