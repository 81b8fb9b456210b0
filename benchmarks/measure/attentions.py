"""The attention layers that learn: names, and functions that make the layers of a model.

A decoder has `Rotary` in each layer that takes it, and no other positions, so that it reads streams
of any length. An encoder has a learned embedding of the positions in front of its first block,
the same for every attention. The layers' own short convolutions are off. A convolution, if one is
asked for, stands before each block and is the same for every attention.
"""

import keras
from keras import ops

from keras_cosattn import (
    CosFormerAttention,
    DecayedCosFormerAttention,
    DeltaRuleAttention,
    GatedLinearAttention,
    LinearAttention,
    LowRankAttention,
    LSHAttention,
    Mamba2Attention,
    NystromAttention,
    PerformerAttention,
    RetentionAttention,
    SegmentedAttention,
    SoftmaxAttention,
)
from measure import recall_models

SEGMENT = 64
"""Steps of a segment, of a bucket, and the number of landmarks."""
LOW_RANK_WEIGHTS = 2**14
"""The most weights of a matrix `(length, rank)`, so that the models stay equally large."""
SOFTMAX_EVERY = 4
"""A hybrid model has softmax in every fourth block, counted from the last."""


@keras.saving.register_keras_serializable("keras_cosattn_benchmarks")
def leaky_relu(x):
    """LeakyReLU as a feature map, with the slope 0.01 for negative numbers."""
    return ops.leaky_relu(x, negative_slope=0.01)


def decoders(length, capacity=None):
    """Name -> function of `num_heads` and `key_dim` that makes a causal layer.

    Args:
        length: steps of the training.
        capacity: steps that a stream may have, if more. It changes no output of fewer steps.
    """
    shared = recall_models.layers(length)
    kept = "linear", "performer", "cosformer", "decayed_cosformer", "retention"
    return {
        "softmax": recall_models.layers(capacity or length)["softmax"],
        **{name: shared[name] for name in kept},
        "gated_linear": GatedLinearAttention,
        "delta_rule": lambda h, d: DeltaRuleAttention(h, d, conv_size=None),
        "gated_delta_rule": lambda h, d: DeltaRuleAttention(h, d, gated=True, conv_size=None),
        "mamba2": lambda h, d: Mamba2Attention(h, d, conv_size=None),
    }


def encoders(length):
    """Name -> function of `num_heads` and `key_dim` that makes a layer that looks both ways."""
    rank = max(4, min(64, LOW_RANK_WEIGHTS // length))
    near = {"num_buckets": max(2, length // SEGMENT // 2 * 2), "bucket_size": SEGMENT}
    return {
        "softmax": SoftmaxAttention,
        "linear": LinearAttention,
        "identity": lambda h, d: LinearAttention(h, d, feature_map="identity"),
        "leaky_relu": lambda h, d: LinearAttention(h, d, feature_map=leaky_relu),
        "relu": lambda h, d: LinearAttention(h, d, feature_map="relu"),
        "cosformer": lambda h, d: CosFormerAttention(h, d, max_length=length),
        "performer": lambda h, d: PerformerAttention(h, d, num_random_features=64, seed=0),
        "low_rank": lambda h, d: LowRankAttention(
            h, d, max_length=length, rank=rank, share_key_value=True
        ),
        "nystrom": lambda h, d: NystromAttention(h, d, num_landmarks=SEGMENT),
        "lsh": lambda h, d: LSHAttention(h, d, num_hashes=2, seed=0, **near),
        "segmented": lambda h, d: SegmentedAttention(h, d, segment_length=SEGMENT, look_back=1),
        "decayed_cosformer": lambda h, d: DecayedCosFormerAttention(h, d, horizon=length),
        "retention": RetentionAttention,
        "gated_linear": GatedLinearAttention,
        "mamba2": lambda h, d: Mamba2Attention(h, d, conv_size=None),
    }


HYBRIDS = {"hybrid": "gated_linear"}
"""Name of a hybrid decoder -> the layer of its other blocks."""


def names(causal):
    """The attentions of a decoder or of an encoder."""
    return [*decoders(1), *HYBRIDS] if causal else list(encoders(1))


def layers(name, task, capacity=None):
    """The attention layers of a task's model, one for each block.

    Args:
        name: of the attention.
        task: a `Task`.
        capacity: steps that a stream of a decoder may have, if more than the task's length.

    Raises:
        ValueError: If there is no attention of this name.
    """
    if name not in names(task.causal):
        kind = "a decoder" if task.causal else "an encoder"
        raise ValueError(
            f"There is no attention {name!r} for {kind}. There are: {', '.join(names(task.causal))}"
        )
    known = decoders(task.length, capacity) if task.causal else encoders(task.length)
    size = task.size
    kinds = [name] * size.blocks
    if name in HYBRIDS:
        after = range(size.blocks, 0, -1)
        kinds = ["softmax" if n % SOFTMAX_EVERY == 1 else HYBRIDS[name] for n in after]
    return [known[kind](size.heads, size.key_dim) for kind in kinds]
