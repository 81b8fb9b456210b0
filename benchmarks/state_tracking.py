"""Which layers track a state: the parity of all bits so far, beyond the length of the training.

    python benchmarks/state_tracking.py [--layers NAME ...]

The models of `recall.py` read bits, and say at each step whether the number of ones so far is odd.
They learn from streams of 32 to 40 bits and are tested on streams of 256, on the last 200 steps;
50 % is chance. A linear recurrence whose factors are not negative cannot do it for every length
(Grazzi et al., 2025, "Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues").
A run ends when the validation, on streams of 256 bits, is 99 % right.

Runs, files and options are as those of `recall.py`; the results are `state_tracking.md`.
"""

import argparse
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from measure import learn_command, recall_models

TASK = {"task": "parity", "shortest": 32, "longest": 40, "length": 256, "last": 200}
TEXT = (
    "Accuracy on the last steps of new streams, and on all steps of streams as long as those of "
    "the training. Of the rates, the one with the best validation counts, on streams of the "
    "test's length. Seconds include compilation and validations."
)


def arguments_of(line=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    learn_command.add_options(
        parser.add_argument,
        rates=[1e-3, 3e-3, 1e-2],
        widths=[64],
        steps=2560,
        updates=3000,
        tests=256,
    )
    found = parser.parse_args(line)
    if found.quick:
        learn_command.make_quick(found)
    return found


def wanted(arguments):
    return learn_command.wanted(arguments, [TASK], recall_models.layers(1))


def floors(given):
    return {"chance": 0.5}


def main():
    arguments = arguments_of()
    learn_command.measure_and_write(
        arguments,
        wanted(arguments),
        "state_tracking",
        title="Parity of a stream",
        text=TEXT,
        scores={"last steps": "accuracy", "training's length": "short_accuracy"},
        floors=floors,
    )


if __name__ == "__main__":
    main()
