"""Time and memory of the embedding of one text, by MiniLM and by a student of it."""

import pathlib
import re
import subprocess
import sys
import time

import numpy as np
from minilm import READS, Sizes

PEAK = pathlib.Path(__file__).parent / "programs" / "embedding_peak.py"
WHOLE, PIECES = "MiniLM, all tokens at once", "MiniLM, pieces of 512 as a batch"

SHOWS = 4096
"""Tokens from which memory is measured. Less hides in what TensorFlow keeps of its first call."""


def shape(way, length):
    """The shape in which a text of `length` tokens is read."""
    return (-(-length // READS), min(length, READS)) if way == PIECES else (1, length)


def too_large(way, length):
    """Whether scores and weights of softmax in one layer need more memory than there is."""
    rows, steps = shape(way, length)
    memory = pathlib.Path("/proc/meminfo").read_text()
    available = 1024 * int(re.search(r"MemAvailable:\s+(\d+)", memory)[1])
    return way == WHOLE and 2 * 4 * rows * Sizes.heads * steps**2 > available


def measure(teacher, student, name, lengths, repeats, seed):
    """Milliseconds and MiB of one text, and the student's time by that of MiniLM.

    Args:
        teacher, student: `Encoder`s.
        name: of the student.
        lengths: numbers of tokens.
        repeats: the median of so many calls is taken, after one more.
        seed: of the tokens.

    Returns:
        dict of `"row/column"` to a number. What does not fit into memory is left out.
    """
    found, rng = {}, np.random.default_rng(seed)
    for length in lengths:
        column, times = f"{length:,} tokens", {}
        for way, encoder in {WHOLE: teacher, PIECES: teacher, name: student}.items():
            if too_large(way, length):
                continue
            tokens = rng.integers(1000, 30_000, shape(way, length)).astype("int32")
            times[way] = _milliseconds(encoder.run, tokens, repeats)
            found[f"{way}, ms/{column}"] = times[way]
            if length >= SHOWS:
                found[f"{way}, MiB/{column}"] = _peak(way, length)
        for way in [way for way in times if way != name]:
            found[f"time of the student / {way}/{column}"] = times[name] / times[way]
    return found


def _milliseconds(run, tokens, repeats):
    times = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        run(tokens).numpy()
        times.append(1e3 * (time.perf_counter() - start))
    return np.median(times[1:])


def _peak(way, length):
    """MiB that one embedding adds to a process of its own."""
    command = [sys.executable, PEAK, way, *map(str, shape(way, length))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
