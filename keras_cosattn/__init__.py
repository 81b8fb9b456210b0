"""Attention for long sequences and small devices, as Keras 3 layers."""

from keras_cosattn.attention import (
    Attention,
    ClusteredRoutingAttention,
    CompressiveMemoryAttention,
    CosFormerAttention,
    DecayedCosFormerAttention,
    DeltaRuleAttention,
    GatedLinearAttention,
    HierarchicalAttention,
    LinearAttention,
    LowRankAttention,
    LSHAttention,
    Mamba2Attention,
    NystromAttention,
    PerformerAttention,
    RecurrentMemoryAttention,
    RetentionAttention,
    RoutedAttention,
    SegmentedAttention,
    SoftmaxAttention,
    WindowedLinearAttention,
)
from keras_cosattn.carried import CarriedState
from keras_cosattn.feature_maps import (
    DPFPFeatures,
    FeatureMap,
    HedgehogFeatures,
    PositiveFeatures,
    TrigonometricFeatures,
)
from keras_cosattn.generation import generate
from keras_cosattn.positions import (
    ALiBi,
    Position,
    PositionEmbedding,
    Rotary,
    Shaw,
    Sinusoidal,
    T5Bias,
    TransformerXL,
    XPos,
)
from keras_cosattn.running_mean import RunningMean
from keras_cosattn.streaming import Streaming
from keras_cosattn.temporal import CausalConv1D, CausalDepthwiseConv1D
from keras_cosattn.transformer import TransformerDecoder, TransformerEncoder

__version__ = "0.1.0"

__all__ = [
    "ALiBi",
    "Attention",
    "CarriedState",
    "CausalConv1D",
    "CausalDepthwiseConv1D",
    "ClusteredRoutingAttention",
    "CompressiveMemoryAttention",
    "CosFormerAttention",
    "DPFPFeatures",
    "DecayedCosFormerAttention",
    "DeltaRuleAttention",
    "FeatureMap",
    "GatedLinearAttention",
    "HedgehogFeatures",
    "HierarchicalAttention",
    "LSHAttention",
    "LinearAttention",
    "LowRankAttention",
    "Mamba2Attention",
    "NystromAttention",
    "PerformerAttention",
    "Position",
    "PositionEmbedding",
    "PositiveFeatures",
    "RecurrentMemoryAttention",
    "RetentionAttention",
    "Rotary",
    "RoutedAttention",
    "RunningMean",
    "SegmentedAttention",
    "Shaw",
    "Sinusoidal",
    "SoftmaxAttention",
    "Streaming",
    "T5Bias",
    "TransformerDecoder",
    "TransformerEncoder",
    "TransformerXL",
    "TrigonometricFeatures",
    "WindowedLinearAttention",
    "XPos",
    "generate",
]
