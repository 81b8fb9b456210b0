"""Time and peak memory of every layer beside softmax as the length grows fourfold, twice.

    python benchmarks/growth.py [--lengths 1024 4096 16384] [--layers lsh nystrom ...]

Batch 1, 2 heads of 32, float32, causal where the layer can be. Time is the median of five forward
calls, as a ratio to softmax's in the same process, called in turns; memory is the peak of
forward + gradient on Linux, less that of a call on 64 steps, each in a process of its own. Before
timing, the compiled layer has to agree with the layer called eagerly. "x4" is what a fourfold
length, the last step of the table, multiplies: 4 is linear, 16 quadratic.
"""

import argparse
import datetime
import platform

from measure.program import run_program

NAMES = [
    "softmax", "linear", "cosformer", "decayed_cosformer", "performer", "retention", "mamba2",
    "gated_linear", "delta_rule", "gated_delta_rule", "windowed_linear", "lsh", "low_rank",
    "nystrom", "segmented", "segmented_summaries", "hierarchical", "recurrent_memory",
    "compressive_memory", "clustered_routing", "routed",
]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--layers", nargs="+", choices=NAMES, default=NAMES)
    arguments = parser.parse_args()
    import keras
    import tensorflow as tf

    print(
        f"{datetime.date.today()}  {platform.machine()}  Python {platform.python_version()}  "
        f"TensorFlow {tf.__version__}  Keras {keras.__version__}  seed 0"
    )
    lengths = arguments.lengths
    columns = "".join(f"{n:>8,}" for n in lengths)
    print(f"{'':20}{'time, of softmax':>{len(columns) + 6}}{'peak MiB':>{len(columns) + 8}}")
    print(f"{'layer':20}{columns}    x4  {columns}    x4")
    for name in arguments.layers:
        times = [run_program("variant_row", "time", name, n) for n in lengths]
        peaks = [run_program("variant_row", "memory", name, n) for n in lengths]
        ratios = "".join(f"{ratio:8.2f}" for _, ratio in times)
        growth = times[-1][0] / times[-2][0]
        memory = "".join(f"{peak:8.0f}" for peak in peaks)
        print(
            f"{name:20}{ratios}{growth:6.1f}  {memory}{peaks[-1] / max(peaks[-2], 1):6.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
