"""Parse the command line, run the subcommand, and report an error in one line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from keras_cosattn.export.cli import compare, run, saved_model_command, show, tflite_command

COMMANDS = {
    "tflite": tflite_command,
    "saved-model": saved_model_command,
    "show": show,
    "compare": compare,
    "run": run,
}
"""Name -> module with `add_arguments(parser)` and `run(arguments)`."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: Sequence of strings. The arguments without the program's name. Defaults to those
            of the process.

    Raises:
        SystemExit: If the subcommand refuses something: with the error in one line, which makes
            the exit status 1. With status 2 if the arguments cannot be parsed.

    Example:
        >>> main(["show", "missing.tflite"])
        Traceback (most recent call last):
        SystemExit: keras-cosattn show: [Errno 2] No such file or directory: 'missing.tflite'
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # for the processes that are started
    arguments = create_parser().parse_args(argv)
    try:
        COMMANDS[arguments.command].run(arguments)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        sys.exit(f"keras-cosattn {arguments.command}: {' '.join(str(error).split())}")


def create_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = argparse.ArgumentParser("keras-cosattn", description="Keras models to devices.")
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or name).split("\n\n")[0].replace("\n", " ")
        module.add_arguments(subparsers.add_parser(name, help=summary, description=summary))
    return parser
