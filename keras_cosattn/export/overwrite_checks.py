"""Refusals to replace anything but an older export of the same kind."""

from __future__ import annotations

import errno
import pathlib
from typing import NoReturn

from keras_cosattn.export.file_metadata import describe, files_in

ADVICE = "Give another path, or remove it"


def check_tflite_file(path: pathlib.Path) -> None:
    """Raise FileExistsError if a file that exists is neither empty nor a TFLite file."""
    with open(path, "rb") as file:
        start = file.read(8)
    if start and start[4:] != b"TFL3":
        _refuse(path, "A file that is no TFLite file is not replaced")


def check_saved_model(path: pathlib.Path) -> None:
    """Raise FileExistsError if a folder that exists holds files that no export wrote there."""
    found = files_in(path)
    if not found:
        return
    try:
        written = describe(path).get("files")
    except ValueError:
        _refuse(path, "A folder with other things in it is not replaced, it is no export")
    if written is None:
        _refuse(path, "An export that does not say which files it wrote is not replaced")
    added = sorted(set(found) - set(written))
    if added:
        _refuse(path, f"An export is not replaced with files that were added to it: {added[:5]}")


def _refuse(path: pathlib.Path, message: str) -> NoReturn:
    raise FileExistsError(errno.EEXIST, f"{message}. {ADVICE}", str(path))
