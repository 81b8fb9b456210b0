"""Name the exercise at every sample of a watch: train, export, run on the device's runtime.

    python examples/watch_stream.py [--quick] [--output output]

A small causal cosFormer, and the same model with softmax, are trained with `model.fit` and tested
on people not seen in training; another person decides when training stops. The last fold's model
becomes a .tflite file, which LiteRT runs on such a person's recording one sample at a time.
"""

import argparse
import pathlib
import time

import keras
import numpy as np
import watch_data
from ai_edge_litert.interpreter import Interpreter

from keras_cosattn import (
    CausalConv1D,
    CosFormerAttention,
    SoftmaxAttention,
    Streaming,
    TransformerDecoder,
)
from keras_cosattn.export import to_tflite

SEED, WINDOW, BATCH, STEPS, LONGEST = 1, 256, 16, 60, 3000
FOLDS = [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10)]  # people
ATTENTION = {
    "cosFormer": lambda length: CosFormerAttention(2, 16, horizon=WINDOW),
    "softmax": lambda length: SoftmaxAttention(2, 16, max_length=length),
}


def build(attention):
    x = inputs = keras.Input((None, 6))
    x = CausalConv1D(32, 9, activation="relu")(x)
    x = CausalConv1D(32, 5, dilation_rate=4, activation="relu")(x)
    x = TransformerDecoder(64, attention=attention, normalize_first=True, dropout=0.2)(x)
    return keras.Model(inputs, keras.layers.Dense(7)(keras.layers.LayerNormalization()(x)))


def cross_validate(model, watch, folds, epochs):
    """Train once per fold. Yields the fold's recordings and the model's outputs on them."""
    rate = keras.optimizers.schedules.CosineDecay(
        3e-4, STEPS * epochs, warmup_target=3e-3, warmup_steps=10
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, weighted_metrics=["accuracy"])
    model.optimizer.build(model.trainable_variables)
    start = model.get_state_tree(value_format="numpy_array")  # so that it compiles only once
    for fold in folds:
        print(f"Training without persons {fold}", flush=True)
        rng, judge, test = np.random.default_rng(SEED), fold[-1] % 10 + 1, watch.of(*fold)
        model.set_state_tree(start)
        model.fit(
            watch.without(*fold, judge).batches(BATCH, WINDOW, rng),
            steps_per_epoch=STEPS,
            epochs=epochs,
            validation_data=watch.of(judge).windows(8 * BATCH, WINDOW, rng),
            validation_batch_size=BATCH,
            callbacks=[keras.callbacks.EarlyStopping(patience=3, restore_best_weights=True)],
        )
        yield test, [whole(model, x) for x in test.series]


def whole(model, x):
    return watch_data.log_softmax(np.asarray(model(x[None], training=False))[0])


def stream(report, x):
    """Feed `x (steps, 6)` to the file sample by sample: its outputs, and microseconds for each."""
    step = Interpreter(report.path).get_signature_runner("step")
    inputs = report.signatures["step"]["inputs"]
    state = {name: np.zeros(*inputs[name]) for name in report.state}
    outputs, times = [], []
    for sample in x[:, None, None]:  # (1, 1, 6)
        start = time.perf_counter()
        state = step(x=sample, **state)
        times.append(1e6 * (time.perf_counter() - start))
        outputs.append(state.pop("y")[0, 0])
    return watch_data.log_softmax(np.array(outputs)), np.array(times)


def measure(name, watch, folds, epochs, output):
    """One column of the table, after drawing the stream of a recording."""
    keras.utils.set_random_seed(SEED)
    model = build(ATTENTION[name](LONGEST))
    rows = watch_data.accuracy(cross_validate(model, watch, folds, epochs))
    report = to_tflite(model, output / f"watch_{name}.tflite")
    x, label = watch.of(folds[-1][-1]).longest()
    y, times = stream(report, x)
    watch_data.draw(x, y, label, watch.names, output / f"watch_{name}.png")
    rows |= {"parameters": f"{model.count_params():,}", "file, bytes": f"{report.size:,}"}
    for n in (100, 1_000, 100_000):
        state_bytes = Streaming(build(ATTENTION[name](n))).state_bytes
        rows[f"state to read {n:,} samples, bytes"] = f"{state_bytes:,}"
    rows["first 100 samples, us each"] = f"{np.median(times[:100]):.0f}"
    rows[f"last 100 of {len(x):,}, us each"] = f"{np.median(times[-100:]):.0f}"
    rows["largest difference to Keras"] = f"{np.abs(y - whole(model, x)).max():.1e}"
    return rows


parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--quick", action="store_true", help="one person, one epoch")
parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
arguments = parser.parse_args()
arguments.output.mkdir(parents=True, exist_ok=True)
folds, epochs = ([(10,)], 1) if arguments.quick else (FOLDS, 7)
watch = watch_data.load()
columns = {name: measure(name, watch, folds, epochs, arguments.output) for name in ATTENTION}
columns["random forest"] = watch_data.forest(watch, folds, SEED)
watch_data.print_table(columns, SEED)
