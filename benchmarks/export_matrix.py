"""What every layer keeps of itself on every target in every quantisation, as a Markdown table.

    python benchmarks/export_matrix.py [--cases NAME ...] [--jobs 2] [--keep FILE] > matrix.md

The rows are the cases of the tests, small models around each layer, causal and looking both ways;
each is exported, run on its target and compared with Keras: in float32 the largest difference
relative to the largest output, else the SQNR in dB. Files for the GPU run on LiteRT's CPU. A number
in brackets is a note below the table: why there is no file. A quantisation that a target never
takes has no column. Needs the extra `test`, and for tflite-runtime the network, once, and at most
Python 3.11. Ends with status 1 if a file that was accepted is wrong. With `--keep`, finished rows
are kept in a JSON file, and a run that was interrupted goes on from them.
"""

import argparse
import contextlib
import datetime
import functools
import importlib.metadata
import json
import multiprocessing
import pathlib
import platform
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tests"))

from export_cases import COLUMNS, ROWS, SEED, Cell, outcome, runtime_of, traced_once
from runtimes import TFLITE_RUNTIME
from variants import CASES

from keras_cosattn.atomic_write import atomic_write

PACKAGES = ("tensorflow", "keras", "ai-edge-litert", "litert-quantizer", "tflite-micro")


def cells(row):
    """Of one row: (text, note or None, whether that is as it should be) for every column."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(traced_once(folder))

        @functools.cache
        def start(target):
            runtime, why_not = runtime_of(target)
            return runtime and stack.enter_context(runtime), why_not

        return [
            text(Cell(*row, *column), pathlib.Path(folder, "m.tflite"), start) for column in COLUMNS
        ]


def text(cell, path, start):
    runtime, why_not = start(cell.target)
    if runtime is None:
        return "", why_not, True
    try:
        found = outcome(cell, path, runtime)
    except RuntimeError as error:
        return "**fails** ", str(error), False
    if found.refused is not None:
        return "", found.refused, True
    said = f"{found.sqnr:.0f}" if cell.quantize else f"{found.difference:.0e}"
    return (said, None, True) if found.right else (f"**wrong: {said}**", None, False)


def measured(rows, arguments):
    """Yield the cells of each row; with `--keep`, those of finished rows from the file."""
    path = arguments.keep
    kept = json.loads(path.read_text()) if path and path.exists() else {}
    missing = [row for row in rows if f"{row}" not in kept]
    spawn = multiprocessing.get_context("spawn")
    # A process for each row: what TensorFlow has traced and converted stays in its memory.
    with spawn.Pool(arguments.jobs, maxtasksperchild=1) as pool:
        new = pool.imap(cells, missing, chunksize=1)
        for row in rows:
            if f"{row}" not in kept:
                kept[f"{row}"] = next(new)
                if path:
                    with atomic_write(path) as file:
                        file.write_text(json.dumps(kept))
            yield kept[f"{row}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--jobs", type=int, default=1, help="processes, a row each")
    parser.add_argument("--keep", type=pathlib.Path, metavar="FILE")
    arguments, numbers, right = parser.parse_args(), {}, True
    versions = "  ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    print(
        f"{datetime.date.today()}  {platform.machine()}  Python {platform.python_version()}  "
        f"{versions}  {TFLITE_RUNTIME}  seed {SEED}\n"
    )
    print("| layer |", " | ".join(f"{name} {way or 'float32'}" for name, way in COLUMNS), "|")
    print("|---|" + "---|" * len(COLUMNS), flush=True)
    rows = [row for row in ROWS if row[0] in arguments.cases]
    for (case, causal), found in zip(rows, measured(rows, arguments), strict=True):
        said = [
            word + (f"[{numbers.setdefault(note, len(numbers) + 1)}]" if note else "")
            for word, note, _ in found
        ]
        right = right and all(as_it_should for *_, as_it_should in found)
        print(f"| {case}, {'causal' if causal else 'both ways'} | {' | '.join(said)} |", flush=True)
    print()
    for sentence, number in numbers.items():
        print(f"{number}. {sentence}")
    sys.exit(not right)


if __name__ == "__main__":
    main()
