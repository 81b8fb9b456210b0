"""Write a Keras model as a SavedModel for servers, and compare the two."""

from __future__ import annotations

import argparse

from keras_cosattn import export
from keras_cosattn.export.cli.internals import SIGNATURES
from keras_cosattn.export.cli.loading import load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `saved-model`."""
    parser.add_argument("model", help="a .keras file")
    parser.add_argument("output", help="the folder to write")
    parser.add_argument(
        "--signatures", nargs="+", choices=SIGNATURES, help="default: all that the model can do"
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the SavedModel, and print its report."""
    model = load_model(arguments.model)
    print(export.to_saved_model(model, arguments.output, signatures=arguments.signatures))
