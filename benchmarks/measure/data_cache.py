"""Data that is made or fetched once, and kept in the user's cache folder."""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parent.parent.parent / "examples"))

import kept
from newsgroups_data import mails  # noqa: F401  for the tasks
from wheel_data import CACHE, read_member  # noqa: F401  for the tasks

from keras_cosattn.atomic_write import atomic_write


def kept_arrays(name, make):
    """Return the arrays that `make()` returned when it was first called for this name.

    Args:
        name: of the file in the cache. It holds every setting that changes the arrays.
        make: function without arguments that returns a dict of arrays.
    """
    return kept.arrays(CACHE / f"{name}.npz", make)


def kept_text(name, make):
    """Return the text that `make()` returned when it was first called for this name."""
    path = CACHE / name
    if not path.exists():
        print(f"making {name}, once", flush=True)
        text = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as new:
            new.write_text(text, encoding="utf-8")
    return path.read_text(encoding="utf-8")
