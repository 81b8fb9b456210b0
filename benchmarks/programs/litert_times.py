"""Print what calls of TFLite files take on LiteRT with one thread. It needs NumPy and LiteRT alone.

python litert_times.py whole FILE.tflite
python litert_times.py turns STEPS FILE.tflite ...
python litert_times.py chunks FILE.tflite ...
python litert_times.py ages FILE.tflite YOUNG OLD
"""

import json
import sys
import time

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from measure.resident import largest_resident, resident

MIB = 2**20


def load(path, signature):
    return Interpreter(path, num_threads=1).get_signature_runner(signature)


def draw(details):
    rng = np.random.default_rng(0)
    inputs = {}
    for name, about in details.items():
        shape, kind = about["shape"], about["dtype"]
        x = rng.integers(0, 256, shape) if kind == np.int32 else rng.standard_normal(shape)
        inputs[name] = (x if name == "x" else np.zeros(shape)).astype(kind)
    return inputs


def whole(path):
    """Time and memory of `serve`."""
    before = resident()
    run = load(path, "serve")
    inputs, times = draw(run.get_input_details()), []
    for _ in range(7):
        start = time.perf_counter()
        run(**inputs)
        times.append(1e3 * (time.perf_counter() - start))
    peak = largest_resident()
    return {"ms": float(np.median(times[1:])), "peak": peak / MIB, "more": (peak - before) / MIB}


def turns(steps, *paths):
    """Time of `serve` of each file, in turns, so that all meet the same disturbances."""
    runs, times = [load(path, "serve") for path in paths], [[] for _ in paths]
    b, _, *rest = runs[0].get_input_details()["x"]["shape"]
    x = np.random.default_rng(0).standard_normal((b, int(steps), *rest)).astype("float32")
    for _ in range(101):
        for run, spent in zip(runs, times, strict=True):
            start = time.perf_counter()
            run(x=x)
            spent.append(1e3 * (time.perf_counter() - start))
    return [float(np.median(spent[1:])) for spent in times]


def chunks(*paths):
    """Time of a token in `prefill`, in turns, so that all meet the same disturbances."""
    runs = [load(path, "prefill") for path in paths]
    states = [draw(run.get_input_details()) for run in runs]
    times = [[] for _ in paths]
    for _ in range(400):
        for run, inputs, spent in zip(runs, states, times, strict=True):
            start = time.perf_counter()
            found = run(**inputs)
            spent.append(1e6 * (time.perf_counter() - start) / inputs["x"].shape[1])
            inputs.update({name: found[name] for name in inputs if name != "x"})
    return [float(np.median(spent)) for spent in times]


def ages(path, young, old):
    """Time of `step` in turns after `young` and after `old` steps, and the sizes of the state."""
    young, old = int(young), int(old)
    prefill, step = load(path, "prefill"), load(path, "step")
    x, states, position = draw(prefill.get_input_details()), {}, 0
    sizes = set()
    while position < old:
        found = prefill(**x)
        x.update({name: found[name] for name in x if name != "x"})
        position += x["x"].shape[1]
        state = {name: value for name, value in x.items() if name != "x"}
        sizes.add(sum(value.nbytes for value in state.values()))
        for age in (young, old):
            if age not in states and position >= age:
                states[age] = dict(state)
    times = {age: [] for age in states}
    one = draw(step.get_input_details())["x"]
    for _ in range(4000):
        for age, state in states.items():
            start = time.perf_counter()
            found = step(x=one, **state)
            times[age].append(1e6 * (time.perf_counter() - start))
            states[age] = {name: found[name] for name in state}
    return {"us": [float(np.median(times[age])) for age in (young, old)], "bytes": sorted(sizes)}


work, *arguments = sys.argv[1:]
measured = {"whole": whole, "turns": turns, "chunks": chunks, "ages": ages}[work](*arguments)
print(json.dumps(measured))
