"""Tell from its bytes whether a film review is good: train, export, run on a phone's runtime.

    python examples/byte_classifier_to_phone.py [--quick] [--output output]

A small cosFormer that looks both ways, and the same model with softmax, read up to 4,096 bytes of a
review, four at a step, and learn from the same batches of reviews of similar length. Each becomes
two .tflite files of fixed length, in float32 and with int8 weights, which LiteRT runs on one thread
on held-out reviews, padded. Settings were chosen on a part of the training reviews. Needs Linux.
"""

import quiet  # isort: skip  # noqa: F401  before TensorFlow
import argparse
import pathlib
import time

import keras
import numpy as np
import review_data
import watch_data
from keras import layers, ops
from keras.optimizers.schedules import CosineDecay

from keras_cosattn import CosFormerAttention, SoftmaxAttention, TransformerEncoder
from keras_cosattn.export import to_tflite

SEED, LENGTH, STRIDE, WIDTH, GRAMS, BUCKETS, BATCH_BYTES = 1, 4096, 4, 64, (3, 5, 7), 8192, 16_384
ATTENTION = {
    "cosFormer": CosFormerAttention(2, WIDTH // 2, max_length=LENGTH // STRIDE),
    "softmax": SoftmaxAttention(2, WIDTH // 2),
}


def hashed(codes, n):
    """The n bytes that end at each step as a number below `BUCKETS`: Pagnoni et al., 2024."""
    number = codes
    for back in range(1, n):
        number = (257 * number - ops.pad(codes, ((0, 0), (back, 0)))[:, :-back]) % BUCKETS
    return number


def build(attention):
    """Padding is 0. Up to its mask no step sees what is behind, so it changes nothing."""
    codes = keras.Input((None,), dtype="int32")
    real = codes[:, ::STRIDE] != 0
    x = [layers.Embedding(256, 32)(codes)]
    x = layers.Add()(x + [layers.Embedding(BUCKETS, 32)(hashed(codes, n)) for n in GRAMS])
    x = layers.Conv1D(WIDTH, 8, strides=STRIDE, padding="causal", activation="relu")(x)
    block = TransformerEncoder(2 * WIDTH, attention=attention, normalize_first=True, dropout=0.1)
    x = layers.LayerNormalization()(block(layers.LayerNormalization()(x), padding_mask=real))
    x = layers.GlobalAveragePooling1D()(x, mask=real)
    # Means over a thousand steps differ little between reviews.
    x = layers.BatchNormalization(momentum=0.95)(x)
    return keras.Model(codes, layers.Dense(1)(layers.Dropout(0.1)(x)))


def fit(model, reviews, steps):
    """Train. Returns the seconds of one core that it took."""
    rate = CosineDecay(0.0, steps, warmup_target=3e-3, warmup_steps=steps // 20)
    optimizer, loss = keras.optimizers.Adam(rate), keras.losses.BinaryCrossentropy(True)
    model.compile(optimizer, loss, jit_compile=False)  # XLA would compile once for each length
    start = time.process_time()
    batches = reviews.batches(BATCH_BYTES, SEED).repeat()
    model.fit(batches, steps_per_epoch=steps // 4, epochs=4, shuffle=False, verbose=2)
    return time.process_time() - start


def measure(name, train, test, sample, steps, output):
    """One column of the table."""
    print(f"Training with {name}", flush=True)
    keras.utils.set_random_seed(SEED)
    model = build(ATTENTION[name])
    seconds, size = fit(model, train, steps), model.count_params()
    rows = {review_data.SECONDS: f"{seconds:.0f}", "parameters": f"{size:,}"}
    batches = test.batches(BATCH_BYTES, SEED).as_numpy_iterator()
    right = [(model.predict_on_batch(x) > 0) == (y > 0) for x, y in batches]
    rows[review_data.ROW.format(len(test))] = f"{np.concatenate(right).mean():.3f}"
    unpadded = np.array([np.asarray(model(x[None], training=False))[0, 0] for x in sample.texts])
    rows[review_data.ROW.format(len(sample))] = sample.accuracy(unpadded)
    checked = sample.part(slice(64)).padded()
    for kind, quantize in {"float32": None, "int8": "dynamic_int8"}.items():
        path = output / f"reviews_{name}_{kind}.tflite"
        options = {"signatures": ("serve",), "length": LENGTH, "sample": checked}
        report = to_tflite(model, path, quantize=quantize, **options)
        found = review_data.on_device(report, sample, unpadded)
        rows |= {f"{kind}: {row}": cell for row, cell in found.items()}
    return rows


parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--quick", action="store_true", help="few steps and reviews")
parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
arguments = parser.parse_args()
arguments.output.mkdir(parents=True, exist_ok=True)
steps, count, most = (60, 40, 2000) if arguments.quick else (1200, 1000, None)
train, test = (half.part(slice(most)) for half in review_data.load(LENGTH, SEED))
tests = train, test, test.part(slice(count))
columns = {name: measure(name, *tests, steps, arguments.output) for name in ATTENTION}
columns["TF-IDF + logistic regression"] = review_data.tfidf(*tests)
watch_data.print_table(columns, SEED)
