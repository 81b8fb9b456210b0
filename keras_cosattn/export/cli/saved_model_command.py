"""Write a Keras model as a SavedModel for servers, and compare the two."""

from __future__ import annotations

import argparse

from keras_cosattn import export
from keras_cosattn.export.cli.internals import SIGNATURES, STATE_DTYPES
from keras_cosattn.export.cli.loading import load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `saved-model`."""
    parser.add_argument("model", help="a .keras file")
    parser.add_argument("output", help="the folder to write")
    parser.add_argument(
        "--signatures", nargs="+", choices=SIGNATURES, help="default: all that the model can do"
    )
    add_state_dtype(parser)


def add_state_dtype(parser: argparse.ArgumentParser) -> None:
    """Add the argument `--state-dtype`."""
    parser.add_argument(
        "--state-dtype", choices=STATE_DTYPES, help="round the state to integers; default: exact"
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the SavedModel, and print its report."""
    model = load_model(arguments.model)
    report = export.to_saved_model(
        model,
        arguments.output,
        signatures=arguments.signatures,
        state_dtype=arguments.state_dtype,
    )
    print(report)
