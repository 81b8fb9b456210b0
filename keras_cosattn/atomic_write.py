"""Files and folders that are replaced as a whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def atomic_write(
    path: str | os.PathLike[str],
    *,
    folder: bool = False,
    check: Callable[[pathlib.Path], None] | None = None,
) -> Iterator[pathlib.Path]:
    """Write a file or a folder so that `path` is always whole, and replace an old one at the end.

    The block writes to another place on the same disk. When the block ends, what it wrote becomes
    `path`. If the block raises an error, `path` stays as it was. If the process is killed, `path`
    is the old or the new one, and a folder `.name.*` is left next to it. Where the system cannot
    exchange two folders (only Linux can), there is a moment without a folder at `path`; the next
    write to `path` restores the old folder. The modes of files and folders follow the umask.

    Args:
        path: str or path. The file or folder to write. A symbolic link is followed.
        folder: bool. Whether the block writes a folder; the folder exists when the block starts.
            Defaults to `False`.
        check: Function of the path. It is called before the block and again before the
            replacement, and raises an error to refuse the replacement. Defaults to `None`.

    Yields:
        The path to write to.

    Raises:
        FileExistsError: If `path` is a folder and a file is written, if it is a file and a folder
            is written, or if it is something else, such as a device.
        OSError: If `path` cannot be written, or the disk is full.

    Example:
    >>> path = pathlib.Path(tempfile.mkdtemp(), "numbers.txt")
    >>> with atomic_write(path) as new:
    ...     _ = new.write_text("1 2 3")
    >>> path.read_text()
    '1 2 3'
    """
    path = pathlib.Path(os.path.realpath(path))
    _restore_interrupted(path)
    _refuse(path, folder, check)
    scratch = _new_scratch(path)
    new, old = scratch / "new", scratch / "old"
    try:
        if folder:
            new.mkdir()
        yield new
        _same_modes(new)
        _flush(new)
        _refuse(path, folder, check)
        _replace(path, new, old)
    except OSError as error:
        if error.filename is not None and not str(error.filename).startswith(str(scratch)):
            raise  # it speaks of another file
        raise OSError(
            error.errno or errno.EIO,
            f"Cannot write {path}: {error}. Nothing of it was kept; what was there is whole",
        ) from error
    finally:
        _restore_interrupted(path)
        shutil.rmtree(scratch)


def _refuse(path: pathlib.Path, folder: bool, check: Callable[[pathlib.Path], None] | None) -> None:
    """Raise an error if what is at `path` must not be replaced."""
    if not path.exists():
        return
    if path.is_dir() != folder or not (folder or path.is_file()):
        found = "a folder" if path.is_dir() else "a file" if path.is_file() else "no regular file"
        wanted = "a folder" if folder else "a file"
        message = f"Cannot write {wanted} there, it is {found}. Give another path, or remove it"
        raise FileExistsError(errno.EEXIST, message, str(path))
    if check is not None:
        check(path)


def _new_scratch(path: pathlib.Path) -> pathlib.Path:
    """A new folder next to `path`."""
    try:
        return pathlib.Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        message = f"Cannot write {path}: {error.strerror}. Its folder must exist and be writable."
        raise OSError(error.errno, message) from error


def _replace(path: pathlib.Path, new: pathlib.Path, old: pathlib.Path) -> None:
    """Put `new` at `path`. A folder cannot be renamed onto another one that holds files."""
    if not path.is_dir():
        new.replace(path)
    elif not _exchange(new, path):
        path.rename(old)
        new.replace(path)


def _exchange(first: pathlib.Path, second: pathlib.Path) -> bool:
    """Exchange two paths at one moment. False where the system cannot do that; Linux can."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    at_fdcwd, rename_exchange = -100, 2  # of <fcntl.h> and <stdio.h>
    names = os.fsencode(first), os.fsencode(second)
    return (
        rename is not None and rename(at_fdcwd, names[0], at_fdcwd, names[1], rename_exchange) == 0
    )


def _restore_interrupted(path: pathlib.Path) -> None:
    """Restore the old folder if a process was killed between the two renames of `_replace`."""
    if not path.exists():
        for old in path.parent.glob(f".{glob.escape(path.name)}.*/old"):
            if (old.parent / "new").exists():
                old.rename(path)
                return


def _same_modes(new: pathlib.Path) -> None:
    """Give the folders in a new folder its mode; some writers give theirs a fixed one."""
    if new.is_dir():
        mode = new.stat().st_mode
        for inner in new.rglob("*"):
            if inner.is_dir():
                inner.chmod(mode)


def _flush(new: pathlib.Path) -> None:
    """Wait until the content is on the disk, so that no renaming can reach it earlier."""
    for file in new.rglob("*") if new.is_dir() else [new]:
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
