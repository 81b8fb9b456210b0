"""Run one format of a model in this process alone, and print what that took, as JSON.

    python measure_process.py FORMAT MODEL INPUTS.npz OUTPUTS.npz STEPS

`compare` starts a copy of this file next to a copy of `run_on_device.py`. Each format imports what
it needs and no more, so the formats for devices need no TensorFlow. Python 3.9 or later.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import time
import zipfile

import numpy as np

WARM_UP = 3  # untimed calls: they trace, allocate and fill caches
WHOLE_CALLS = 12


def keras(path, inputs):
    """The Keras model, compiled by `tf.function`."""
    import tensorflow as tf
    from keras import tree

    from keras_cosattn.export.cli.internals import ComparedModel
    from keras_cosattn.export.cli.loading import load_model

    _use_one_thread(tf)
    model, arrays = load_model(path), list(inputs.values())
    x = tree.pack_sequence_as(model.input, arrays) if len(arrays) > 1 else arrays[0]
    named = ComparedModel(model, x)
    return tf.__version__, _with_state(named.compile(), named.zero_state)


def saved_model(path, inputs):
    """The SavedModel, on TensorFlow."""
    import tensorflow as tf

    _use_one_thread(tf)
    signatures = tf.saved_model.load(path).signatures
    batch = len(next(iter(inputs.values())))
    start = signatures["init"](batch_size=tf.constant(batch)) if "init" in signatures else {}

    def call(name, x):
        return signatures[name](**{key: tf.constant(value) for key, value in x.items()})

    calls = {key: lambda x, key=key: call(key, x) for key in ("serve", "step") if key in signatures}
    return tf.__version__, _with_state(calls, start)


def tflite(path, inputs):
    """The .tflite file, on the runner of devices."""
    from importlib import metadata

    from run_on_device import Device, Interpreter

    device = Device(path)
    package = Interpreter.__module__.split(".")[0]
    calls = {"serve": device.whole, "step": device.step}
    return metadata.version(package), {
        name: lambda x, call=call: _named(call(x))
        for name, call in calls.items()
        if name in device.metadata["signatures"]
    }


def tflite_runtime(path, inputs):
    """As `tflite`, on tflite-runtime."""
    sys.modules["ai_edge_litert"] = None  # so that run_on_device.py does not find it
    return tflite(path, inputs)


def micro(path, inputs):
    """The .tflite file, on tflite-micro, which knows tensors by number."""
    from importlib import metadata

    from tflite_micro import runtime

    with zipfile.ZipFile(path) as archive:
        about = json.loads(archive.read("keras_cosattn.json"))
    with open(path, "rb") as file:
        content = file.read(about["content"]["bytes"])
    interpreter = runtime.Interpreter.from_bytes(content, arena_size=about["arena_bytes"])
    (signature,) = about["signatures"]
    takes, gives = about["signatures"][signature].values()
    start = {name: np.zeros(*takes[name]) for name in about["state"] if name in takes}

    def call(x):
        for number, key in enumerate(takes):
            interpreter.set_input(x[key], number)
        interpreter.invoke()
        return {key: interpreter.get_output(number) for number, key in enumerate(gives)}

    return metadata.version("tflite_micro"), _with_state({signature: call}, start)


FORMATS = {load.__name__: load for load in (keras, saved_model, tflite, tflite_runtime, micro)}


def _with_state(calls, state):
    """The calls, where `step` keeps the state for its next call."""

    def step(x):
        nonlocal state
        found = dict(calls["step"]({**x, **state}))
        state = {name: found.pop(name) for name in state}
        return found

    return {**calls, "step": step} if "step" in calls else calls


def _named(outputs):
    return outputs if isinstance(outputs, dict) else {"y": outputs}


def _use_one_thread(tf):
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def time_calls(call, pieces):
    """The outputs of every piece, and the median of the seconds that a call takes."""
    outputs, seconds = [], []
    for piece in pieces:
        start = time.perf_counter()
        outputs.append({name: np.asarray(y) for name, y in call(piece).items()})
        seconds.append(time.perf_counter() - start)
    return outputs, statistics.median(seconds[WARM_UP:])


def peak_bytes():
    """The largest memory that this process ever had; None where Linux does not report it."""
    try:
        with open("/proc/self/status") as file:  # ru_maxrss begins with the parent's memory
            (kilobytes,) = re.findall(r"VmHWM:\s+(\d+)", file.read())
    except OSError:
        return None
    return int(kilobytes) * 1024


def main(name, path, inputs, outputs, steps):
    """Measure one format, write its outputs, and print the numbers."""
    x = dict(np.load(inputs))
    version, calls = FORMATS[name](path, x)
    found, kept = {"version": version}, {}
    if "step" in calls:  # first, for it takes less memory
        pieces = [{k: v[:, i : i + 1] for k, v in x.items()} for i in range(int(steps))]
        ys, seconds = time_calls(calls["step"], pieces)
        kept.update({f"step/{k}": np.concatenate([y[k] for y in ys], axis=1) for k in ys[0]})
        found["step"] = {"seconds": seconds, "peak": peak_bytes()}
    if "serve" in calls:
        ys, seconds = time_calls(calls["serve"], [x] * WHOLE_CALLS)
        kept.update({f"serve/{k}": y for k, y in ys[-1].items()})
        found["serve"] = {"seconds": seconds, "peak": peak_bytes()}
    np.savez(outputs, **kept)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
