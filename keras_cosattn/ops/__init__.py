"""Pure functions on `(b, t, h, d)` tensors: no layers, no weights, state in and state out."""

from keras_cosattn.ops.cosine import causal_cosine_attention, cosine_attention
from keras_cosattn.ops.cosine_weights import cosine_weights
from keras_cosattn.ops.decayed import decayed_attention
from keras_cosattn.ops.dense import softmax_attention
from keras_cosattn.ops.linear import linear_attention, linear_weights
from keras_cosattn.ops.low_rank import low_rank_attention
from keras_cosattn.ops.nystrom import nystrom_attention
from keras_cosattn.ops.pointwise_features import elu_plus_one, identity, relu, squared_relu

__all__ = [
    "causal_cosine_attention",
    "cosine_attention",
    "cosine_weights",
    "decayed_attention",
    "elu_plus_one",
    "identity",
    "linear_attention",
    "linear_weights",
    "low_rank_attention",
    "nystrom_attention",
    "relu",
    "softmax_attention",
    "squared_relu",
]
