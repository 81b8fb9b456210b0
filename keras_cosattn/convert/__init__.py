"""From a model with softmax attention to the same model with another attention."""

from keras_cosattn.convert.replace import replace_attention
from keras_cosattn.convert.transfer import attention_errors, transfer

__all__ = ["attention_errors", "replace_attention", "transfer"]
