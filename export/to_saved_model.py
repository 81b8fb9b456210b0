"""Turn a saved Keras model into a SavedModel, checked against it.

python export/to_saved_model.py model.keras folder
"""

import argparse

from command_line import load_model, run

from keras_cosattn.export import to_saved_model
from keras_cosattn.export.plan import SIGNATURES


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a .keras file")
    parser.add_argument("output", help="the folder to write")
    parser.add_argument("--signatures", nargs="+", choices=SIGNATURES, help="all if left out")
    arguments = parser.parse_args()

    model = load_model(arguments.model)
    print(to_saved_model(model, arguments.output, signatures=arguments.signatures))


if __name__ == "__main__":
    run(main)
