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

from litert_quantizer.calibrator import Calibrator
from litert_quantizer.quantizer import Quantizer
from litert_quantizer.recipe_manager import RecipeManager
from litert_quantizer.utils.qsv_utils import min_max_update


def quantize(content, configurations, calibration):
    """The bytes of the quantised model."""
    quantizer = Quantizer(bytearray(content))
    for method, arguments, options in configurations:
        getattr(quantizer, method)(*arguments, **options)
    ranges = None if calibration is None else seen_ranges(quantizer, content, calibration)
    return bytes(quantizer.quantize(ranges).quantized_model)


def seen_ranges(quantizer, content, calibration):
    """Tensor name -> smallest and largest value seen.

    `Quantizer.calibrate` averages the extremes over the samples, which clips rare values.
    """
    recipe = RecipeManager()
    recipe.load_quantization_recipe(quantizer.get_quantization_recipe())
    calibrator = Calibrator(content, qsv_update_func=min_max_update)
    for signature, inputs in calibration:
        calibrator.calibrate({signature: [inputs]}, recipe)
    return calibrator.get_model_qsvs()


def main(folder):
    """Read the request, and write the result."""
    request = pickle.loads((folder / "request.pickle").read_bytes())
    (folder / "quantized.tflite").write_bytes(quantize(**request))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
