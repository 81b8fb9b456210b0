"""What every layer keeps of itself on every target in every quantisation, as a Markdown table.

    python benchmarks/export_matrix.py [--cases NAME ...] > matrix.md

The rows are the cases of the tests, small models around each layer, causal and looking both ways;
each is exported, run on its target and compared with Keras: in float32 the largest difference
relative to the largest output, else the SQNR in dB. Files for the GPU run on LiteRT's CPU. A number
in brackets is a note below the table: why there is no file. A quantisation that a target never
takes has no column. Needs the extra `test`, and for tflite-runtime the network, once, and at most
Python 3.11. Ends with status 1 if a file that was accepted is wrong.
"""

import argparse
import contextlib
import datetime
import functools
import importlib.metadata
import pathlib
import platform
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tests"))

from export_matrix import COLUMNS, ROWS, SEED, Cell, outcome, runtime_of, traced_once
from runtimes import TFLITE_RUNTIME
from variants import CASES

PACKAGES = ("tensorflow", "keras", "ai-edge-litert", "litert-quantizer", "tflite-micro")


class Notes:
    """Sentences, each numbered when it is first used."""

    def __init__(self):
        self.numbers = {}

    def __call__(self, sentence):
        return f"[{self.numbers.setdefault(sentence, len(self.numbers) + 1)}]"


def text(cell, path, start, note):
    """What the table says of a cell, and whether that is as it should be."""
    runtime, why_not = start(cell.target)
    if runtime is None:
        return note(why_not), True
    try:
        found = outcome(cell, path, runtime)
    except RuntimeError as error:
        return f"**fails** {note(str(error))}", False
    if found.refused is not None:
        return note(found.refused), True
    said = f"{found.sqnr:.0f}" if cell.quantize else f"{found.difference:.0e}"
    return (said, True) if found.right else (f"**wrong: {said}**", False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    cases, right, note = parser.parse_args().cases, True, Notes()
    versions = "  ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    print(
        f"{datetime.date.today()}  {platform.machine()}  Python {platform.python_version()}  "
        f"{versions}  {TFLITE_RUNTIME}  seed {SEED}\n"
    )
    print("| layer |", " | ".join(f"{name} {way or 'float32'}" for name, way in COLUMNS), "|")
    print("|---|" + "---|" * len(COLUMNS), flush=True)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(traced_once(folder))

        @functools.cache
        def start(target):
            runtime, why_not = runtime_of(target)
            return runtime and stack.enter_context(runtime), why_not

        for case, causal in [row for row in ROWS if row[0] in cases]:
            began, row = time.time(), []
            for column in COLUMNS:
                cell = Cell(case, causal, *column)
                said, as_it_should = text(cell, pathlib.Path(folder, "m.tflite"), start, note)
                print(f"{cell}: {said}", file=sys.stderr, flush=True)
                row.append(said)
                right = right and as_it_should
            name = f"{case}, {'causal' if causal else 'both ways'}"
            print(f"| {name} | {' | '.join(row)} |", flush=True)
            print(f"{time.time() - began:.0f} s", file=sys.stderr)
    print()
    for sentence, number in note.numbers.items():
        print(f"{number}. {sentence}")
    sys.exit(not right)


if __name__ == "__main__":
    main()
