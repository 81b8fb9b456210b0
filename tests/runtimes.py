"""Runtimes that need an environment of their own, and exported files run in one.

The environments are built when they are asked for and kept in `.runtimes/`. Run by the Python of
one of them, this file is what answers there: it needs NumPy alone.
"""

import fcntl
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
CACHE = ROOT / ".runtimes"
RUNNER = ROOT / "keras_cosattn" / "export" / "run_on_device.py"
TFLITE_RUNTIME = "tflite-runtime==2.14.0"
LAST_PYTHON = (3, 11)
"""That tflite-runtime 2.14.0 has wheels for."""


class UnavailableError(Exception):
    """Says why an environment cannot be had here."""


@functools.cache
def tflite_runtime():
    """The Python of an environment with tflite-runtime 2.14.0, or None; and why there is none."""
    here = sys.version_info[:2]
    name = f"tflite-runtime-2.14.0-python-{here[0]}.{here[1]}"
    try:
        if here > LAST_PYTHON:
            raise UnavailableError(f"{TFLITE_RUNTIME} has no wheel for Python {here[0]}.{here[1]}")
        return environment(name, TFLITE_RUNTIME, "numpy<2"), None
    except UnavailableError as reason:
        return None, str(reason)


@functools.cache
def kotlin_compiler():
    """The Kotlin compiler of this machine, or of npm, or None; and why there is none."""
    if shutil.which("java") is None:
        return None, "the Kotlin compiler needs Java, and there is no `java`"
    if shutil.which("kotlinc"):
        return shutil.which("kotlinc"), None
    if shutil.which("npm") is None:
        return None, "there is neither `kotlinc` nor `npm`, which could install it"
    try:
        place = cached("kotlin-compiler", lambda place: _install_by_npm(place, "kotlin-compiler"))
    except UnavailableError as reason:
        return None, str(reason)
    return place / "node_modules" / "kotlin-compiler" / "bin" / "kotlinc", None


def environment(name, *requirements):
    """The Python of an environment with these packages, which one process builds and all use."""
    return cached(name, lambda place: _build(place, requirements)) / "bin" / "python"


def cached(name, build):
    """The folder that `build(folder)` made, once for all processes."""
    place = CACHE / name
    CACHE.mkdir(exist_ok=True)
    with open(CACHE / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
                build(pathlib.Path(scratch, "new"))
                pathlib.Path(scratch, "new").rename(place)
    return place


def _build(place, requirements):
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    options = ["--quiet", "--disable-pip-version-check", "--only-binary=:all:", "--retries=1"]
    _run_installer("pip", place / "bin" / "python", "-m", "pip", "install", *options, *requirements)


def _install_by_npm(place, package):
    options = ["--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=1"]
    _run_installer("npm", "npm", "install", *options, "--prefix", place, package)


def _run_installer(name, *command):
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        raise UnavailableError(f"{name} cannot install: {found.stderr.strip()[-300:]}")


def play(device, calls):
    """The outputs of calls to a `Device`: list of (method, input)."""
    return [getattr(device, method)(x) for method, x in calls]


class Runtime:
    """A process in another environment, in which exported files run one after the other.

    Args:
        python: of the environment.
    """

    def __init__(self, python):
        self.python = python
        self._folder = tempfile.TemporaryDirectory()
        self._process = None

    def play(self, path, calls):
        """The outputs of calls to the file's `Device`, list of (method, input).

        Raises RuntimeError with what the runtime said if it cannot load or run the file.
        """
        if self._process is None:
            self._start()
        folder = pathlib.Path(self._folder.name)
        np.savez(folder / "calls.npz", **{f"{i} {name}": x for i, (name, x) in enumerate(calls)})
        self._process.stdin.write(f"{json.dumps([str(path), str(folder)])}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            status, self._process = self._process.wait(), None
            said = (folder / "stderr").read_text(errors="replace")[-300:]
            raise RuntimeError(f"The runtime ended with status {status}. It says: {said}")
        if json.loads(answer):
            raise RuntimeError(json.loads(answer))
        with np.load(folder / "outputs.npz") as outputs:
            return [outputs[f"{i}"] for i in range(len(calls))]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait()
        self._folder.cleanup()

    def _start(self):
        shutil.copy(RUNNER, self._folder.name)
        with open(pathlib.Path(self._folder.name, "stderr"), "w") as stderr:
            self._process = subprocess.Popen(
                [self.python, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=stderr, text=True, env={**os.environ, "PYTHONPATH": self._folder.name},
            )  # fmt: skip


def answer():
    """Play files until the input ends: for each line one with the error, or an empty one."""
    from run_on_device import Device

    for line in sys.stdin:
        path, folder = json.loads(line)
        said = ""
        try:
            with np.load(pathlib.Path(folder, "calls.npz")) as found:
                calls = [(name.split()[1], found[name]) for name in found.files]
            outputs = play(Device(path), calls)
            np.savez(
                pathlib.Path(folder, "outputs.npz"), **{f"{i}": y for i, y in enumerate(outputs)}
            )
        except (ValueError, RuntimeError) as error:
            said = f"{type(error).__name__}: {error}"
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    answer()
