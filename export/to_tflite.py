"""Turn a saved Keras model into a .tflite file, checked against it.

python export/to_tflite.py model.keras model.tflite
"""

import argparse

import keras

import keras_cosattn  # noqa: F401  registers the layers
from keras_cosattn.export import to_tflite

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("model", help="a .keras file")
parser.add_argument("output", help="the .tflite file to write")
parser.add_argument("--signatures", nargs="+", choices=["serve", "prefill", "step"])
arguments = parser.parse_args()

model = keras.models.load_model(arguments.model)
report = to_tflite(model, arguments.output, signatures=arguments.signatures)

print(f"{report.path}: {report.size:,} bytes, state {report.state_bytes:,} bytes")
for name, difference in report.differences.items():
    print(f"  {name:8} largest difference to Keras {difference:.1e}")
if report.whole_only:
    print(f"  no streaming: {report.whole_only}")
