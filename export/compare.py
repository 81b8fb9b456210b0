"""A Keras model beside its exports on the same input: differences, sizes, times and memory.

    python export/compare.py model.keras [--input x.npy] [--steps 100] [--quantize weight_int8]
        [--fixed] [--tflite-runtime OTHER_ENVIRONMENT/bin/python]

`serve` reads the whole input in one call, `step` its first steps one by one. Each row is measured
in a process of its own that imports what it needs and no more, on one thread: the median of the
calls after the first ones, and the most memory that the process ever had.
"""

import argparse
import datetime
import functools
import json
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile

import keras
import numpy as np
from command_line import load_array, load_model, run

import keras_cosattn
from keras_cosattn import probe
from keras_cosattn.export import checks, files, to_saved_model, to_tflite
from keras_cosattn.export.plan import Plan
from keras_cosattn.export.quantization import QUANTIZATIONS

MEASURE = pathlib.Path(__file__).with_name("measure_process.py")
FORMS = {
    "keras": "Keras, TensorFlow",
    "saved_model": "SavedModel, TensorFlow",
    "tflite": "LiteRT",
    "tflite_runtime": "tflite-runtime",
    "micro": "tflite-micro",
}
COLUMNS = {"file, bytes": 18, "step, us": 17, "step, MiB": 16, "serve, ms": 17, "serve, MiB": 16}
LEAST_STEPS = 8  # of which the first are not timed


def main():
    arguments = parsed()
    model = load_model(arguments.model)
    x = load_array(arguments.input) if arguments.input else random_input(model, arguments.length)
    plan = Plan(model, sample=x, batch_size=len(keras.tree.flatten(x)[0]))
    inputs = plan.named_inputs(x)
    length = min(array.shape[1] for array in inputs.values())
    steps = min(arguments.steps, length, plan.stream.max_steps or length) if plan.stream else 0
    if plan.stream and steps < LEAST_STEPS:
        raise ValueError(f"A stream needs at least {LEAST_STEPS} steps to be timed. Got: {steps}")
    writers = exports(plan, x, arguments.quantize, length, arguments.fixed)
    writers["keras"] = functools.partial(shutil.copy, arguments.model)
    python = dict.fromkeys(FORMS, sys.executable) | {"tflite_runtime": arguments.tflite_runtime}

    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/x.npz", **inputs)
        for form in ["keras", *arguments.forms]:
            rows[form] = row(form, writers[form], folder, steps, python[form])
            if isinstance(rows["keras"], str):
                raise ValueError(f"Keras did not run the model: {rows['keras']}")

    sizes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
    print(
        f"{datetime.date.today()}  {platform.machine()}  Python {platform.python_version()}  "
        f"Keras {keras.__version__}  keras_cosattn {keras_cosattn.__version__}  seed 0\n"
        f"{arguments.model}: {sizes}, {steps} steps, quantize {arguments.quantize}; "
        "in brackets: times the value of Keras"
    )
    if plan.whole_only:
        print(f"no streaming: {plan.whole_only}")
    print_table(rows)


def parsed():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a .keras file")
    parser.add_argument("--forms", nargs="+", choices=list(FORMS)[1:], default=list(FORMS)[1:])
    parser.add_argument("--input", metavar="X.npy", help="(b, t, ...); random if left out")
    parser.add_argument("--length", type=int, default=128, help="steps of a random input")
    parser.add_argument("--steps", type=int, default=100, help="how many of them one by one")
    parser.add_argument(
        "--quantize", choices=QUANTIZATIONS, help="of .tflite files; int8 takes the input's ranges"
    )
    parser.add_argument("--fixed", action="store_true", help="`serve` of .tflite for this length")
    parser.add_argument("--tflite-runtime", metavar="PYTHON", help="of an environment that has it")
    return parser.parse_args()


def random_input(model, length):
    """One example."""
    two = probe.random_inputs(model, length)
    return keras.tree.map_structure(lambda array: np.asarray(array)[:1], two)


def exports(plan, x, quantize, length, fixed):
    """Form -> function that writes it to a path."""
    wanted = {"signatures": ["serve", "step"] if plan.stream else ["serve"], "sample": x}
    tflite = functools.partial(
        to_tflite, plan.model, batch_size=plan.batch_size, quantize=quantize,
        representative_data=[x],
    )  # fmt: skip
    usual = {**wanted, "length": length if fixed else None}
    return {
        "saved_model": functools.partial(to_saved_model, plan.model, **wanted),
        "tflite": functools.partial(tflite, **usual),
        "tflite_runtime": functools.partial(tflite, target="tflite-runtime", **usual),
        "micro": functools.partial(tflite, target="micro", length=length, sample=x),
    }


def row(form, write, folder, steps, python):
    """What one form took, a dict; or why that is not known, a string."""
    if python is None:
        return "left out: give --tflite-runtime the Python of an environment that has it"
    path, outputs = f"{folder}/model.{form}", f"{folder}/y_{form}.npz"
    try:
        write(path)
        command = [python, MEASURE, form, path, f"{folder}/x.npz", outputs, str(steps)]
        process = subprocess.run(command, capture_output=True, text=True)
    except Exception as error:  # whatever it is, the other forms are still to be compared
        return " ".join(str(error).split())
    if process.returncode:
        return (process.stderr.strip().splitlines() or [f"status {process.returncode}"])[-1]
    found = json.loads(process.stdout.splitlines()[-1])
    difference, sqnr = distances(f"{folder}/y_keras.npz", outputs)
    return {**found, "bytes": files.size(path), "difference": difference, "sqnr": sqnr}


def distances(expected, found):
    """The largest relative difference and the least SQNR in dB, over the signatures."""
    expected, found = dict(np.load(expected)), dict(np.load(found))
    pairs = [({name: expected[name]}, {name: found[name]}) for name in found]
    return (
        max(checks.largest_difference([pair]) for pair in pairs),
        min(checks.sqnr([pair]) for pair in pairs),
    )


def print_table(rows):
    heads = "".join(f"{name:>{width}}" for name, width in COLUMNS.items())
    print(f"{'':34}{heads}  difference  SQNR, dB")
    first = cells(rows["keras"])
    for form, found in rows.items():
        if isinstance(found, str):
            print(f"{FORMS[form]:34}{found}")
            continue
        values = "".join(
            f"{with_ratio(x, one):>{width}}"
            for x, one, width in zip(cells(found), first, COLUMNS.values(), strict=True)
        )
        label = f"{FORMS[form]} {found['version']}"
        print(f"{label:34}{values}  {found['difference']:10.1e}  {found['sqnr']:8.1f}")


def cells(found):
    """A row's numbers in the order of the columns; None for what it does not have."""
    numbers = [found["bytes"]]
    for name, unit in (("step", 1e6), ("serve", 1e3)):
        took = found.get(name, {"seconds": None, "peak": None})
        numbers.append(took["seconds"] and took["seconds"] * unit)
        numbers.append(took["peak"] and took["peak"] / 2**20)
    return numbers


def with_ratio(x, one):
    if x is None:
        return "-"
    form = ",.0f" if x >= 100 else ".3g"
    return f"{x:{form}} ({x / one:.2g})"


if __name__ == "__main__":
    run(main)
