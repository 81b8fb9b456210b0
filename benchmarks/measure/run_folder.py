"""Trained models: one JSON file for each run, so that a finished run is never repeated."""

import hashlib
import importlib.metadata
import json
import pathlib
import sys

from measure import results
from measure.program import run_program

PACKAGES = ("keras", "tensorflow")


def about(given, **more):
    """What is kept of a run beside what was given and found: command, machine and versions."""
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    return results.about(given["seed"], versions=versions, **more)


class RunFolder:
    """The runs of a folder, each a dict of what was given, what was found, and on what machine.

    Args:
        folder: of the files.
        words: what of that which was given the names of the files hold.
    """

    def __init__(self, folder, words=("layer", "length", "width", "rate")):
        self.folder, self.words = pathlib.Path(folder), words

    def path(self, given):
        """The file of a run: some of what was given, and eight digits that stand for all of it."""
        digits = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:8]
        words = (given[name] for name in self.words)
        return self.folder / f"{'_'.join(map(str, words))}_{digits}.json"

    def kept(self):
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("*.json"))]

    def measure(self, wanted, minutes, fresh=False, retry=False):
        """Train what is not there yet, and return the number of runs that failed.

        Args:
            wanted: list of dicts, each what `programs/learn.py` is given.
            minutes: after which a run ends as it is.
            fresh: whether to repeat finished runs.
            retry: whether to repeat runs that ran out of time.
        """
        failed = 0
        for i, given in enumerate(wanted, 1):
            if not fresh and self.done(given, retry):
                continue
            name = ", ".join(f"{key} {value}" for key, value in given.items())
            print(f"[{i} of {len(wanted)}] {name}", flush=True)
            run = about(given, minutes_per_run=minutes)
            try:
                found = run_program("learn", json.dumps({"given": given, "minutes": minutes}))
            except RuntimeError as error:  # one layer that fails costs its own runs only
                print(f"fails: {error.args[0].strip().splitlines()[-1]}", file=sys.stderr)
                failed += 1
                continue
            self.keep(given, found, run)
            print(f"  {found['accuracy']:.1%}, {found['updates']:,} updates, "
                  f"{found['seconds']:.0f} s, {found['ended']}", flush=True)  # fmt: skip
        return failed

    def read(self, given):
        """The finished run that was given this."""
        return json.loads(self.path(given).read_text())

    def keep(self, given, found, run):
        """Write the file of a finished run."""
        kept = {"given": given, "found": found, "run": run}
        results.write(self.path(given), json.dumps(kept, indent=1) + "\n")

    def done(self, given, retry=False):
        path = self.path(given)
        if not path.exists():
            return False
        return not retry or self.read(given)["found"]["ended"] != "out of time"
