"""Forms of the causal sums of cosFormer and of softmax attention beside each other.

    python benchmarks/formulations.py [--lengths 4096 16384] [--repeats 7]

The forms of the first table are arguments of `causal_cosine_attention`, so that it can be measured
again when the sums change; each stands beside what was predicted for it. The second table is of
`window_attention`, all at once and with a `block_size`; the third of softmax over the whole past,
as Keras computes it and in two products; the last of few steps, where the weights of all pairs are
chosen in place of the sums. Outputs and gradients of all forms of a table must agree
before they are timed. Then they take turns in one process, and the median of the turns counts.
Peak memory is that of forward + gradient, compiled before, in a process for each form. The tables
are `benchmarks/results/formulations.md`.

The prediction is the time of the products, the masked half included, at the rate of a product of
2,048 x 2,048, and of the tensors that leave the cache at the rate of a copy into fresh memory. It
assumes that what a loop over blocks makes stays in the cache.
"""

import argparse
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from measure import few_steps_forms, results, softmax_forms, sum_forms


def arguments_of(line=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--lengths", type=int, nargs="+", default=[4096, 16384])
    add("--heads", type=int, default=8)
    add("--size", type=int, default=64)
    add("--batch", type=int, default=1)
    add("--repeats", type=int, default=7)
    add("--softmax-up-to", type=int, default=4096, help="longest length of the third table")
    add("--output", type=pathlib.Path, default=results.FOLDER, help="folder of the results")
    return parser.parse_args(line)


def table(rows):
    head, *body = rows
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *body))


def main():
    given = arguments_of()
    keras.utils.set_random_seed(0)
    rates = sum_forms.measured_rates()
    machine = ", ".join(f"{name} {value}" for name, value in results.machine().items())
    shape = f"batch {given.batch}, {given.heads} heads of {given.size}, float32, causal"
    window = softmax_forms.WINDOW
    lines = [
        "# Forms of the causal sums and of softmax\n\n",
        f"`{results.command()}`, {time.strftime('%Y-%m-%d')}, seed 0\n\n{machine}; "
        f"tensorflow {tf.__version__}, keras {keras.__version__}; sources of the package "
        f"{results.fingerprint()}\n\n",
        f"Milliseconds, medians of {given.repeats}; {shape}. Peak memory is that of forward + "
        "gradient.\n\n",
        f"## cosFormer\n\nProducts run at {rates['flops'] / 1e9:.0f} GFLOP/s and copies into "
        f"fresh memory at {rates['bytes'] / 1e9:.1f} GB/s.\n\n",
        table(sum_forms.rows(given, rates)),
        f"\n## Softmax in windows of {window} steps and the {window} before\n\nA loop whose "
        "block has all steps is the first form.\n\n",
        table(softmax_forms.window_rows(given)),
        "\n## Softmax over the whole past\n\n",
        table(softmax_forms.whole_rows(given)),
        "\n## Few steps\n\nThe time of Keras's softmax, and ratios to it. The sums are what longer "
        "inputs take; the columns before them are what is chosen.\n\n",
        table(few_steps_forms.rows(given)),
    ]
    results.write(given.output / "formulations.md", "".join(lines))
    print("".join(lines))


if __name__ == "__main__":
    main()
