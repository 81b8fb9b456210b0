"""Name the exercise at every sample of a watch: train, export, run on the device's runtime.

    python examples/watch_stream.py [--quick] [--output output]

A small causal cosFormer, and the same model with softmax, are trained with `model.fit` and tested
on people not seen in training; another person decides when training stops. The last fold's model
becomes a .tflite file, which LiteRT runs on such a person's recording one sample at a time.
"""

import quiet  # isort: skip  # noqa: F401  before TensorFlow
import argparse
import pathlib
import time

import keras
import numpy as np
import watch_data
from ai_edge_litert.interpreter import Interpreter
from watch_model import ATTENTION, SEED, build, cross_validate, whole

from keras_cosattn import Streaming
from keras_cosattn.export import to_tflite

LONGEST = 3000
FOLDS = [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10)]  # people


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
