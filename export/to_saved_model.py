"""Turn a saved Keras model into a SavedModel, checked against it.

python export/to_saved_model.py model.keras folder
"""

import argparse

import keras

import keras_cosattn  # noqa: F401  registers the layers
from keras_cosattn.export import to_saved_model

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("model", help="a .keras file")
parser.add_argument("output", help="the folder to write")
parser.add_argument("--signatures", nargs="+", choices=["serve", "prefill", "step"])
arguments = parser.parse_args()

model = keras.models.load_model(arguments.model)
report = to_saved_model(model, arguments.output, signatures=arguments.signatures)

print(f"{report.path}: {report.size:,} bytes, state {report.state_bytes:,} bytes")
for name, difference in report.differences.items():
    print(f"  {name:8} largest difference to Keras {difference:.1e}")
if report.whole_only:
    print(f"  no streaming: {report.whole_only}")
