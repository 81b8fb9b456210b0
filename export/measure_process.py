"""Run one form of a model in this process alone, and print what that took, as JSON.

    python measure_process.py FORM MODEL INPUTS.npz OUTPUTS.npz STEPS

compare.py starts it. Each form imports what it needs and no more; Python 3.9 or later.
"""

import json
import re
import statistics
import sys
import time
import zipfile

import numpy as np

WARM_UP = 3  # calls left out of the times: they trace, allocate and fill caches
WHOLE_CALLS = 12


def keras(path, inputs):
    import tensorflow as tf
    from command_line import load_model
    from keras import tree

    from keras_cosattn.export.plan import Plan

    _one_thread(tf)
    model, arrays = load_model(path), list(inputs.values())
    sample = tree.pack_sequence_as(model.input, arrays) if len(arrays) > 1 else arrays[0]
    plan = Plan(model, sample=sample, batch_size=len(arrays[0]))
    whole = tf.function(lambda x: model(x, training=False))
    stream = plan.stream and tf.function(plan.stream)

    def run(name, x):
        if name == "serve":
            return plan.named_outputs(whole(plan.nest(x)))
        y, state = stream(plan.nest(x), {key: x[key] for key in plan.state_spec})
        return {**plan.named_outputs(y), **state}

    start = plan.zero_state()
    return tf.__version__, _calls(run, ["serve", "step"] if stream else ["serve"], start)


def saved_model(path, inputs):
    import tensorflow as tf

    _one_thread(tf)
    signatures = tf.saved_model.load(path).signatures
    batch = len(next(iter(inputs.values())))
    start = signatures["init"](batch_size=tf.constant(batch)) if "init" in signatures else {}

    def run(name, x):
        return signatures[name](**{key: tf.constant(value) for key, value in x.items()})

    return tf.__version__, _calls(run, signatures, start)


def tflite(path, inputs):
    from importlib import metadata

    from run_on_device import Device, Interpreter

    device = Device(path)
    package = Interpreter.__module__.split(".")[0]
    calls = {"serve": device.whole, "step": device.step}
    return metadata.version(package), {
        name: lambda x, call=call: _named(call(x))
        for name, call in calls.items()
        if name in device.about["signatures"]
    }


def tflite_runtime(path, inputs):
    sys.modules["ai_edge_litert"] = None  # which run_on_device.py would take first
    return tflite(path, inputs)


def micro(path, inputs):
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

    def run(name, x):
        for place, key in enumerate(takes):
            interpreter.set_input(x[key], place)
        interpreter.invoke()
        return {key: interpreter.get_output(place) for place, key in enumerate(gives)}

    return metadata.version("tflite_micro"), _calls(run, [signature], start)


FORMS = {start.__name__: start for start in (keras, saved_model, tflite, tflite_runtime, micro)}


def _calls(run, signatures, state):
    """`serve` and `step` as functions of named inputs; `step` goes on from where it was."""

    def step(x):
        nonlocal state
        found = dict(run("step", {**x, **state}))
        state = {name: found.pop(name) for name in state}
        return found

    calls = {"serve": lambda x: run("serve", x), "step": step}
    return {name: call for name, call in calls.items() if name in signatures}


def _named(outputs):
    return outputs if isinstance(outputs, dict) else {"y": outputs}


def _one_thread(tf):
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def timed(call, pieces):
    """The outputs of every piece, and the median of the seconds that a call takes."""
    outputs, seconds = [], []
    for piece in pieces:
        start = time.perf_counter()
        outputs.append({name: np.asarray(y) for name, y in call(piece).items()})
        seconds.append(time.perf_counter() - start)
    return outputs, statistics.median(seconds[WARM_UP:])


def peak_bytes():
    """The most memory that this process ever had; None where Linux does not say it."""
    try:
        with open("/proc/self/status") as file:  # ru_maxrss begins with the parent's memory
            return int(re.search(r"VmHWM:\s+(\d+)", file.read())[1]) * 1024
    except OSError:
        return None


def main(form, path, inputs, outputs, steps):
    x = dict(np.load(inputs))
    version, calls = FORMS[form](path, x)
    found, kept = {"version": version}, {}
    if "step" in calls:  # first, for it takes less memory
        pieces = [{k: v[:, i : i + 1] for k, v in x.items()} for i in range(int(steps))]
        ys, seconds = timed(calls["step"], pieces)
        kept.update({f"step/{k}": np.concatenate([y[k] for y in ys], axis=1) for k in ys[0]})
        found["step"] = {"seconds": seconds, "peak": peak_bytes()}
    if "serve" in calls:
        ys, seconds = timed(calls["serve"], [x] * WHOLE_CALLS)
        kept.update({f"serve/{k}": y for k, y in ys[-1].items()})
        found["serve"] = {"seconds": seconds, "peak": peak_bytes()}
    np.savez(outputs, **kept)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
