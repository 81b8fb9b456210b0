"""Forms of the causal sums of cosFormer beside each other, each with what was predicted for it.

    python benchmarks/formulations.py [--lengths 4096 16384] [--repeats 7]

All forms are arguments of `causal_cosine_attention`, so that the table can be measured again when
the sums change. Outputs and gradients of all forms must agree before they are timed. Then they
take turns in one process, and the median of the turns counts. The tables are
`benchmarks/results/formulations.md`.

The prediction is the time of the products, the masked half included, at the rate of a product of
2,048 x 2,048, and of the tensors that leave the cache at the rate of a copy into fresh memory. It
assumes that what a loop over blocks makes stays in the cache.
"""

import argparse
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from measure import results
from measure.clock import best_rate

from keras_cosattn.ops import causal_cosine_attention

HORIZON = 1024
FORMS = {
    # name: chunk, block (None: all steps), other arguments
    "all chunks of 64 at once": (64, None, {}),
    "loop over blocks of 64": (64, 64, {}),
    "loop over blocks of 128": (128, 128, {}),
    "loop over blocks of 256": (256, 256, {}),
    "loop over blocks of 512, in chunks of 64": (64, 512, {}),
    "loop over blocks of 128, horizon": (128, 128, {"horizon": HORIZON}),
    "loop over blocks of 128, packed": (128, 128, {"packed": True}),
}


def attention(n, chunk, block, horizon=None, packed=False):
    options = {"horizon": horizon} if horizon else {"max_length": n}
    if packed:
        ids = np.arange(n) // (n // 8) + np.arange(n) // 1000
        options["segment_ids"] = tf.constant(ids[None], "int32")

    def call(q, k, v):
        return causal_cosine_attention(
            q, k, v, chunk_size=chunk, block_size=block or max(n, chunk), **options
        )[0]

    return call


def with_gradient(call):
    def run(q, k, v):
        with tf.GradientTape() as tape:
            tape.watch([q, k, v])
            total = tf.reduce_sum(tf.square(call(q, k, v)))
        return tape.gradient(total, [q, k, v])

    return run


def check(functions, arrays):
    """Stop if a form that computes the same as the first differs from it."""
    first = None
    for name, function in functions.items():
        if "horizon" in name or "packed" in name:
            continue
        found = [x.numpy() for x in tf.nest.flatten(function(*arrays))]
        first = first or found
        for a, b in zip(found, first, strict=True):
            if not np.abs(a - b).max() <= 1e-4 * np.abs(b).max():
                sys.exit(f"error: '{name}' differs from the first form")


def median_times(functions, arrays, repeats):
    for function in functions.values():
        function(*arrays)
    seconds = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            tf.nest.flatten(function(*arrays))[0].numpy()
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * float(np.median(found)) for name, found in seconds.items()}


def prediction(n, chunk, block, heads, d, gradient, rates, horizon=None, packed=False):
    """Milliseconds: products at their rate, and tensors that leave the cache."""
    products = n * heads * (2 * 2 * chunk * d + 2 * 2 * (2 * d) * d * (1.5 if horizon else 1))
    floats = 4 * n * heads * d  # q, k, v and the output
    if block is None:  # features of q and k, scores, and the sums of the chunks, four times
        floats += 2 * n * heads * (2 * 2 * d + chunk) + 4 * n // chunk * heads * 2 * d * d
    if gradient:
        products, floats = products * 4, floats * 3  # the forward again, and twice its products
    return 1e3 * (products / rates["flops"] + 4 * floats / rates["bytes"])


def measured_rates():
    x = tf.random.normal((2048, 2048))
    product = tf.function(lambda x: tf.linalg.matmul(x, x))
    source = np.ones(1 << 24, np.float32)
    return {
        "flops": best_rate(lambda: product(x).numpy(), 2 * 2048**3),
        "bytes": best_rate(lambda: source.copy(), source.nbytes),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    keras.utils.set_random_seed(0)
    rates, rows = measured_rates(), {name: [name] for name in FORMS}
    head = ["form"]
    for n in given.lengths:
        shape = given.batch, n, given.heads, given.size
        arrays = [tf.random.normal(shape, seed=i) for i in range(3)]
        for gradient in (False, True):
            what = f"{n:,}, {'with gradient' if gradient else 'forward'}"
            head += [f"{what}: predicted", "graph", "XLA"]
            for name, (chunk, block, options) in FORMS.items():
                ms = prediction(n, chunk, block, given.heads * given.batch, given.size, gradient,
                                rates, **options)  # fmt: skip
                rows[name].append(f"{ms:,.0f}")
            for jit in (False, True):
                calls = {name: attention(n, *form[:2], **form[2]) for name, form in FORMS.items()}
                calls = {n: with_gradient(c) if gradient else c for n, c in calls.items()}
                calls = {
                    name: tf.function(call, jit_compile=jit, autograph=False)
                    for name, call in calls.items()
                }
                check(calls, arrays)
                for name, ms in median_times(calls, arrays, given.repeats).items():
                    rows[name].append(f"{ms:,.0f}")
    machine = ", ".join(f"{name} {value}" for name, value in results.machine().items())
    lines = [
        "# Forms of the causal sums\n\n",
        f"`{results.command()}`, {time.strftime('%Y-%m-%d')}, seed 0\n\n{machine}; "
        f"tensorflow {tf.__version__}, keras {keras.__version__}; sources of the package "
        f"{results.fingerprint()}\n\n",
        f"Milliseconds, medians of {given.repeats}; batch {given.batch}, {given.heads} heads of "
        f"{given.size}, float32, causal cosFormer. Products run at {rates['flops'] / 1e9:.0f} "
        f"GFLOP/s and copies into fresh memory at {rates['bytes'] / 1e9:.1f} GB/s.\n\n",
        *(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows.values())),
    ]
    results.write(results.FOLDER / "formulations.md", "".join(lines))
    print("".join(lines))


if __name__ == "__main__":
    main()
