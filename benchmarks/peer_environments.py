"""Make the environments of the packages that the benchmarks measure beside this one.

    python benchmarks/peer_environments.py [torch] [tf_models] [keras_hub] [--fresh]

Each is a virtual environment in `.peers/`, made with the Python that runs this program, with the
releases that are pinned below. A small call proves that it works. One that is there with the same
pins is kept. The pins were chosen for Python 3.11. On Linux, PyPI's PyTorch comes with CUDA, which
is large; set `PIP_EXTRA_INDEX_URL` to PyTorch's index of CPU builds to avoid this.
"""

import argparse
import pathlib
import shutil
import subprocess
import sys

FOLDER = pathlib.Path(__file__).parent.parent / ".peers"
PROGRAMS = pathlib.Path(__file__).parent / "programs"

ENVIRONMENTS = {
    "torch": ["torch==2.13.0", "numpy==2.4.6", "einops==0.8.2", "fla-core==0.6.0"],
    "tf_models": [
        "tf-models-official==2.20.0",
        "tensorflow==2.20.0",
        "tensorflow-text==2.20.1",
        "tf-keras==2.20.1",
    ],
    "keras_hub": [
        "keras-hub==0.32.0",
        "keras==3.15.1",
        "tensorflow==2.21.0",
        "tensorflow-text==2.21.1",
    ],
}
"""Name -> the pinned packages; `programs/try_<name>.py` proves that they work together."""


def python_of(name):
    """The Python of an environment that was made, or None."""
    python = FOLDER / name / "bin" / "python"
    return python if (FOLDER / name / "pins.txt").exists() else None


def make(name, fresh=False):
    """Make an environment, unless it is there with these pins, and prove that it works."""
    pins, place = ENVIRONMENTS[name], FOLDER / name
    python, wanted = place / "bin" / "python", "\n".join(pins) + "\n"
    said = place / "pins.txt"
    if fresh or not said.exists() or said.read_text() != wanted:
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *pins], check=True)
    subprocess.run([python, PROGRAMS / f"try_{name}.py"], check=True)
    said.write_text(wanted)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(ENVIRONMENTS))
    parser.add_argument("--fresh", action="store_true", help="make them again")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(ENVIRONMENTS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(ENVIRONMENTS)}")
    failed = []
    for name in arguments.names or ENVIRONMENTS:
        try:
            make(name, arguments.fresh)
        except subprocess.CalledProcessError as error:
            failed.append(name)
            print(f"{name}: {error}", file=sys.stderr)
    sys.exit(f"not made: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
