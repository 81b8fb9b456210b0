"""Train one model on one task, and print what it cost and what it learned, as JSON.

python learn.py GIVEN, a dict in JSON: what `recall.py` or `state_tracking.py` asks for.
"""

import json
import sys

import keras
from measure import learning, recall_models
from measure.recall_data import TEST, TRAIN, VALIDATION, generator, parity, recall

from keras_cosattn import Streaming


def recall_task(given):
    """Vocabulary, classes, a function `(rng, count)` that draws examples, those of the tests."""
    sizes = given["length"], given["pairs"], given["vocabulary"]

    def draw(rng, count):
        return recall(rng, count, *sizes)

    return given["vocabulary"], given["vocabulary"], draw, {"accuracy": draw}


def parity_task(given):
    n = given["length"]

    def draw(rng, count):
        return parity(rng, count, given["shortest"], given["longest"])

    def draw_long(rng, count):
        return parity(rng, count, n, n, first=n - given["last"])

    return 2, 2, draw, {"accuracy": draw_long, "short_accuracy": draw}


def batches(draw, batch, rng):
    while True:
        yield draw(rng, batch)


def state_bytes(model):
    state = Streaming(model, run_eagerly=True).initial_state(1)
    return sum(keras.ops.convert_to_numpy(x).nbytes for x in state.values())


def run(given, minutes):
    seed, count = given["seed"], given["tests"]
    batch = given["steps"] // given.get("longest", given["length"])
    keras.utils.set_random_seed(seed)
    task = {"recall": recall_task, "parity": parity_task}[given["task"]]
    vocabulary, classes, draw, tests = task(given)
    sizes = vocabulary, classes, given["width"], given["heads"], given["conv"]
    streamed, model = recall_models.build(given["layer"], given["length"], *sizes)
    found = learning.fit(
        model,
        batches(draw, batch, generator(seed, TRAIN)),
        tests["accuracy"](generator(seed, VALIDATION), count),
        rate=given["rate"],
        updates=given["updates"],
        batch=batch,
        minutes=minutes,
    )
    for name, draw_test in tests.items():
        x, y, weights = draw_test(generator(seed, TEST), count)
        scores = model.evaluate(x, y, batch, sample_weight=weights, verbose=0, return_dict=True)
        found[name] = round(scores["accuracy"], 4)
    return {**found, "parameters": model.count_params(), "state_bytes": state_bytes(streamed)}


if __name__ == "__main__":
    print(json.dumps(run(**json.loads(sys.argv[1]))))
