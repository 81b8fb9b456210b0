"""The models that recall: two attention layers between an embedding and a dense layer."""

import keras
from keras import ops

from keras_cosattn import (
    CausalDepthwiseConv1D,
    ClusteredRoutingAttention,
    CompressiveMemoryAttention,
    CosFormerAttention,
    DecayedCosFormerAttention,
    DeltaRuleAttention,
    GatedLinearAttention,
    HierarchicalAttention,
    LinearAttention,
    LSHAttention,
    Mamba2Attention,
    PerformerAttention,
    RecurrentMemoryAttention,
    RetentionAttention,
    RoutedAttention,
    SegmentedAttention,
    SoftmaxAttention,
    WindowedLinearAttention,
)
from keras_cosattn.positions import Rotary

BLOCKS, KERNEL = 2, 4
INPUTS = "tokens", "places"
SEGMENT = 16
"""Steps of a segment: short enough that a window of two does not hold the shortest stream."""


def layers(length):
    """Name -> a function of `num_heads` and `key_dim` that makes a layer for `length` steps.

    Where a layer takes `Rotary`, it has it: without an order of steps no value follows its key.
    """
    rotary = Rotary()
    near = {"segment_length": SEGMENT, "position": rotary}
    all_steps = {"max_length": length}
    return {
        "softmax": lambda h, d: SoftmaxAttention(h, d, position=rotary, **all_steps),
        "linear": lambda h, d: LinearAttention(h, d, position=rotary),
        "linear_taylor": lambda h, d: LinearAttention(
            h, 8, value_dim=d, feature_map="taylor", position=rotary
        ),
        "cosformer": lambda h, d: CosFormerAttention(h, d, horizon=2 * length),
        "performer": lambda h, d: PerformerAttention(
            h, d, num_random_features=64, seed=0, position=rotary
        ),
        "segmented": lambda h, d: SegmentedAttention(h, d, look_back=1, **near),
        "recurrent_memory": lambda h, d: RecurrentMemoryAttention(
            h, d, memory_length=SEGMENT, **near
        ),
        "compressive_memory": lambda h, d: CompressiveMemoryAttention(h, d, **near),
        "routed": lambda h, d: RoutedAttention(
            [LinearAttention(h, d, position=rotary), SegmentedAttention(h, d, look_back=1, **near)]
        ),
        "decayed_cosformer": lambda h, d: DecayedCosFormerAttention(h, d, horizon=length),
        "retention": lambda h, d: RetentionAttention(h, d),
        "mamba2": lambda h, d: Mamba2Attention(h, d),
        "gated_linear": lambda h, d: GatedLinearAttention(h, d, conv_size=4),
        "delta_rule": lambda h, d: DeltaRuleAttention(h, d),
        "gated_delta_rule": lambda h, d: DeltaRuleAttention(h, d, gated=True),
        "windowed_linear": lambda h, d: WindowedLinearAttention(
            h, d, window=SEGMENT, position=rotary
        ),
        # Below are those that keep every step.
        "segmented_summaries": lambda h, d: SegmentedAttention(
            h, d, summaries="mean", **near, **all_steps
        ),
        "hierarchical": lambda h, d: HierarchicalAttention(
            h, d, unit_sizes=(SEGMENT,), **all_steps
        ),
        "lsh": lambda h, d: LSHAttention(
            h, d, num_buckets=length // SEGMENT, bucket_size=SEGMENT, position=rotary, **all_steps
        ),
        "clustered_routing": lambda h, d: ClusteredRoutingAttention(
            h, d, num_clusters=length // SEGMENT, cluster_size=SEGMENT, position=rotary,
            **all_steps,
        ),
    }  # fmt: skip


def build(layer, length, vocabulary, classes, width, heads, conv):
    """A model of tokens `(b, t)`, which streams, and one with the same weights to be trained.

    The second takes `places (b, n)` too, and computes the logits there alone, `(b, n, classes)`. A
    block is `x + attention(norm(x))`, with `conv` after `x + convolution(norm(x))` of four steps.
    There is no feed-forward part: what is recalled, the attention has recalled.
    """
    tokens, places = (keras.Input((None,), dtype="int32", name=name) for name in INPUTS)
    x = keras.layers.Embedding(vocabulary, width)(tokens)
    for _ in range(BLOCKS):
        if conv:
            x += CausalDepthwiseConv1D(KERNEL)(keras.layers.LayerNormalization()(x))
        y = keras.layers.LayerNormalization()(x)
        x += layers(length)[layer](heads, width // heads)(y, y, use_causal_mask=True)
    x = keras.layers.LayerNormalization()(x)
    head = keras.layers.Dense(classes)
    asked = ops.take_along_axis(x, ops.expand_dims(places, 2), axis=1)
    trained = keras.Model(dict(zip(INPUTS, (tokens, places), strict=True)), head(asked))
    return keras.Model(tokens, head(x)), trained
