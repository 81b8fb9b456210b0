"""Rounding of every layer in half precision and in float32, beside Keras's softmax attention.

    python benchmarks/precision.py [--length 256] [--cases NAME ...]

Each layer computes with the same weights in float64, in float32, and with the mixed policies of
bfloat16 and float16. A number is the largest difference to float64, of the largest number in
float64: of the output, and of the gradient by the input. For the gradient there is also the median
of the steps: of the sizes of their differences, of the sizes of their gradients. The rows are the
cases of the tests.
Layers that choose keys by content have one bucket or cluster here: where two keys are all but
equally near, a coarser rounding chooses the other. The table is `benchmarks/results/precision.md`.
"""

import argparse
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tests"))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
import variants
from measure import report, results

SEED, WIDTH, HEADS, SIZE = 0, 64, 4, 16
POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")
KERAS = "keras.layers.MultiHeadAttention"


def layer_of(case, dtype):
    keras.utils.set_random_seed(SEED)
    if case == KERAS:
        return keras.layers.MultiHeadAttention(HEADS, SIZE, dtype=dtype)
    cls, arguments = variants.CASES[case]
    arguments = {**arguments, **variants.ONE_BUCKET.get(cls.__name__, {}), "dtype": dtype}
    return variants.layer_of(cls, HEADS, SIZE, **arguments)


def output_and_gradient(case, causal, dtype, x, g, weights):
    layer = layer_of(case, dtype)
    layer.build(x.shape, x.shape)
    if weights is not None:
        layer.set_weights(weights)

    @tf.function(autograph=False)
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, x, use_causal_mask=causal)
            total = tf.reduce_sum(tf.cast(y, x.dtype) * tf.cast(g, x.dtype))
        return y, tape.gradient(total, x)

    kind = "float64" if dtype == "float64" else "float32"
    found = [tf.cast(y, "float64").numpy() for y in run(tf.constant(x, kind))]
    return found, layer.get_weights()


def errors(case, causal, length):
    """Of a case, for each policy the errors of output and gradient, largest and middling."""
    rng = np.random.default_rng(SEED)
    x, g = (rng.standard_normal((2, length, WIDTH)).astype("float32") for _ in range(2))
    exact, weights = output_and_gradient(case, causal, "float64", x, g, None)
    found = []
    for policy in POLICIES:
        rounded, _ = output_and_gradient(case, causal, policy, x, g, weights)
        found += [
            np.abs(a - b).max() / np.abs(b).max() for a, b in zip(rounded, exact, strict=True)
        ]
        sizes = [np.linalg.norm(x, axis=-1) for x in (rounded[1] - exact[1], exact[1])]
        found.append(np.median(sizes[0]) / np.median(sizes[1]))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--cases", nargs="+", choices=[KERAS, *variants.CASES], metavar="NAME")
    parser.add_argument("--output", type=pathlib.Path, default=results.FOLDER)
    given = parser.parse_args()
    rows = [(KERAS, True), (KERAS, False), *variants.DIRECTIONS]
    body = []
    for case, causal in rows:
        if given.cases is None or case in given.cases:
            numbers = [f"{error:.0e}" for error in errors(case, causal, given.length)]
            body.append([case, "causal" if causal else "both", *numbers])
            print(*body[-1], flush=True)
    head = ["layer", "direction"]
    head += [f"{name}{of}" for name in POLICIES for of in ("", ", gradient", ", its median")]
    text = "".join(
        [
            results.opening("Rounding of the layers", SEED),
            f"Batch 2, {given.length} steps of width {WIDTH}, {HEADS} "
            f"heads of {SIZE}. The largest difference to float64, of the largest number. The "
            "median is that of the steps: of the sizes of their differences, of the sizes of their "
            "gradients.\n\n",
            *report.table(head, body),
            "Layers with relu features differ more in the gradient "
            "than in the output: a projection that rounds to the other side of zero has the other "
            "slope. Where that number was nearly all of a normaliser, one step has most of the "
            "difference, and the median shows the others.\n",
        ]
    )
    results.write(given.output / "precision.md", text)


if __name__ == "__main__":
    main()
