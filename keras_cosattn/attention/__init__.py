"""The attention layers, one file per variant."""

from keras_cosattn.attention.base import Attention
from keras_cosattn.attention.clustered_routing import ClusteredRoutingAttention
from keras_cosattn.attention.compressive_memory import CompressiveMemoryAttention
from keras_cosattn.attention.cosformer import CosFormerAttention
from keras_cosattn.attention.hierarchical import HierarchicalAttention
from keras_cosattn.attention.linear import LinearAttention
from keras_cosattn.attention.low_rank import LowRankAttention
from keras_cosattn.attention.lsh import LSHAttention
from keras_cosattn.attention.nystrom import NystromAttention
from keras_cosattn.attention.performer import PerformerAttention
from keras_cosattn.attention.recurrent_memory import RecurrentMemoryAttention
from keras_cosattn.attention.routed import RoutedAttention
from keras_cosattn.attention.segmented import SegmentedAttention
from keras_cosattn.attention.softmax import SoftmaxAttention

__all__ = [
    "Attention",
    "ClusteredRoutingAttention",
    "CompressiveMemoryAttention",
    "CosFormerAttention",
    "HierarchicalAttention",
    "LSHAttention",
    "LinearAttention",
    "LowRankAttention",
    "NystromAttention",
    "PerformerAttention",
    "RecurrentMemoryAttention",
    "RoutedAttention",
    "SegmentedAttention",
    "SoftmaxAttention",
]
