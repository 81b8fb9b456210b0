"""The command line of `keras_cosattn.export`: one module for each subcommand."""

from keras_cosattn.export.cli.main import main

__all__ = ["main"]
