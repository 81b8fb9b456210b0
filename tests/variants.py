"""Every attention layer of the package, with the arguments that the shared tests give it."""

import inspect

import numpy as np

from keras_cosattn import TrigonometricFeatures, attention

OPTIONS = {
    "SoftmaxAttention": {
        "cache": {"max_length": 300},
        "capped": {"max_length": 300, "logit_soft_cap": 2.0, "use_query_key_norm": True},
    },
    "LinearAttention": {
        "elu": {},
        "relu": {"feature_map": "relu", "chunk_size": 4},
        "norm": {"use_query_key_norm": True},
    },
    "CosFormerAttention": {
        "bounded": {"max_length": 300},
        "endless": {"horizon": 8},
        "paper": {},
    },
    "CompressiveMemoryAttention": {
        "sums": {"segment_length": 4},
        "delta_rule": {"segment_length": 3, "delta_rule": True},
    },
    "RecurrentMemoryAttention": {
        "uneven": {"segment_length": 4, "memory_length": 6},
        "tokens": {"segment_length": 4, "memory_length": 3, "num_memory_tokens": 2},
    },
    "RoutedAttention": {
        "two": {"paths": [("LinearAttention", {}), ("SoftmaxAttention", {"max_length": 300})]}
    },
    "LowRankAttention": {
        "each_head": {"max_length": 300, "rank": 5, "share_heads": False},
        "shared": {"max_length": 300, "rank": 24, "share_key_value": True},
    },
    "NystromAttention": {
        "means": {"num_landmarks": 3},
        "conv": {"num_landmarks": 3, "conv_kernel_size": 5},
    },
    "SegmentedAttention": {
        "windows": {"segment_length": 4, "look_back": 1},
        "summaries": {"segment_length": 3, "summaries": "attention", "max_length": 300},
    },
    "WindowedLinearAttention": {
        "hedgehog": {"window": 4},
        "elu": {"window": 3, "feature_map": "elu+1", "block_size": 7},
    },
    "PerformerAttention": {
        "positive": {"num_random_features": 12, "seed": 3},
        "trigonometric": {
            "num_random_features": 48,
            "features": TrigonometricFeatures(1.5),
            "seed": 5,
        },
        "conv": {"num_random_features": 12, "conv_size": 3, "seed": 3},
    },
    "LSHAttention": {
        "buckets": {
            "num_hashes": 2,
            "num_buckets": 4,
            "bucket_size": 4,
            "max_length": 300,
            "seed": 3,
        },
    },
    "ClusteredRoutingAttention": {
        "strict": {"num_clusters": 3, "cluster_size": 4, "max_length": 300, "seed": 3},
    },
    "DecayedCosFormerAttention": {"horizon": {"horizon": 8}},
    "RetentionAttention": {
        "retnet": {"chunk_size": 4},
        "conv": {"decay": "lightning", "conv_size": 3, "position": None},
    },
    "GatedLinearAttention": {
        "gates": {"gate_low_rank_dim": 2, "gate_logit_normalizer": 2.0},
        "conv": {"gate_low_rank_dim": 4, "conv_size": 4, "use_output_gate": False},
    },
    "DeltaRuleAttention": {
        "delta_net": {"chunk_size": 4, "num_groups": 1},
        "gated": {"gated": True, "allow_neg_eigval": True},
        "channel": {"gated": "channel", "conv_size": None},
    },
    "Mamba2Attention": {"convolution": {}, "plain": {"chunk_size": 5, "conv_size": None}},
    "HierarchicalAttention": {
        "two": {"unit_sizes": (4,), "max_length": 300},
        "three": {"unit_sizes": (3, 2), "aggregator": "mean", "max_length": 300},
    },
}
"""Name of a variant -> the arguments to test it with. One not named here is tested with none."""

VARIANTS = [
    cls
    for _, cls in inspect.getmembers(attention, inspect.isclass)
    if issubclass(cls, attention.Attention) and cls is not attention.Attention
]

CASES = {
    f"{cls.__name__}-{label}": (cls, arguments)
    for cls in VARIANTS
    for label, arguments in OPTIONS.get(cls.__name__, {"default": {}}).items()
}
HEADS, SHARED, KEY_DIM, VALUE_DIM, WIDTH = 6, 3, 5, 7, 11
SIZES = {"num_key_value_heads": SHARED, "value_dim": VALUE_DIM, "bias_initializer": "normal"}


def layer_of(cls, num_heads, key_dim, paths=(), **arguments):
    """A layer; one of `paths`, pairs of class name and arguments, gives them all but its own."""
    if not paths:
        return cls(num_heads, key_dim, **arguments)
    own = set(arguments) & {"dtype", *inspect.signature(cls).parameters}
    own = {name: arguments.pop(name) for name in own}
    layers = [
        getattr(attention, name)(num_heads, key_dim, **{**arguments, **options})
        for name, options in paths
    ]
    return cls(layers, **own)


def make(case, **more):
    """A layer of a case, with sizes that all differ and biases that are not zero."""
    cls, arguments = CASES[case]
    return layer_of(cls, HEADS, KEY_DIM, **{**SIZES, **arguments, **more})


CANNOT = {name: make(name).cannot for name in CASES}


def that_can(*uses):
    """The cases that refuse none of the uses."""
    return [name for name in CASES if not set(uses) & set(CANNOT[name])]


CHUNKED = [
    name for name, (cls, _) in CASES.items() if "chunk_size" in inspect.signature(cls).parameters
]
CAUSAL = that_can("causal")
STREAMING = that_can("causal", "stream")
BIDIRECTIONAL = that_can("both ways")
DIRECTIONS = [(name, True) for name in CAUSAL] + [(name, False) for name in BIDIRECTIONAL]
CROSS = [(name, causal) for name, causal in DIRECTIONS if "cross" not in CANNOT[name]]
SPARSE = {"SegmentedAttention-windows", "LSHAttention-buckets", "ClusteredRoutingAttention-strict"}
"""Cases in which a step may see few of the others, even of a short sequence."""
ONE_BUCKET = {
    "LSHAttention": {"num_buckets": 1},
    "ClusteredRoutingAttention": {"num_clusters": 1, "cluster_size": 300},
}
"""Arguments with which a variant has no keys to choose: where two are all but equally near, a
coarser rounding chooses the other, and the output jumps."""
LOOPS = {"CompressiveMemoryAttention-delta_rule", "RecurrentMemoryAttention-tokens"}
"""Cases with a loop over segments, which TFLite takes with a fixed batch only."""
TOKENS = {"RecurrentMemoryAttention-tokens"}
"""Cases with tokens of the input's width among the steps: they can have no other `output_shape`,
and the weights of the steps do not sum to one."""
OPTIONAL = {"SoftmaxAttention-capped", "LinearAttention-norm"}
"""Cases that differ from others in a few lines, so that a part of the quick tests runs them."""

PLAIN = {"SoftmaxAttention", "LinearAttention", "CosFormerAttention"}
"""Variants whose weights are those of `keras.layers.MultiHeadAttention`."""


def build(case, query_width=WIDTH, value_width=WIDTH, **more):
    """The layer of `make`, built."""
    layer = make(case, **more)
    layer.build((None, None, query_width), (None, None, value_width))
    return layer


def inputs(rng, *shape):
    return rng.standard_normal(shape).astype("float32")


def mask_of(lengths, steps, side="right"):
    """`(b, steps)`: padding after, or with side "left" before, the given lengths."""
    real = np.arange(steps) < np.asarray(lengths)[:, None]
    return real if side == "right" else real[:, ::-1]
