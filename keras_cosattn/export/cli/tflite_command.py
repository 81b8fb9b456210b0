"""Write a Keras model as a .tflite file for devices, and compare the two."""

from __future__ import annotations

import argparse

import numpy as np

from keras_cosattn import export
from keras_cosattn.export.cli.internals import QUANTIZATIONS, SIGNATURES, TARGETS
from keras_cosattn.export.cli.loading import load_array, load_model
from keras_cosattn.export.cli.saved_model_command import add_state_dtype


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tflite`."""
    parser.add_argument("model", help="a .keras file")
    parser.add_argument("output", help="the .tflite file to write")
    parser.add_argument(
        "--target", choices=TARGETS, default="litert", help="the runtime; default: litert"
    )
    parser.add_argument("--quantize", choices=QUANTIZATIONS, help="default: float32")
    parser.add_argument(
        "--signatures", nargs="+", choices=SIGNATURES, help="default: all that the model can do"
    )
    parser.add_argument("--length", type=int, help="steps of `serve`; default: any number")
    parser.add_argument(
        "--prefill-chunk", type=number_or_any, default=128, metavar="STEPS",
        help="steps of `prefill`, a number or 'any'; default: 128",
    )  # fmt: skip
    parser.add_argument(
        "--batch-size", type=number_or_any, default=1, help="a number or 'any'; default: 1"
    )
    parser.add_argument(
        "--state", choices=["tensors", "variables"], default="tensors",
        help="the state as inputs and outputs, or inside the interpreter; default: tensors",
    )  # fmt: skip
    add_state_dtype(parser)
    parser.add_argument(
        "--representative", metavar="DATA.npy", help="examples (n, steps, ...), needed by int8"
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the file, and print its report."""
    report = export.to_tflite(
        load_model(arguments.model),
        arguments.output,
        target=arguments.target,
        quantize=arguments.quantize,
        signatures=arguments.signatures,
        length=arguments.length,
        prefill_chunk=arguments.prefill_chunk,
        batch_size=arguments.batch_size,
        state=arguments.state,
        state_dtype=arguments.state_dtype,
        representative_data=representative_batches(arguments),
    )
    print(report)


def representative_batches(arguments: argparse.Namespace) -> list[np.ndarray] | None:
    """The batches that `--representative` gives."""
    if arguments.representative is None:
        return None
    examples, size = load_array(arguments.representative), arguments.batch_size or 1
    return [examples[start : start + size] for start in range(0, len(examples), size)]


def number_or_any(text: str) -> int | None:
    """A number; None for "any", which leaves a size open.

    Example:
        >>> number_or_any("64"), number_or_any("any")
        (64, None)
    """
    if text == "any":
        return None
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a number or 'any', not {text!r}") from error
