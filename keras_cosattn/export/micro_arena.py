"""The arena that tflite-micro needs for a model."""

from __future__ import annotations

import itertools
import re

from keras_cosattn.export.child_process import run_program

PROGRAM = "allocate_on_micro"


def micro_arena(content: bytes) -> int:
    """Return the bytes of arena in which tflite-micro runs a model, to a KiB.

    Args:
        content: bytes. The model.

    Raises:
        ValueError: If tflite-micro cannot load the model, or cannot run it on zeros, with what it
            says.
    """
    found = run_program(PROGRAM, 10 * len(content) + (1 << 20), input=content)
    said = found.stderr.decode(errors="replace")
    kept = re.search(r"Arena allocation total (\d+) bytes", said)
    if found.returncode or kept is None:
        lines = [line for line in said.splitlines() if line.strip()]
        raise ValueError(f"tflite-micro cannot run the model. It says: {' | '.join(lines[:3])}")
    # Planning takes more for a moment than what is kept.
    sizes = itertools.count(int(kept[1]), 1024)
    return next(n for n in sizes if not run_program(PROGRAM, n, input=content).returncode)
