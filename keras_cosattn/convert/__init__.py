"""From a model with softmax attention to the same model with another attention."""

from keras_cosattn.convert.replace import replace_attention

__all__ = ["replace_attention"]
