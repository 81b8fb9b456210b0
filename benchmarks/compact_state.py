"""What a state in integers loses over a long stream, for every layer whose stream has no end.

    python benchmarks/compact_state.py [--steps 100000] [--cases NAME ...]

One layer of 4 heads of 16, with its initial weights, reads a random stream one step in a call, once
with an exact state and once for each `state_dtype`. A number is the SQNR of the outputs in dB, over
a tenth of the steps that end where the column says. The bytes are those of one example's state. The
derivation is `docs/compact_state.md`. The table is `benchmarks/results/compact_state.md`.
"""

import argparse
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from measure import report, results

import keras_cosattn as kc

SEED, WIDTH, HEADS, SIZE = 0, 64, 4, 16
DTYPES = (None, "int16", "int8")
LAYERS = {
    "`RetentionAttention`, RetNet's decays": lambda: kc.RetentionAttention(HEADS, SIZE),
    "`GatedLinearAttention`": lambda: kc.GatedLinearAttention(HEADS, SIZE),
    "`DeltaRuleAttention`": lambda: kc.DeltaRuleAttention(HEADS, SIZE),
    "`DeltaRuleAttention(gated=True)`": lambda: kc.DeltaRuleAttention(HEADS, SIZE, gated=True),
    "`Mamba2Attention`": lambda: kc.Mamba2Attention(HEADS, SIZE),
    "`DecayedCosFormerAttention(horizon=64)`": lambda: kc.DecayedCosFormerAttention(
        HEADS, SIZE, horizon=64
    ),
    "`CosFormerAttention(horizon=64)`": lambda: kc.CosFormerAttention(HEADS, SIZE, horizon=64),
    "`SegmentedAttention(64)`, a window": lambda: kc.SegmentedAttention(
        HEADS, SIZE, segment_length=64
    ),
    "`LinearAttention`, sums without decay": lambda: kc.LinearAttention(HEADS, SIZE),
}


def streams(make):
    """`{state_dtype: Streaming}` of one layer."""
    keras.utils.set_random_seed(SEED)
    layer, x = make(), keras.Input((None, WIDTH))
    model = keras.Model(x, layer(x, x, use_causal_mask=True))
    return {dtype: kc.Streaming(model, state_dtype=dtype) for dtype in DTYPES}


def decades(steps):
    """Where the columns end: 1,000 steps, and ten times as many until `steps`."""
    ends = [1_000]
    while ends[-1] * 10 <= steps:
        ends.append(ends[-1] * 10)
    return ends


def measure(read, steps):
    """`{state_dtype: SQNR at each column}`."""
    x = np.random.default_rng(SEED).standard_normal((steps, 1, 1, WIDTH)).astype("float32")
    ends = tf.constant(decades(steps))

    @tf.function(autograph=False)
    def run(x):
        def step(i, states, signal, noise):
            outputs, new = zip(
                *(stream(x[i], state) for stream, state in zip(read.values(), states, strict=True)),
                strict=True,
            )
            inside = tf.cast((i < ends) & (i >= ends - ends // 10), "float32")
            power = tf.reduce_sum(outputs[0] ** 2)
            lost = tf.stack([tf.reduce_sum((y - outputs[0]) ** 2) for y in outputs[1:]])
            return i + 1, list(new), signal + inside * power, noise + inside[:, None] * lost

        start = [stream.initial_state(1) for stream in read.values()]
        zeros = tf.zeros(len(ends))
        first = tf.constant(0), start, zeros, tf.zeros((len(ends), len(DTYPES) - 1))
        _, _, signal, noise = tf.while_loop(lambda i, *_: i < steps, step, first)
        return 10 * tf.experimental.numpy.log10(signal[:, None] / noise)

    return dict(zip(DTYPES[1:], run(tf.constant(x)).numpy().T, strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=100_000, help="at least 1,000")
    parser.add_argument("--cases", nargs="+", choices=[name.strip("`") for name in LAYERS])
    parser.add_argument("--output", type=pathlib.Path, default=results.FOLDER)
    arguments, body = parser.parse_args(), []
    ends = decades(arguments.steps)
    columns = [f"{dtype}, {end:,}" for dtype in DTYPES[1:] for end in ends]
    sizes = [f"{dtype or 'exact'}, bytes" for dtype in DTYPES]
    for name, make in LAYERS.items():
        if arguments.cases is None or name.strip("`") in arguments.cases:
            read = streams(make)
            found = measure(read, arguments.steps)
            bytes_ = [f"{stream.state_bytes:,}" for stream in read.values()]
            sqnr = [f"{x:.0f}" for dtype in DTYPES[1:] for x in found[dtype]]
            body.append([name, *bytes_, *sqnr])
            print(*body[-1], flush=True)
    text = [
        results.opening("A stream's state in integers", SEED),
        f"SQNR of the outputs in dB. Width {WIDTH}, {HEADS} heads of {SIZE}, one step a call.\n\n",
        *report.table(["layer", *sizes, *columns], body),
    ]
    results.write(arguments.output / "compact_state.md", "".join(text))


if __name__ == "__main__":
    main()
