"""The modules of `benchmarks/programs/`, each run in a process of its own."""

import json
import os
import pathlib
import subprocess
import sys

FOLDER = pathlib.Path(__file__).parent.parent
PROGRAMS = FOLDER / "programs"


def run_program(name, *arguments):
    """What a program prints, read as JSON. It can import this package and `measure`.

    Raises:
        RuntimeError: With what it wrote to stderr, if it fails.
    """
    command = [sys.executable, PROGRAMS / f"{name}.py", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": python_path()}
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    if found.returncode:
        raise RuntimeError(found.stderr)
    return json.loads(found.stdout)


def python_path():
    """Where a process finds `measure` and this package, before what the caller set."""
    more = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(filter(None, [str(FOLDER), str(FOLDER.parent), *more]))
