"""Files of a stream's state."""

from __future__ import annotations

import io
import json
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_cosattn.atomic_write import atomic_write

MODEL = "__model__"
"""Name of the entry with the model's fingerprint."""

BFLOAT16 = "__bfloat16__"
"""Name of the entry with the names of the bfloat16 arrays, a type that NumPy's files lack."""


def write(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], model: dict[str, str]
) -> None:
    """Write arrays and the fingerprint of their model to `path`, completely or not at all."""
    bfloat16 = [name for name, x in arrays.items() if x.dtype.name == "bfloat16"]
    entries: dict[str, Any] = {**arrays, MODEL: np.array(json.dumps(model))}
    entries |= {name: np.ascontiguousarray(arrays[name]).view("uint16") for name in bfloat16}
    entries[BFLOAT16] = np.array(json.dumps(bfloat16))
    with atomic_write(path) as new, open(new, "wb") as file:
        np.savez(file, **entries)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays and the fingerprint that `write` wrote.

    Raises:
        ValueError: If the file is damaged or of another kind.
        OSError: If it cannot be read.
    """
    content = io.BytesIO(pathlib.Path(path).read_bytes())
    try:
        with np.load(content) as file:
            arrays = {name: file[name] for name in file.files}
        for name in json.loads(str(arrays.pop(BFLOAT16))):
            arrays[name] = arrays[name].view("bfloat16")  # Keras makes it known to NumPy
        return arrays, json.loads(str(arrays.pop(MODEL)))
    except (
        zipfile.BadZipFile, ValueError, EOFError, KeyError, TypeError, OSError, RuntimeError,
    ) as error:  # fmt: skip
        raise ValueError(
            f"{path} is not a state that `save` wrote, or it is damaged, or from an older version "
            "of this package, whose states have another content."
        ) from error
