"""Worker processes, seen from the program that tells them what to do."""

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time

import peer_environments

from measure.program import FOLDER, python_path
from measure.resident import resident

KEEP_MEMORY = (
    "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592:"
    "glibc.malloc.top_pad=268435456"
)
"""With these settings freed memory stays with the process, and is not given back to the system."""

PYTHON = {"torch": "torch", "tf_models": "tf_models", "keras_hub": "keras_hub"}
"""Worker -> the environment of `peer_environments` that it needs; others run where we do."""
SIDE = {"tensorflow": "keras", "jax": "keras"}


class FailedError(Exception):
    """Says in a few words why a cell has no number. The worker is gone if `ended`."""

    def __init__(self, why, ended):
        super().__init__(why)
        self.why, self.ended = why, ended


class Worker:
    """One side in a process of its own.

    Args:
        name: of the worker, what stands before the hyphen in a side's name.
        keep_memory: whether glibc keeps freed memory.
        environment: more environment variables.
        interpreter: the Python to run, instead of that of the worker's environment.
    """

    def __init__(self, name, keep_memory=False, environment=None, interpreter=None):
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with the worker
        self.process = subprocess.Popen(
            [interpreter or python(name), "-m", "measure.worker", SIDE.get(name, name)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            cwd=FOLDER,
            env=environment_of(name, keep_memory) | (environment or {}),
        )

    def ask(self, do, seconds=None, memory=None, **request):
        """The answer to a request.

        Raises:
            FailedError: If the worker says that it failed, if it dies, or if it needs more than
                some seconds or bytes; then it is ended.
        """
        line = json.dumps({"do": do, **request}) + "\n"
        try:
            self.process.stdin.write(line.encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            raise FailedError(self._last_words(), True) from None
        self._wait(seconds, memory)
        line = self.process.stdout.readline()
        if not line:
            raise FailedError(self._last_words(), True)
        found = json.loads(line)
        if "error" in found:
            raise FailedError(found["error"], False)
        return found["answer"]

    def _wait(self, seconds, memory):
        end = None if seconds is None else time.monotonic() + seconds
        while not select.select([self.process.stdout], [], [], 0.2)[0]:
            why = None
            if end is not None and time.monotonic() > end:
                why = "out of time"
            elif memory is not None and resident(self.process.pid) > memory:
                why = "out of memory"
            if why:
                self.close()
                raise FailedError(why, True)

    def _last_words(self):
        code = self.process.wait()
        if code == -9:
            return "out of memory"  # the system ends the process that asks for most
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return f"ended with status {code}: {lines[-1] if lines else ''}"

    def close(self):
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):  # of a request that it did not live to read
            self.process.stdin.close()
        self.process.stdout.close()
        self.errors.close()


def python(name):
    """The Python of a worker.

    Raises:
        FailedError: If its environment was not made.
    """
    if name not in PYTHON:
        return sys.executable
    found = peer_environments.python_of(PYTHON[name])
    if found is None:
        why = f"not measured: no environment; run peer_environments.py {PYTHON[name]}"
        raise FailedError(why, True)
    return found


def environment_of(name, keep_memory):
    return {
        **os.environ,
        "PYTHONPATH": python_path(),
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "KERAS_BACKEND": "jax" if name == "jax" else "tensorflow",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        **({"GLIBC_TUNABLES": KEEP_MEMORY} if keep_memory else {}),
    }
