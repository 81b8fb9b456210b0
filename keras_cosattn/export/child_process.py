"""Programs of this package in processes of their own."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

PROGRAMS = pathlib.Path(__file__).parent / "programs"


def run_program(
    name: str, *arguments: str | int, input: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a module of `keras_cosattn.export.programs` and capture what it prints.

    `python -m` finds the module in its folder and not in the package, which would import Keras.

    Args:
        name: str. The name of the module.
        *arguments: The arguments of its command line.
        input: bytes. The standard input. Defaults to `None`.
    """
    paths = [str(PROGRAMS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, "-m", name, *map(str, arguments)],
        input=input, capture_output=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip


def last_lines(process: subprocess.CompletedProcess[bytes], count: int = 1) -> str:
    """The last lines that a program wrote to its standard error."""
    lines = process.stderr.decode(errors="replace").splitlines()
    return " | ".join([line for line in lines if line.strip()][-count:])
