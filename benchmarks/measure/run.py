"""Cells are checked, then timed in turns: one worker computes at a time, and no cell is dropped."""

import contextlib
import dataclasses
import math
import pathlib
import statistics
import tempfile

import numpy as np

from measure import limits
from measure.process import FailedError, Worker

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 2e-2}
"""Largest difference, of the largest number; float32 sums of many terms keep this many digits."""
LEAST_SECONDS = 0.05
"""Shorter calls are repeated until one turn takes this long."""


class DifferentValuesError(Exception):
    """Two sides that should compute the same numbers do not, so neither is timed."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to measure.

    Args:
        repeats: turns of each cell; the median counts.
        seconds: the longest first call, which compiles.
        memory: bytes that a worker may hold.
        reference: largest n to be compared with the float64 form.
        peak: whether to measure peak memory, in one more process for each cell.
        separate: whether each cell has a worker of its own when it is timed.
        keep_memory: whether glibc keeps freed memory.
        environment: more variables of the workers' environment.
        interpreters: worker -> the Python to run it with, instead of that of its environment.
    """

    repeats: int = 5
    seconds: float = 120.0
    memory: float | None = None
    reference: int = 1024
    peak: bool = True
    separate: bool = False
    keep_memory: bool = False
    environment: dict = dataclasses.field(default_factory=dict)
    interpreters: dict = dataclasses.field(default_factory=dict)

    @property
    def guards(self):
        return {"seconds": self.seconds, "memory": self.memory}

    @property
    def said(self):
        """What a run says of its guards."""
        memory = "not limited" if self.memory is None else f"{self.memory / 2**30:.1f} GiB"
        return {"memory_of_a_worker": memory, "longest_first_call": f"{self.seconds:g} s"}

    def worker(self, cell):
        interpreter = self.interpreters.get(cell.worker)
        return Worker(cell.worker, self.keep_memory, self.environment, interpreter)


class Workers:
    """The workers of a group, started when they are first needed."""

    def __init__(self, settings):
        self.settings, self.running, self.prepared = settings, {}, set()

    def _name(self, cell):
        return cell.key if self.settings.separate else cell.worker

    def ask(self, cell, do, guarded=True, **request):
        """The answer about a cell; what fails says of which cell it is."""
        name = self._name(cell)
        if name not in self.running:
            self.running[name] = self.settings.worker(cell)
        guards = self.settings.guards if guarded else {}
        try:
            return self.running[name].ask(do, **guards, cell=cell.request(), **request)
        except FailedError as failed:
            failed.cell = cell
            raise

    def prepare(self, cell):
        if cell not in self.prepared:
            self.ask(cell, "prepare")
            self.prepared.add(cell)

    def drop(self, cell):
        """Forget a worker that ended, and what it had prepared."""
        worker = self.running.pop(self._name(cell), None)
        if worker is not None:
            worker.close()
        self.prepared -= {other for other in self.prepared if self._name(other) == self._name(cell)}

    def of_each(self, cells):
        """A cell for each worker."""
        return {self._name(cell): cell for cell in cells}.values()

    def close(self):
        for worker in self.running.values():
            worker.close()


def measure(cells, store, run, settings, log=print):
    """Measure what the store does not have. `run` is what it says of this run."""
    store.forget_failures(cell.key for cell in cells)
    groups = {}
    for cell in cells:
        groups.setdefault(cell.group, []).append(cell)
    for group in groups.values():
        if all(store.done(cell.key) for cell in group):
            continue
        for cell in group:
            measure_peak(cell, cells, store, settings)
        alive = [cell for cell in group if store.cells[cell.key].get("status", "ok") == "ok"]
        measure_times(alive, store, run, settings)
        for cell in group:
            found = store.cells[cell.key]
            time = f"{1e3 * found['median']:.1f} ms" if "median" in found else found["status"]
            log(f"{cell.key}: {time}", flush=True)


def measure_peak(cell, cells, store, settings):
    """Peak memory in a process of its own, which also finds out whether the cell can run."""
    if cell.key in store.cells:
        return
    shorter = too_long(cell, cells, store)
    if shorter is not None:
        why = store.cells[shorter.key]["status"].removesuffix(" before")
        store.put(cell.key, cell=dataclasses.asdict(cell), status=f"{why} before")
        return
    if not settings.peak:
        store.put(cell.key, cell=dataclasses.asdict(cell))
        return
    try:
        with contextlib.closing(settings.worker(cell)) as worker:
            peak = worker.ask("peak", **settings.guards, cell=cell.request())
    except FailedError as failed:
        store.put(cell.key, cell=dataclasses.asdict(cell), status=failed.why)
    else:
        store.put(cell.key, cell=dataclasses.asdict(cell), peak_mib=peak)


def too_long(cell, cells, store):
    """A cell of the same row, shorter or without its gradient, that ran out of time or memory."""
    for other in cells:
        if other == cell or other.n > cell.n or other.gradient > cell.gradient:
            continue
        if dataclasses.replace(cell, n=other.n, gradient=other.gradient) != other:
            continue
        if store.cells.get(other.key, {}).get("status", "").startswith("out of"):
            return other
    return None


def measure_times(cells, store, run, settings):
    """Prepare, compare and time cells; those that fail get a status, and the others begin anew."""
    while cells:
        with contextlib.closing(Workers(settings)) as workers:
            try:
                cells = prepare(cells, workers, store)
                differences = compare(cells, workers, settings.reference)
                seconds = turns(cells, workers, settings.repeats)
                rates = measure_rates(cells, workers)
                for cell in workers.of_each(cells):
                    run["versions"].update(workers.ask(cell, "versions", guarded=False))
            except FailedError as failed:
                put_failure(failed.cell, failed, store)
                cells = [cell for cell in cells if cell != failed.cell]
                continue
        for cell in cells:
            store.put(
                cell.key,
                status="ok",
                seconds=seconds[cell],
                median=statistics.median(seconds[cell]),
                rates=rates,
                limit=limits.seconds(cell, rates),
                compared=differences[cell],
            )
        return


def put_failure(cell, failed, store):
    """Keep why a cell of a group failed. One that had enough memory alone lacks it in the group."""
    why = failed.why
    if why == "out of memory" and "peak_mib" in store.cells[cell.key]:
        why = "too little memory beside the other rows: choose fewer rows"
    store.put(cell.key, status=why)


def prepare(cells, workers, store):
    """The cells that could be built and called."""
    cells = list(cells)
    while True:
        for cell in cells:
            try:
                workers.prepare(cell)
            except FailedError as failed:
                put_failure(cell, failed, store)
                if failed.ended:
                    workers.drop(cell)
                cells.remove(cell)
                break
        else:
            return cells


def compare(cells, workers, reference):
    """How far each cell is from what it should compute: (what that is, difference).

    Raises:
        DifferentValuesError: If it is further than the tolerance.
    """
    found, families = {}, {}
    for cell in cells:
        families.setdefault(cell.same, []).append(cell)
    with tempfile.TemporaryDirectory() as folder:
        for family in families.values():
            name, wanted = expected(family, workers, reference, folder)
            for cell in family:
                values = ask_values(cell, workers, folder)
                wanted = values if wanted is None else wanted
                apart = difference(values, wanted, rms=cell.rms is not None)
                tolerance = TOLERANCE[cell.dtype] if cell.rms is None else cell.rms
                if not apart <= tolerance:
                    scale = "largest number" if cell.rms is None else "root mean square"
                    raise DifferentValuesError(
                        f"{cell.key} differs from {name} by {apart:.2g} of the {scale}, more than "
                        f"{tolerance:g}. Nothing of this group was timed"
                    )
                found[cell] = [name, apart]
    return found


def expected(family, workers, reference, folder):
    """What a family should compute: in float64, by eager calls, or as its first member does."""
    first = family[0]
    if first.n <= reference and first.level == "core":
        from measure.reference import expected as in_float64

        return "the float64 form", in_float64(first)
    if first.n <= reference and first.level == "layer":
        return f"an eager call on {first.side}", ask_values(first, workers, folder, eager=True)
    return f"{first.what} on {first.side}", None


def ask_values(cell, workers, folder, **options):
    path = pathlib.Path(folder, "values.npz")
    workers.ask(cell, "values", path=str(path), **options)
    with np.load(path) as arrays:
        return [arrays[name] for name in arrays.files]


def difference(found, wanted, rms=False):
    """The largest difference, of the largest number of an array; or that of the root mean squares.

    An array that is zero but for rounding is held to a thousandth of the largest of all.
    """
    if [x.shape for x in found] != [x.shape for x in wanted]:
        return math.inf
    largest = max(np.max(np.abs(x), initial=0.0) for x in wanted)
    if rms:
        apart = math.sqrt(sum(np.sum(np.square(x - y)) for x, y in zip(found, wanted, strict=True)))
        return apart / max(math.sqrt(sum(np.sum(np.square(y)) for y in wanted)), 1e-30)
    scales = [max(np.max(np.abs(y), initial=0.0), largest / 1000, 1e-30) for y in wanted]
    apart = [
        np.max(np.abs(x - y), initial=0.0) / scale
        for x, y, scale in zip(found, wanted, scales, strict=True)
    ]
    return float(np.max(apart))  # NaN stays NaN


def turns(cells, workers, repeats):
    """Seconds of each cell's calls; each turn times every cell once."""
    first = {cell: workers.ask(cell, "time", calls=1) for cell in cells}
    calls = {cell: max(1, min(100, math.ceil(LEAST_SECONDS / first[cell]))) for cell in cells}
    found = {cell: [] for cell in cells}
    for _ in range(repeats):
        for cell in cells:
            found[cell].append(workers.ask(cell, "time", calls=calls[cell]))
    return found


def measure_rates(cells, workers):
    """The best rates that any worker reaches."""
    found = {}
    for cell in workers.of_each([cell for cell in cells if cell.level in ("core", "layer")]):
        for name, rate in workers.ask(cell, "rates", guarded=False).items():
            found[name] = max(rate, found.get(name, 0.0))
    return found
