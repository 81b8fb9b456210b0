"""Run a .tflite file on an array, as a device does."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `run`."""
    parser.add_argument("file", help="a .tflite file, of a model with one input and one output")
    parser.add_argument("input", help="a .npy file of shape (batch, steps, ...)")
    parser.add_argument("output", help="the .npy file to write")
    parser.add_argument("--threads", type=int, default=1, help="threads of the interpreter")


def run(arguments: argparse.Namespace) -> None:
    """Run the file, and print what was read and written."""
    from keras_cosattn.export import run_on_device  # needs an interpreter

    paths = arguments.file, arguments.input, arguments.output
    print(run_on_device.main(*paths, threads=arguments.threads))
