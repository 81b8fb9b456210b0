"""Time and peak memory of every layer beside softmax as the length grows fourfold, twice.

    python benchmarks/variants.py [--lengths 1024 4096 16384] [--layers lsh nystrom ...]

Batch 1, 2 heads of 32, float32, causal where the layer can be. Time is the median of five forward
calls, as a ratio to softmax's in the same process, called in turns; memory is the peak of
forward + gradient on Linux, less that of a call on 64 steps, each in a process of its own. Before
timing, the compiled layer has to agree with the layer called eagerly. "x4" is what a fourfold
length, the last step of the table, multiplies: 4 is linear, 16 quadratic.
"""

import argparse
import datetime
import json
import platform
import subprocess
import sys

SETUP = """
import json, math, re, statistics, sys, time
import numpy as np, tensorflow as tf
import keras
import keras_cosattn as kc
name, n = sys.argv[1], int(sys.argv[2])
root = 2 ** round(math.log2(n) / 2)  # about sqrt(n)
LAYERS = {
    "softmax": lambda: kc.SoftmaxAttention(2, 32),
    "linear": lambda: kc.LinearAttention(2, 32),
    "cosformer": lambda: kc.CosFormerAttention(2, 32, max_length=1 << 20),
    "performer": lambda: kc.PerformerAttention(2, 32, num_random_features=64),
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
keras.utils.set_random_seed(0)

def build(name):
    layer = LAYERS[name]()
    layer.build((1, None, 64), (1, None, 64))
    return layer, "causal" not in layer.cannot

def inputs(n):
    return tf.constant(np.random.default_rng(0).standard_normal((1, n, 64)), "float32")
"""

TIME = (
    SETUP
    + """
def compiled(name):
    layer, causal = build(name)
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

ours, softmax, x = compiled(name), compiled("softmax"), inputs(n)
ours(x), softmax(x)
pairs = [(seconds(ours, x), seconds(softmax, x)) for _ in range(5)]
mine, theirs = (statistics.median(column) for column in zip(*pairs))
print(json.dumps([mine, mine / theirs]))
"""
)

MEMORY = (
    SETUP
    + """
layer, causal = build(name)

@tf.function
def gradient(x):
    with tf.GradientTape() as tape:
        y = layer(x, x, use_causal_mask=causal)
    return tape.gradient(y, layer.trainable_variables)

def peak():
    with open("/proc/self/status") as file:  # ru_maxrss begins with the parent's memory
        return int(re.search(r"VmHWM:\\s+(\\d+)", file.read())[1]) / 1024

x = inputs(n)
gradient(x[:, :64])
before = peak()
gradient(x)
print(json.dumps(peak() - before))
"""
)

NAMES = [
    "softmax", "linear", "cosformer", "performer", "lsh", "low_rank", "nystrom", "segmented",
    "segmented_summaries", "hierarchical", "recurrent_memory", "compressive_memory",
    "clustered_routing", "routed",
]  # fmt: skip


def run(script, name, length):
    command = [sys.executable, "-c", script, name, str(length)]
    row = subprocess.run(command, capture_output=True, text=True)
    if row.returncode:
        raise RuntimeError(row.stderr)
    return json.loads(row.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--layers", nargs="+", choices=NAMES, default=NAMES)
    arguments = parser.parse_args()
    import keras
    import tensorflow as tf

    print(
        f"{datetime.date.today()}  {platform.machine()}  Python {platform.python_version()}  "
        f"TensorFlow {tf.__version__}  Keras {keras.__version__}  seed 0"
    )
    lengths = arguments.lengths
    columns = "".join(f"{n:>8,}" for n in lengths)
    print(f"{'':20}{'time, of softmax':>{len(columns) + 6}}{'peak MiB':>{len(columns) + 8}}")
    print(f"{'layer':20}{columns}    x4  {columns}    x4")
    for name in arguments.layers:
        times = [run(TIME, name, n) for n in lengths]
        peaks = [run(MEMORY, name, n) for n in lengths]
        ratios = "".join(f"{ratio:8.2f}" for _, ratio in times)
        growth = times[-1][0] / times[-2][0]
        memory = "".join(f"{peak:8.0f}" for peak in peaks)
        print(
            f"{name:20}{ratios}{growth:6.1f}  {memory}{peaks[-1] / max(peaks[-2], 1):6.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
