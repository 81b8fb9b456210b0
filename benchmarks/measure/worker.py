"""One side in a process of its own: it reads requests, a line of JSON each, and answers each.

    python -m measure.worker keras

`values` saves what a cell computes, `prepare` makes a cell ready to be timed, `time` times it,
`peak` measures its memory in a process that has done nothing else, `rates` measures the machine.
"""

import importlib
import json
import os
import re
import sys
import time

import numpy as np

from measure.resident import give_back_memory, largest_resident, reset_largest_resident

SHORT = 64


class Served:
    """The requests that a side answers."""

    def __init__(self, side):
        self.side, self.cells = side, {}

    def versions(self, cell):
        return self.side.versions()

    def device(self):
        return self.side.device()

    def prepare(self, cell):
        """Build and call a cell; the first call compiles."""
        start = time.perf_counter()
        run, arrays = self.side.build(cell)
        run()
        self.cells[cell["key"]] = run, arrays
        return time.perf_counter() - start

    def values(self, cell, path, eager=False):
        """Save a list of arrays. An eager call is built for this only."""
        run, arrays = self.side.build(cell, eager=True) if eager else self.cells[cell["key"]]
        np.savez(path, *arrays(run()))

    def time(self, cell, calls):
        run, _ = self.cells[cell["key"]]
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - start) / calls

    def peak(self, cell, warm=False):
        """MiB of a call beyond what the process held before it, and after a short call.

        The first call also compiles. If `warm`, what only that takes does not count.
        """
        run, _ = self.side.build({**cell, "n": min(SHORT, cell["n"])})
        run()
        run, _ = self.side.build(cell)
        if warm:
            give_back_memory()
        reset_largest_resident()
        on_device = self.side.device_memory()
        before = largest_resident() if on_device is None else on_device["in_use"]
        run()
        if warm:  # the package keeps the memory of its tensors for the next call
            give_back_memory()
            reset_largest_resident()
            run()
        after = largest_resident() if on_device is None else self.side.device_memory()["peak"]
        return (after - before) / 2**20

    def rates(self, cell):
        """Operations and bytes a second that the machine reaches with a product and a copy."""
        return self.side.rates(cell["dtype"])


def answer(served, request):
    try:
        return {"answer": getattr(served, request.pop("do"))(**request)}
    except Exception as error:  # what a package raises is part of the table
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, MemoryError) or re.search("OOM|RESOURCE_EXHAUSTED|out of mem", text):
            text = "out of memory"
        return {"error": text[:2000]}


def main():
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a package prints is no answer
    served = Served(importlib.import_module(f"measure.side_{sys.argv[1]}"))
    for line in sys.stdin:
        print(json.dumps(answer(served, json.loads(line))), file=channel, flush=True)


if __name__ == "__main__":
    main()
