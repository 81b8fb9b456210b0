"""Results that are kept as they come: a JSON file that a later run goes on from."""

import datetime
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import sys
import time

from keras_cosattn.atomic_write import atomic_write

FOLDER = pathlib.Path(__file__).parent.parent / "results"
LEAST_MEMORY = 4 * 2**30
"""With less free memory, cells would run out of it that fit on this machine."""
PACKAGE = pathlib.Path(__file__).parent.parent.parent / "keras_cosattn"


class Store:
    """Cells by their keys, and the runs that measured them.

    Args:
        path: of the JSON file.
        fresh: whether to forget what is there.
    """

    def __init__(self, path, fresh=False):
        self.path = pathlib.Path(path)
        found = {"runs": [], "cells": {}}
        if self.path.exists() and not fresh:
            found = json.loads(self.path.read_text())
        self.runs, self.cells = found["runs"], found["cells"]

    def begin(self, seed, **more):
        """A new run, of which later cells are a part. It is kept with its first cell."""
        self.runs.append(about(seed, **more))
        return self.runs[-1]

    def put(self, key, **found):
        self.cells[key] = {**self.cells.get(key, {}), "run": len(self.runs) - 1, **found}
        self.save()

    def done(self, key):
        """Whether a cell was measured, or ran out of time or memory."""
        status = self.cells.get(key, {}).get("status", "")
        return status == "ok" or status.startswith("out of")

    def forget_failures(self, keys, ran_out=False):
        """Cells that failed in an earlier run are tried again, and those that ran out if asked."""
        for key in keys:
            status = self.cells.get(key, {}).get("status", "ok")
            if status != "ok" and (ran_out or not status.startswith("out of")):
                del self.cells[key]

    def save(self):
        used = {cell["run"] for cell in self.cells.values()}
        kept = [i for i in range(len(self.runs)) if i in used or i == len(self.runs) - 1]
        cells = {key: {**cell, "run": kept.index(cell["run"])} for key, cell in self.cells.items()}
        write(self.path, json.dumps({"runs": [self.runs[i] for i in kept], "cells": cells},
                                    indent=1) + "\n")  # fmt: skip


def about(seed, **more):
    """What is kept of a run: command, machine, and what was measured with which seed."""
    return {"command": command(), "date": f"{datetime.date.today()}", "seed": seed,
            "machine": machine(), "package": fingerprint(), "versions": {}, **more}  # fmt: skip


def write(path, text):
    """Write a text as a whole or not at all."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as new:
        new.write_text(text)


def command():
    """The command line, without the folders of this machine."""
    root = str(PACKAGE.parent) + os.sep
    program = os.path.abspath(sys.argv[0]).removeprefix(root)
    module = getattr(sys.modules["__main__"], "__spec__", None)
    if module is not None:  # it was called with `python -m`
        program = f"-m {module.name}"
    return " ".join(["python", program, *sys.argv[1:]])


def opening(title, seed):
    """The first lines of a table of this process: its command, date, machine and versions."""
    machine_ = ", ".join(f"{name} {value}" for name, value in machine().items())
    packages = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("tensorflow", "keras")
    )
    return (
        f"# {title}\n\n`{command()}`, {time.strftime('%Y-%m-%d')}, seed {seed}\n\n"
        f"{machine_}; {packages}; sources of the package {fingerprint()}\n\n"
    )


def machine():
    """Cores, processor and system, without names of hosts."""
    found = {"cores": os.cpu_count(), "system": platform.system(), "machine": platform.machine(),
             "python": platform.python_version()}  # fmt: skip
    try:
        name = re.search(r"model name\s*: (.+)", pathlib.Path("/proc/cpuinfo").read_text())
        memory = re.search(r"MemTotal:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text())
        found |= {"processor": name[1].strip(), "memory_gib": round(int(memory[1]) / 2**20, 1)}
    except (OSError, TypeError):
        found["processor"] = platform.processor()
    return found


def fingerprint():
    """Twelve digits that change with any line of the package."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(file.relative_to(PACKAGE).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def allowed_memory(gib=None):
    """Bytes that a worker may hold: what was given, else 0.8 of what is free; None if unknown."""
    if gib is not None:
        return gib * 2**30
    try:
        found = re.search(r"MemAvailable:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text())
    except OSError:
        return None
    if found and int(found[1]) * 1024 < LEAST_MEMORY:
        sys.exit("error: less than 4 GiB of memory are free. End other programs, or give --memory")
    return 0.8 * int(found[1]) * 1024 if found else None
