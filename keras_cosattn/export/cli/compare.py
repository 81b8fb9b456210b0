"""Compare a Keras model with its exports on one input: difference, size, time and memory.

`serve` reads the whole input in one call, `step` reads its first steps one by one. Each row of the
table is measured in a process of its own (`measure_process.py`), which imports what it needs and no
more, on one thread.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_cosattn import probe
from keras_cosattn.export import to_saved_model, to_tflite
from keras_cosattn.export.cli import compare_table, internals
from keras_cosattn.export.cli.loading import load_array, load_model

PROGRAMS = [
    pathlib.Path(__file__).with_name("measure_process.py"),
    pathlib.Path(__file__).parent.with_name("run_on_device.py"),
]
"""Copied to the folder of the measurement, as to a device."""

FORMATS = list(compare_table.LABELS)[1:]
FEWEST_STEPS = 8  # the first of them are not timed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `compare`."""
    parser.add_argument("model", help="a .keras file")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument(
        "--input", metavar="X.npy", help="(batch, steps, ...); default: random numbers"
    )
    parser.add_argument(
        "--length", type=int, default=128, help="steps of a random input; default: 128"
    )
    parser.add_argument(
        "--steps", type=int, default=100, help="steps read one by one; default: 100"
    )
    parser.add_argument(
        "--quantize", choices=internals.QUANTIZATIONS,
        help="for the .tflite files; int8 takes its ranges from the input",
    )  # fmt: skip
    parser.add_argument(
        "--fixed", action="store_true", help="export `serve` of .tflite files for this length only"
    )
    parser.add_argument(
        "--tflite-runtime", metavar="PYTHON", help="the Python of an environment that has it"
    )


def run(arguments: argparse.Namespace) -> None:
    """Print the table."""
    model = load_model(arguments.model)
    x = load_array(arguments.input) if arguments.input else random_input(model, arguments.length)
    named = internals.ComparedModel(model, x)
    steps = count_steps(named, arguments.steps)
    writers: dict[str, Callable[[str], Any]] = {
        "keras": functools.partial(shutil.copy, arguments.model),
        **export_functions(model, x, named, arguments),
    }
    rows = measure(named, writers, steps, arguments)
    sizes = ", ".join(f"{name} {list(array.shape)}" for name, array in named.inputs.items())
    print(
        f"{compare_table.versions()}\n"
        f"{arguments.model}: {sizes}, {steps} steps, quantize {arguments.quantize}; "
        "in brackets: divided by the value of Keras"
    )
    if named.whole_only:
        print(f"no streaming: {named.whole_only}")
    compare_table.print_table(rows)


def random_input(model: Any, length: int) -> Any:
    """One example."""
    two = probe.random_inputs(model, length)
    return keras.tree.map_structure(lambda array: np.asarray(array)[:1], two)


def count_steps(named: internals.ComparedModel, wanted: int) -> int:
    """The steps to read one by one; 0 without a stream. Raises ValueError if they are too few."""
    if "step" not in named.signatures:
        return 0
    length = min(array.shape[1] for array in named.inputs.values())
    steps = min(wanted, length, named.max_steps or length)
    if steps < FEWEST_STEPS:
        raise ValueError(f"A stream needs at least {FEWEST_STEPS} steps to be timed. Got: {steps}")
    return steps


def export_functions(
    model: Any, x: Any, named: internals.ComparedModel, arguments: argparse.Namespace
) -> dict[str, Callable[[str], Any]]:
    """Format -> function that writes it to a path."""
    length = min(array.shape[1] for array in named.inputs.values())
    whole = {"signatures": named.signatures, "sample": x}
    tflite = functools.partial(
        to_tflite, model, batch_size=named.batch_size, quantize=arguments.quantize,
        representative_data=[x],
    )  # fmt: skip
    sized = {**whole, "length": length if arguments.fixed else None}
    return {
        "saved_model": functools.partial(to_saved_model, model, **whole),
        "tflite": functools.partial(tflite, **sized),
        "tflite_runtime": functools.partial(tflite, target="tflite-runtime", **sized),
        "micro": functools.partial(tflite, target="micro", length=length, sample=x),
    }


def measure(
    named: internals.ComparedModel,
    writers: dict[str, Callable[[str], Any]],
    steps: int,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Format -> its row: a dict of numbers, or a string that says why there are none."""
    pythons = {"tflite_runtime": arguments.tflite_runtime}
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for program in PROGRAMS:
            shutil.copy(program, folder)
        np.savez(f"{folder}/x.npz", **named.inputs)
        for name in ["keras", *arguments.formats]:
            python = pythons.get(name, sys.executable)
            rows[name] = measure_row(name, writers[name], folder, steps, python)
            if isinstance(rows["keras"], str):
                raise ValueError(f"Keras did not run the model: {rows['keras']}")
    return rows


def measure_row(
    name: str, write: Callable[[str], Any], folder: str, steps: int, python: str | None
) -> dict[str, Any] | str:
    """The row of one format."""
    if python is None:
        return "left out: give --tflite-runtime the Python of an environment that has it"
    path, outputs = f"{folder}/model.{name}", f"{folder}/y_{name}.npz"
    program = f"{folder}/{PROGRAMS[0].name}"
    try:
        write(path)
        command = [python, program, name, path, f"{folder}/x.npz", outputs, str(steps)]
        process = subprocess.run(command, capture_output=True, text=True)
    except Exception as error:  # one format that fails must not end the comparison of the others
        return " ".join(str(error).split())
    if process.returncode:
        return (process.stderr.strip().splitlines() or [f"status {process.returncode}"])[-1]
    expected, found = dict(np.load(f"{folder}/y_keras.npz")), dict(np.load(outputs))
    difference, sqnr = internals.compare_outputs(expected, found)
    return {
        **json.loads(process.stdout.splitlines()[-1]),
        "bytes": internals.size_on_disk(path),
        "difference": difference,
        "sqnr": sqnr,
    }
