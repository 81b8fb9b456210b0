"""Peak memory of forward + gradient of causal attention as the length doubles.

    python benchmarks/memory.py [--lengths 4096 8192 16384 32768]

Each row is its own process on Linux: the largest resident memory after the call less that after
a call on 64 steps; batch 1, 8 heads of 64, float32. The last column is what the official causal
cosFormer would need for one of its two tensors of outer products, t x 8 x 128 x 64 floats:
computed, not run.
"""

import argparse
import datetime
import platform

from measure.program import run_program


def measure(name, length):
    """Peak memory in MiB of one forward + gradient in a process of its own."""
    return run_program("layer_memory", name, length)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16384, 32768])
    parser.add_argument("--layers", nargs="+", default=["cosformer", "endless", "linear"])
    parser.add_argument("--softmax-up-to", type=int, default=4096)
    arguments = parser.parse_args()
    import keras
    import tensorflow as tf

    print(
        f"{datetime.date.today()}  {platform.machine()}  Python {platform.python_version()}  "
        f"TensorFlow {tf.__version__}  Keras {keras.__version__}  seed 0"
    )
    print(f"{'layer':10} {'steps':>7} {'peak MiB':>9} {'x before':>9} {'official MiB':>13}")
    for name in [*arguments.layers, "softmax"]:
        last = None
        for length in arguments.lengths:
            if name == "softmax" and length > arguments.softmax_up_to:
                continue
            peak = measure(name, length)
            ratio = f"{peak / last:9.2f}" if last else " " * 9
            official = length * 8 * 128 * 64 * 4 / 2**20
            print(f"{name:10} {length:7} {peak:9.0f} {ratio} {official:13.0f}", flush=True)
            last = peak


if __name__ == "__main__":
    main()
