"""The description that an exported file holds, and what identifies the file."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
import zipfile
from typing import Any

METADATA = "keras_cosattn.json"
"""The name of the description. A SavedModel holds it in the folder `assets.extra`. A TFLite file
holds it as TFLite's metadata standard holds files: in a zip archive after the model, which
`unzip -p FILE keras_cosattn.json` prints.
"""


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the description of an exported file.

    Args:
        path: str or path. What `to_tflite` or `to_saved_model` wrote.

    Returns:
        A dict with the fields of the file's `Report` and the versions of the packages.

    Raises:
        ValueError: If there is no such file, if this package did not write it, or if it is damaged.

    Example:
    >>> describe("missing.tflite")
    Traceback (most recent call last):
    ...
    ValueError: missing.tflite has no description (keras_cosattn.json): there is no such file.
    """
    path = pathlib.Path(path)
    try:
        if path.is_dir():
            return json.loads(saved_model_metadata(path).read_text())
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read(METADATA))
    except (KeyError, ValueError, zipfile.BadZipFile, FileNotFoundError) as error:
        reason = (
            "it was not written by keras_cosattn.export, or it is damaged. Export the model again."
            if path.exists()
            else "there is no such file."
        )
        raise ValueError(f"{path} has no description ({METADATA}): {reason}") from error


def read_content(path: str | os.PathLike[str], about: dict[str, Any]) -> bytes:
    """Read the model of a TFLite file without its description.

    Args:
        path: str or path.
        about: dict. What `describe` returned.

    Raises:
        ValueError: If the bytes are not those that were exported.
    """
    content = pathlib.Path(path).read_bytes()[: about["content"]["bytes"]]
    if content_id(content) != about["content"]:
        raise ValueError(
            f"{path} is damaged: its model is not the one that was exported. Export it again."
        )
    return content


def zip_of(description: str) -> bytes:
    """A zip archive that holds the description alone."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        # A fixed date, so that the same model gives the same bytes.
        archive.writestr(zipfile.ZipInfo(METADATA), description)
    return file.getvalue()


def saved_model_metadata(folder: pathlib.Path) -> pathlib.Path:
    """The file in a SavedModel that holds the description."""
    return folder / "assets.extra" / METADATA


def content_id(content: bytes) -> dict[str, Any]:
    """The number of bytes of a model and their sha256."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def files_in(folder: pathlib.Path) -> list[str]:
    """The names of all files in a folder, relative to it, sorted."""
    return sorted(
        file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir()
    )


def size_on_disk(path: str | os.PathLike[str]) -> int:
    """The number of bytes of a file, or of all files in a folder."""
    path = pathlib.Path(path)
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
