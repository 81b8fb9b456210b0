"""Attention layers for models of tf_keras (Keras 2), such as those of tf-models-official."""

from keras_cosattn.models.cosformer import CosFormerAttention
from keras_cosattn.models.linear import LinearAttention
from keras_cosattn.models.masks import PaddingMask
from keras_cosattn.models.performer import PerformerAttention

__all__ = ["CosFormerAttention", "LinearAttention", "PaddingMask", "PerformerAttention"]
