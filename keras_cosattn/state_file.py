"""Files of a stream's state."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_cosattn.atomic_write import atomic_write

MODEL = "__model__"
"""Name of the entry with the model's fingerprint."""


def write(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], model: dict[str, str]
) -> None:
    """Write arrays and the fingerprint of their model to `path`, completely or not at all."""
    entries: dict[str, Any] = {**arrays, MODEL: np.array(json.dumps(model))}
    with atomic_write(path) as new, open(new, "wb") as file:
        np.savez(file, **entries)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays and the fingerprint that `write` wrote.

    Raises:
        ValueError: If the file is damaged or of another kind.
    """
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        return arrays, json.loads(str(arrays.pop(MODEL)))
    except (zipfile.BadZipFile, ValueError, EOFError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a state that `save` wrote, or damaged.") from error
