"""Transformer blocks with KerasHub's signatures and any attention layer of this package."""

import keras_cosattn.transformer.activations  # noqa: F401  models that have them can be loaded
from keras_cosattn.transformer.decoder import TransformerDecoder
from keras_cosattn.transformer.encoder import TransformerEncoder

__all__ = ["TransformerDecoder", "TransformerEncoder"]
