"""Which layers recall: multi-query associative recall beside the bytes of a stream's state.

    python benchmarks/recall.py [--sizes 64x4 128x8 256x16] [--widths 64 128] [--layers NAME ...]

A stream gives pairs of a key and a value, then asks for the keys again (Arora et al., 2023,
"Zoology"). Two attention layers without feed-forward parts learn to answer, each with the same
three learning rates, of which the one with the best validation counts; `--conv` puts a convolution
of four steps before each layer, as published results have one. Every example is new, and a run ends
when 99 % of the validation's answers are right. The vocabulary is smaller than the paper's 8,192,
and there are fewer updates, so that a run takes minutes on two cores: what is not learned here may
be learned there, and a small vocabulary is easier.

Each run is a process of its own and a file in `benchmarks/results/recall/`. Finished runs are not
repeated: end the program at any time, and give the same command again. `recall.md` and `recall.png`
show all runs of the folder.
"""

import argparse
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from measure import learn_command, recall_data, recall_models

TEXT = (
    "Accuracy of the answers on new streams. The state is that of one stream, as `Streaming` "
    "begins it. Of the rates, the one with the best validation counts; its updates and its "
    "seconds, with compilation and validations, are those until 99 % of the validation was right, "
    "or to the end."
)


def size_of(text):
    length, pairs = map(int, text.split("x"))
    return length, pairs


def arguments_of(line=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--sizes", type=size_of, nargs="+", default=[(64, 4), (128, 8), (256, 16)],
        metavar="STEPSxPAIRS")  # fmt: skip
    add("--vocabulary", type=int, default=512, help="of the tokens; 8,192 in the paper")
    learn_command.add_options(
        add, rates=[1e-3, 3e-3, 1e-2], widths=[64, 128], steps=4096, updates=2000, tests=1024
    )
    found = parser.parse_args(line)
    if found.quick:
        learn_command.make_quick(found)
        found.sizes, found.vocabulary = [(16, 2)], 16
    return found


def wanted(arguments):
    """What each run is given."""
    tasks = [
        {"task": "recall", "length": n, "pairs": pairs, "vocabulary": arguments.vocabulary}
        for n, pairs in arguments.sizes
    ]
    return learn_command.wanted(arguments, tasks, recall_models.layers(1))


def floors(given):
    """What is right without any recall: on the test, the most frequent answer; and any value."""
    rng = recall_data.generator(given["seed"], recall_data.TEST)
    sizes = [given[name] for name in ("tests", "length", "pairs", "vocabulary")]
    _, answers, _ = recall_data.recall(rng, *sizes)
    return {
        "majority guess": np.bincount(answers.ravel()).max() / answers.size,
        "any value of the stream": 1 / given["pairs"],
    }


def main():
    arguments = arguments_of()
    learn_command.measure_and_write(
        arguments,
        wanted(arguments),
        "recall",
        title="Associative recall",
        text=TEXT,
        scores={"accuracy": "accuracy"},
        floors=floors,
    )


if __name__ == "__main__":
    main()
