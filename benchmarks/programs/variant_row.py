"""Print the time or the peak memory of a layer with 2 heads of 32, causal where it can be.

python variant_row.py time|memory LAYER STEPS

`time` prints the median of five calls in seconds, and its ratio to softmax's. `memory` prints the
peak of forward + gradient in MiB.
"""

import json
import math
import statistics
import sys
import time

import keras
import numpy as np
import tensorflow as tf
from measure.layer_memory import gradient_peak

import keras_cosattn as kc


def layers(n):
    """Name -> a function that makes the layer for n steps."""
    root = 2 ** round(math.log2(n) / 2)  # about sqrt(n)
    return {
        "softmax": lambda: kc.SoftmaxAttention(2, 32),
        "linear": lambda: kc.LinearAttention(2, 32),
        "cosformer": lambda: kc.CosFormerAttention(2, 32, max_length=1 << 20),
        "decayed_cosformer": lambda: kc.DecayedCosFormerAttention(2, 32),
        "performer": lambda: kc.PerformerAttention(2, 32, num_random_features=64),
        "retention": lambda: kc.RetentionAttention(2, 32),
        "mamba2": lambda: kc.Mamba2Attention(2, 32),
        "gated_linear": lambda: kc.GatedLinearAttention(2, 32),
        "delta_rule": lambda: kc.DeltaRuleAttention(2, 32),
        "gated_delta_rule": lambda: kc.DeltaRuleAttention(2, 32, gated=True),
        "windowed_linear": lambda: kc.WindowedLinearAttention(2, 32, window=64),
        "lsh": lambda: kc.LSHAttention(2, 32, num_hashes=2, num_buckets=n // 32, bucket_size=64),
        "low_rank": lambda: kc.LowRankAttention(2, 32, max_length=n, rank=64),
        "nystrom": lambda: kc.NystromAttention(2, 32, num_landmarks=64),
        "segmented": lambda: kc.SegmentedAttention(2, 32, segment_length=128, look_back=1),
        "segmented_summaries": lambda: kc.SegmentedAttention(
            2, 32, segment_length=root, summaries="mean"
        ),
        "hierarchical": lambda: kc.HierarchicalAttention(2, 32, unit_sizes=(root // 4, 8)),
        "recurrent_memory": lambda: kc.RecurrentMemoryAttention(
            2, 32, segment_length=128, memory_length=128
        ),
        "compressive_memory": lambda: kc.CompressiveMemoryAttention(2, 32, segment_length=128),
        "clustered_routing": lambda: kc.ClusteredRoutingAttention(
            2, 32, num_clusters=root, cluster_size=root
        ),
        "routed": lambda: kc.RoutedAttention(
            [
                kc.CosFormerAttention(2, 32, max_length=1 << 20),
                kc.SegmentedAttention(2, 32, segment_length=128),
            ]
        ),
    }


def build(name, n):
    layer = layers(n)[name]()
    layer.build((1, None, 64), (1, None, 64))
    return layer, "causal" not in layer.cannot


def inputs(n):
    return tf.constant(np.random.default_rng(0).standard_normal((1, n, 64)), "float32")


def compiled(name, n):
    """A compiled layer that agrees with the layer called eagerly."""
    layer, causal = build(name, n)
    run = tf.function(lambda x: layer(x, x, use_causal_mask=causal))
    short = inputs(min(n, 256))
    np.testing.assert_allclose(
        run(short), layer(short, short, use_causal_mask=causal), rtol=1e-3, atol=1e-4
    )
    return run


def seconds(run, x):
    start = time.perf_counter()
    run(x).numpy()
    return time.perf_counter() - start


def time_beside_softmax(name, n):
    ours, softmax, x = compiled(name, n), compiled("softmax", n), inputs(n)
    ours(x), softmax(x)
    pairs = [(seconds(ours, x), seconds(softmax, x)) for _ in range(5)]
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    return [mine, mine / theirs]


def memory(name, n):
    layer, causal = build(name, n)
    return gradient_peak(layer, inputs(n), causal)


keras.utils.set_random_seed(0)
what, name, steps = sys.argv[1:]
print(json.dumps({"time": time_beside_softmax, "memory": memory}[what](name, int(steps))))
