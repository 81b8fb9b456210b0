"""Quantise a TFLite model with LiteRT's quantizer.

    python quantize_with_litert.py FOLDER

The folder holds `request.pickle`, a dict: the model's bytes as `content`, calls of the quantizer
that configure it as `configurations`, and named inputs of signatures that show the ranges of the
numbers as `calibration`, or None. The program writes `quantized.tflite` next to it.

The quantizer prints, warns, logs through the root logger and traces allocations, all of which
concern the whole process. So it has one of its own.
"""

import pathlib
import pickle
import sys

import numpy as np
from litert_quantizer.quantizer import Quantizer


def quantize(content, configurations, calibration):
    """The bytes of the quantised model."""
    quantizer = Quantizer(bytearray(content))
    for method, arguments, options in configurations:
        getattr(quantizer, method)(*arguments, **options)
    ranges = None if calibration is None else merged_ranges(quantizer, calibration)
    return bytes(quantizer.quantize(ranges).quantized_model)


def merged_ranges(quantizer, calibration):
    """Tensor name -> smallest and largest value seen.

    The quantizer's own calibration averages the extremes over the samples, which clips rare values.
    """
    merged = {}
    for signature, inputs in calibration:
        for name, seen in quantizer.calibrate({signature: [inputs]}).items():
            if name in merged and "min" in seen:
                low, high = merged[name]["min"], merged[name]["max"]
                seen = {"min": np.minimum(low, seen["min"]), "max": np.maximum(high, seen["max"])}
            merged[name] = {**merged.get(name, {}), **seen}
    return merged


def main(folder):
    """Read the request, and write the result."""
    request = pickle.loads((folder / "request.pickle").read_bytes())
    (folder / "quantized.tflite").write_bytes(quantize(**request))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
