"""Associative recall on a microcontroller's runtime: a delta rule model, its bytes and its answers.

    python benchmarks/recall_on_micro.py [--quick]

The task is that of `recall.py` at 64 steps and 4 pairs, with a vocabulary that fits a small device.
The trained model is written for tflite-micro, in float32 and with weights in int8, and reads new
streams there, token by token. The answers are compared with the labels and with Keras. Writes
`benchmarks/results/recall_on_micro.md`.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from measure import learning, recall_models, results
from measure.recall_data import TEST, TRAIN, VALIDATION, generator, recall
from tflite_micro import runtime

from keras_cosattn.export import to_tflite

LENGTH, PAIRS, BATCH, RATE, SEED = 64, 4, 64, 3e-3, 0
FORMS = {"float32": None, "weights in int8": "weight_int8"}


def arguments_of(line=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--vocabulary", type=int, default=64)
    add("--width", type=int, default=40)
    add("--updates", type=int, default=2000)
    add("--streams", type=int, default=100, help="that are read on the device's runtime")
    add("--quick", action="store_true", help="a few updates")
    add("--output", type=pathlib.Path, default=results.FOLDER, help="folder of the results")
    found = parser.parse_args(line)
    if found.quick:
        found.updates, found.streams = 3, 2
    return found


def draw(part, count, vocabulary):
    return recall(generator(SEED, part), count, LENGTH, PAIRS, vocabulary)


def train(given):
    """The model that streams, and how its training ended."""
    keras.utils.set_random_seed(SEED)
    streamed, model = recall_models.build(
        "delta_rule", LENGTH, given.vocabulary, given.vocabulary, given.width, heads=2, conv=False
    )
    rng = generator(SEED, TRAIN)

    def batches():
        while True:
            yield recall(rng, BATCH, LENGTH, PAIRS, given.vocabulary)

    found = learning.fit(
        model, batches(), draw(VALIDATION, 1024, given.vocabulary), rate=RATE,
        updates=given.updates, batch=BATCH, minutes=30,
    )  # fmt: skip
    return streamed, found


def answers(report, tokens):
    """The outputs `(t, classes)` of the file on tflite-micro, for the tokens of one stream."""
    micro = runtime.Interpreter.from_file(report.path, arena_size=report.arena_bytes)
    _, *state = report.signatures["step"]["inputs"].values()
    state, found = [np.zeros(*spec) for spec in state], []
    for token in tokens:
        for i, tensor in enumerate([token.reshape(1, 1), *state]):
            micro.set_input(tensor, i)
        micro.invoke()
        y, *state = [micro.get_output(i) for i in range(1 + len(state))]
        found.append(y[0, 0])
    return np.array(found)


def row(name, report, tokens, places, labels, expected):
    outputs = np.array([answers(report, stream) for stream in tokens])
    said, of_keras = (np.take_along_axis(y.argmax(-1), places, axis=1) for y in (outputs, expected))
    sizes = report.size, report.state_bytes, report.size + report.state_bytes, report.arena_bytes
    shares = np.mean(said == labels), np.mean(said == of_keras)
    cells = [name, *(f"{n:,}" for n in sizes), *(f"{share:.1%}" for share in shares)]
    return f"| {' | '.join(cells)} |\n"


def main():
    given = arguments_of()
    model, found = train(given)
    inputs, labels, _ = draw(TEST, given.streams, given.vocabulary)
    tokens, places = inputs["tokens"], inputs["places"]
    expected = keras.ops.convert_to_numpy(model(tokens))
    lines = [
        "# Associative recall on tflite-micro\n\n"
        f"`{results.command()}`, {time.strftime('%Y-%m-%d')}, seed {SEED}\n\n"
        f"{', '.join(f'{name} {value}' for name, value in results.machine().items())}; keras "
        f"{keras.__version__}, sources of the package {results.fingerprint()}\n\n"
        f"{LENGTH} steps, {PAIRS} pairs, vocabulary {given.vocabulary}; two `DeltaRuleAttention` "
        f"layers of width {given.width}, {model.count_params():,} parameters. The training ended "
        f"after {found['updates']:,} updates: {found['ended']}, {found['validations'][-1]:.1%} of "
        f"the validation. {given.streams} new streams were read token by token.\n\n"
        "| file | bytes | bytes of state | both | arena, bytes | right | as Keras |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, quantize in FORMS.items():
            path = pathlib.Path(folder, "model.tflite")
            report = to_tflite(
                model, path, target="micro", signatures=["step"], batch_size=1, quantize=quantize
            )
            lines.append(row(name, report, tokens, places, labels, expected))
    text = "".join(lines)
    print(text)
    if not given.quick:
        results.write(given.output / "recall_on_micro.md", text)


if __name__ == "__main__":
    main()
