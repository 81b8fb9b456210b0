"""Files and folders that appear whole or not at all, with their description inside."""

import contextlib
import ctypes
import errno
import glob
import hashlib
import io
import os
import pathlib
import shutil
import sys
import tempfile
import zipfile

METADATA = "keras_cosattn.json"
"""The description of a file: in a SavedModel under `assets.extra/`; in a TFLite file, where its own
metadata standard puts files, in a zip archive behind the model: `unzip -p FILE keras_cosattn.json`.
"""


def zipped(text):
    """A zip archive with the description alone."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        # A fixed date, so that the same model gives the same bytes.
        archive.writestr(zipfile.ZipInfo(METADATA), text)
    return file.getvalue()


def content_id(content):
    """How many bytes the model itself has, and their sha256."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def size(path):
    """Bytes of a file, or of all files in a folder."""
    path = pathlib.Path(path)
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


@contextlib.contextmanager
def beside(path):
    """A place on the same disk to write to; what was written there becomes `path` at the end.

    A process that is killed leaves the old `path` or the new one, and a folder `.name.*` beside it.
    Only where the system cannot exchange two folders (see `_exchange`) is there a moment with
    nothing at `path`, the old one in that folder; the next export to `path` then puts it back.

    Raises OSError if the place cannot be had, or is full, or if `path` is a folder that is no
    SavedModel. Then `path` is as it was, and nothing is beside it.
    """
    path = pathlib.Path(path)
    _put_back(path)
    if path.is_dir() and any(path.iterdir()) and not (path / "saved_model.pb").exists():
        raise OSError(f"{path} is a folder with other things in it; export to a new place in it.")
    try:
        scratch = tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise OSError(
            f"Cannot write {path}: {error.strerror}. Its folder must exist and be writable."
        ) from error
    try:
        new, old = pathlib.Path(scratch, "new"), pathlib.Path(scratch, "old")
        yield new
        _to_disk(new)
        if not path.is_dir():
            new.replace(path)
        elif not _exchange(new, path):  # a folder can only be renamed onto an empty one
            path.rename(old)
            new.replace(path)
    except OSError as error:
        raise OSError(
            error.errno or errno.EIO,
            f"Cannot write {path}: {error}. Nothing of it was kept; what was there is whole",
        ) from error
    finally:
        _put_back(path)
        shutil.rmtree(scratch)


def _exchange(one, other):
    """Let two paths change places at one moment; False where the system cannot. Linux can."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of <fcntl.h> and <stdio.h>
    places = os.fsencode(one), os.fsencode(other)
    return rename is not None and rename(here, places[0], here, places[1], exchange) == 0


def _put_back(path):
    """If there is nothing at `path` since it was interrupted in being replaced: the old one."""
    if not path.exists():
        for old in path.parent.glob(f".{glob.escape(path.name)}.*/old"):
            if (old.parent / "new").exists():
                old.rename(path)
                return


def _to_disk(path):
    """Wait until the content is on the disk, so that no renaming can come before it."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
