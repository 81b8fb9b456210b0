"""Turn a saved Keras model into a .tflite file, checked against it.

    python export/to_tflite.py model.keras model.tflite [--target micro] [--quantize weight_int8]

`--quantize int8` needs `--representative data.npy`, `(examples, t, ...)`.
"""

import argparse

from command_line import load_array, load_model, number_or_any, run

from keras_cosattn.export import to_tflite
from keras_cosattn.export.plan import SIGNATURES
from keras_cosattn.export.quantization import QUANTIZATIONS
from keras_cosattn.export.targets import TARGETS


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a .keras file")
    parser.add_argument("output", help="the .tflite file to write")
    parser.add_argument("--target", choices=TARGETS, default="litert", help="where it is to run")
    parser.add_argument("--quantize", choices=QUANTIZATIONS, help="float32 if left out")
    parser.add_argument("--signatures", nargs="+", choices=SIGNATURES, help="all if left out")
    parser.add_argument("--length", type=int, help="steps of `serve`; any number if left out")
    parser.add_argument(
        "--prefill-chunk", type=number_or_any, default=128, help="steps of `prefill`, or 'any'"
    )
    parser.add_argument("--batch-size", type=number_or_any, default=1, help="a number, or 'any'")
    parser.add_argument("--state", choices=["tensors", "variables"], default="tensors")
    parser.add_argument("--representative", metavar="DATA.npy", help="what the model will read")
    arguments = parser.parse_args()

    data = None
    if arguments.representative:
        examples, size = load_array(arguments.representative), arguments.batch_size or 1
        data = [examples[start : start + size] for start in range(0, len(examples), size)]
    report = to_tflite(
        load_model(arguments.model),
        arguments.output,
        target=arguments.target,
        quantize=arguments.quantize,
        signatures=arguments.signatures,
        length=arguments.length,
        prefill_chunk=arguments.prefill_chunk,
        batch_size=arguments.batch_size,
        state=arguments.state,
        representative_data=data,
    )
    print(report)


if __name__ == "__main__":
    run(main)
