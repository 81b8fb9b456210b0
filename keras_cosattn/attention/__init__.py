"""The attention layers, one file per variant."""

from keras_cosattn.attention.base import Attention
from keras_cosattn.attention.clustered_routing import ClusteredRoutingAttention
from keras_cosattn.attention.compressive_memory import CompressiveMemoryAttention
from keras_cosattn.attention.cosformer import CosFormerAttention
from keras_cosattn.attention.decayed_cosformer import DecayedCosFormerAttention
from keras_cosattn.attention.delta_rule import DeltaRuleAttention
from keras_cosattn.attention.gated_linear import GatedLinearAttention
from keras_cosattn.attention.hierarchical import HierarchicalAttention
from keras_cosattn.attention.linear import LinearAttention
from keras_cosattn.attention.low_rank import LowRankAttention
from keras_cosattn.attention.lsh import LSHAttention
from keras_cosattn.attention.mamba2 import Mamba2Attention
from keras_cosattn.attention.nystrom import NystromAttention
from keras_cosattn.attention.performer import PerformerAttention
from keras_cosattn.attention.recurrent_memory import RecurrentMemoryAttention
from keras_cosattn.attention.retention import RetentionAttention
from keras_cosattn.attention.routed import RoutedAttention
from keras_cosattn.attention.segmented import SegmentedAttention
from keras_cosattn.attention.softmax import SoftmaxAttention
from keras_cosattn.attention.windowed_linear import WindowedLinearAttention

__all__ = [
    "Attention",
    "ClusteredRoutingAttention",
    "CompressiveMemoryAttention",
    "CosFormerAttention",
    "DecayedCosFormerAttention",
    "DeltaRuleAttention",
    "GatedLinearAttention",
    "HierarchicalAttention",
    "LSHAttention",
    "LinearAttention",
    "LowRankAttention",
    "Mamba2Attention",
    "NystromAttention",
    "PerformerAttention",
    "RecurrentMemoryAttention",
    "RetentionAttention",
    "RoutedAttention",
    "SegmentedAttention",
    "SoftmaxAttention",
    "WindowedLinearAttention",
]
