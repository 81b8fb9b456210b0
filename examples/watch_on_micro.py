"""Name the exercise at every sample on a microcontroller's runtime: train, export, run, compare.

    python examples/watch_on_micro.py [--quick] [--output output]

The model of watch_stream.py is trained without one person, becomes files for tflite-micro, and
reads that person's recordings there, one sample at a time, next to Keras. Needs the extra `micro`;
its Python interpreter runs the C++ code that goes into a microcontroller's firmware.
"""

import quiet  # isort: skip  # noqa: F401  before TensorFlow
import argparse
import importlib.metadata
import pathlib
import time

import keras
import numpy as np
import watch_data
from tflite_micro import runtime
from watch_model import ATTENTION, SEED, WINDOW, build, cross_validate

from keras_cosattn.export import to_tflite

PERSON, EPOCHS, CALIBRATION = 10, 7, 16
FILES = {
    "float32": {},
    "in variables": {"state": "variables"},
    "weight_int8": {"quantize": "weight_int8"},
    "int8": {"quantize": "int8"},
}


def stream(report, x):
    """Feed `x (steps, 6)` to the file sample by sample: its outputs, and microseconds for each."""
    micro = runtime.Interpreter.from_file(report.path, arena_size=report.arena_bytes)
    _, *state = report.signatures["step"]["inputs"].values()
    state = [np.zeros(*spec) for spec in state]
    outputs, times = [], []
    for sample in x[:, None, None]:  # (1, 1, 6)
        start = time.perf_counter()
        for i, tensor in enumerate([sample, *state]):
            micro.set_input(tensor, i)
        micro.invoke()
        y, *state = [micro.get_output(i) for i in range(1 + len(state))]
        times.append(1e6 * (time.perf_counter() - start))
        outputs.append(y[0, 0])
    return watch_data.log_softmax(np.array(outputs)), times


def column(test, outputs, expected):
    """The table's rows on what is said at each sample, beside what Keras says."""
    y, wanted = np.concatenate(outputs), np.concatenate(expected)
    labels = np.repeat(test.labels, [len(x) for x in test.series])
    said = [y.mean(axis=0).argmax() for y in outputs]
    return {
        "same exercise as Keras": f"{(y.argmax(1) == wanted.argmax(1)).mean():.3%}",
        "largest difference, log-probability": f"{np.abs(y - wanted).max():.1e}",
        "accuracy per sample": f"{(y.argmax(1) == labels).mean():.4f}",
        "accuracy per recording": f"{np.mean(said == test.labels):.3f}",
    }


parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--quick", action="store_true", help="one epoch, two files")
parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
arguments = parser.parse_args()
arguments.output.mkdir(parents=True, exist_ok=True)
keras.utils.set_random_seed(SEED)
watch, model = watch_data.load(), build(ATTENTION["cosFormer"](None))
epochs = 1 if arguments.quick else EPOCHS
((test, expected),) = cross_validate(model, watch, [(PERSON,)], epochs)
seen, _ = watch.without(PERSON).windows(CALIBRATION, WINDOW, np.random.default_rng(SEED))
files = ["float32", "weight_int8"] if arguments.quick else list(FILES)
columns = {}
for name in files:
    path = arguments.output / f"watch_micro_{name.replace(' ', '_')}.tflite"
    report = to_tflite(
        model, path, target="micro", representative_data=seen[:, None], **FILES[name]
    )
    outputs, times = zip(*(stream(report, x) for x in test.series), strict=True)
    columns[name] = {
        "file, bytes": f"{report.size:,}",
        "arena, bytes": f"{report.arena_bytes:,}",
        "state, bytes": f"{report.state_bytes:,}",
        "us per sample": f"{np.median(np.concatenate(times)):.0f}",
        "SQNR of the export, dB": f"{report.sqnr['step']:.1f}",
        **column(test, outputs, expected),
    }
columns["Keras"] = column(test, expected, expected)
steps = sum(map(len, expected))
print(f"\nPerson {PERSON}, not seen in training: {len(expected)} recordings, {steps:,} samples")
print(f"tflite-micro {importlib.metadata.version('tflite-micro')}", end="")
watch_data.print_table(columns, SEED)
