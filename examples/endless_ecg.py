"""Predict every sample of an endless ECG, in constant memory on the device's runtime.

    python examples/endless_ecg.py [--quick] [--output output]

A small causal cosFormer gives the probabilities of the next sample's 8-bit level; its loss is the
bits a coder would write for it. LiteRT then reads all five minutes sample by sample. The model is
trained on the first 100 seconds and scored on the other 200.
"""

import quiet  # isort: skip  # noqa: F401  before TensorFlow
import argparse
import pathlib
import time

import ecg_data
import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from watch_data import print_table

from keras_cosattn import CausalConv1D, CosFormerAttention, TransformerDecoder
from keras_cosattn.export import to_tflite

SEED, WINDOW, HORIZON, BATCH, STEPS, EPOCHS = 1, 1024, 512, 4, 100, 15
FILES = {"float32": None, "dynamic int8": "dynamic_int8"}


def build():
    x = inputs = keras.Input((None, 2))
    x = CausalConv1D(32, 16, activation="relu")(x)
    x = near = CausalConv1D(32, 5, dilation_rate=4, activation="relu")(x)
    attention = CosFormerAttention(2, 16, horizon=HORIZON)
    x = TransformerDecoder(64, attention=attention, normalize_first=True, dropout=0.1)(x)
    x = keras.layers.Concatenate()([keras.layers.LayerNormalization()(x), near])
    x = keras.layers.Dense(48, activation="silu")(x)
    x = keras.layers.Concatenate()([x, CausalConv1D(16, 16)(inputs)])
    return keras.Model(inputs, keras.layers.Dense(ecg_data.OUTPUTS)(x))


def train(model, millivolt, epochs):
    rate = keras.optimizers.schedules.CosineDecay(
        1e-3, STEPS * epochs, warmup_target=1e-2, warmup_steps=50
    )
    adam = keras.optimizers.Adam(rate, clipnorm=1.0)
    model.compile(adam, ecg_data.bits, weighted_metrics=[ecg_data.bits])
    windows = ecg_data.batches(millivolt, BATCH, WINDOW, np.random.default_rng(SEED))
    model.fit(windows, steps_per_epoch=STEPS, epochs=epochs, verbose=2)


def stream(report, x):
    """Feed `x (t, 2)` to the file: outputs; us, bytes of state and KiB of memory at each step."""
    step, init = map(Interpreter(report.path).get_signature_runner, ("step", "init"))
    state = init()
    # Filled beforehand, for results that pile up would take more memory from step to step.
    outputs, log = np.ones((len(x), ecg_data.OUTPUTS), "float32"), np.ones((len(x), 3))
    for i, sample in enumerate(x[:, None, None]):  # (1, 1, 2)
        start = time.perf_counter()
        state = step(x=sample, **state)
        spent = 1e6 * (time.perf_counter() - start)
        outputs[i] = state.pop("y")[0, 0]
        log[i] = spent, sum(part.nbytes for part in state.values()), ecg_data.resident()
    return outputs, log.T


def measure(name, model, x, change, output):
    """A file's outputs for all samples, and its column of the table."""
    path = output / f"endless_ecg_{FILES[name] or name}.tflite"
    report = to_tflite(model, path, signatures=("step",), quantize=FILES[name], sample=x[None, :64])
    y, (spent, size, memory) = stream(report, x)
    medians = np.median(spent[:1000]), np.median(spent[-1000:])
    return y, {
        ecg_data.SCORE: f"{ecg_data.score(change, y):.3f}",
        ecg_data.WHOLE: "-",
        "parameters": f"{model.count_params():,}",
        "file, bytes": f"{report.size:,}",
        "state, at the first and last sample, bytes": f"{size[0]:,.0f}, {size[-1]:,.0f}",
        "process after 1,000 samples, KiB": f"{memory[999]:,.0f}",
        f"  at most until {len(x):,}, KiB": f"{memory[999:].max():,.0f}",
        "first and last 1,000 samples, us each": "{:.0f}, {:.0f}".format(*medians),
    }


parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--quick", action="store_true", help="one epoch")
parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
arguments = parser.parse_args()
arguments.output.mkdir(parents=True, exist_ok=True)
keras.utils.set_random_seed(SEED)
millivolt, model, columns = ecg_data.load(), build(), {}
train(model, millivolt, 1 if arguments.quick else EPOCHS)
level = ecg_data.levels(millivolt)
x, change = ecg_data.pairs(level)
for name in FILES:
    y, columns[name] = measure(name, model, x, change, arguments.output)
ecg_data.draw(level, change, y, name, arguments.output / "endless_ecg.png")
print_table(columns | ecg_data.baselines(level), SEED)
