"""How long the end of a short `fit`, `evaluate` or `predict` waits for TensorFlow's datasets.

    python benchmarks/end_of_fit.py [--batches 8 16 24 32 48 64]

A classifier with cosFormer reads batches of 8 texts of 256 bytes: once arrays, which Keras makes a
dataset of, once a dataset that TensorFlow does not tune (`measure/datasets.py` has the reason).
Medians of five calls, in turns, in one process. Both sides have to find the same loss.
"""

import argparse
import datetime
import pathlib
import platform
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import keras
import numpy as np
import tensorflow as tf
from measure import datasets

from keras_cosattn import CosFormerAttention, TransformerEncoder

COUNT, LENGTH, TURNS = 8, 256, 5


def make_model():
    keras.utils.set_random_seed(0)
    block = TransformerEncoder(128, attention=CosFormerAttention(2, 32, max_length=LENGTH))
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = keras.layers.GlobalAveragePooling1D()(block(keras.layers.Embedding(256, 64)(inputs)))
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    model.compile(keras.optimizers.SGD(0.0), "mse")  # the weights stay
    return model


def calls(model, batches):
    """For each name, a call with arrays and one with the dataset. Both return the loss."""
    x = np.random.default_rng(0).integers(256, size=(batches * COUNT, LENGTH))
    y = np.ones((len(x), 1), "float32")
    data, inputs = datasets.in_order((x, y), COUNT), datasets.in_order(x, COUNT)
    arrays, quiet = {"batch_size": COUNT, "verbose": 0}, {"verbose": 0}

    def fit(*given, **options):
        return model.fit(*given, shuffle=False, **options).history["loss"][0]

    def predict(x, **options):
        return np.square(model.predict(x, **options) - 1).mean()

    return {
        "fit": (lambda: fit(x, y, **arrays), lambda: fit(data, **quiet)),
        "evaluate": (
            lambda: model.evaluate(x, y, **arrays),
            lambda: model.evaluate(data, **quiet),
        ),
        "predict": (lambda: predict(x, **arrays), lambda: predict(inputs, **quiet)),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 24, 32, 48, 64])
    arguments = parser.parse_args()
    print(
        f"{datetime.date.today()}  {platform.machine()}  Python {platform.python_version()}  "
        f"TensorFlow {tf.__version__}  Keras {keras.__version__}  seed 0"
    )
    print(f"{'':10}{'batches':>8}{'arrays, ms':>12}{'untuned, ms':>13}{'ratio':>7}")
    model = make_model()
    for batches in arguments.batches:
        for name, sides in calls(model, batches).items():
            np.testing.assert_allclose(*(side() for side in sides), rtol=1e-4)
            times = [[], []]
            for _ in range(TURNS):
                for side, found in zip(sides, times, strict=True):
                    start = time.perf_counter()
                    side()
                    found.append(1e3 * (time.perf_counter() - start))
            one, other = map(statistics.median, times)
            print(f"{name:10}{batches:8}{one:12.0f}{other:13.0f}{one / other:7.2f}", flush=True)


if __name__ == "__main__":
    main()
