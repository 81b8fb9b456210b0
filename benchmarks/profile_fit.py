"""Where the time of a `fit` step goes: each part beside the sum of its components.

    python benchmarks/profile_fit.py [--attention cosformer] [--length 4096] [--no-xla]

The model has four causal blocks and predicts the next byte. Each part is compiled alone, with the
shapes that it has in the model, forward + gradient, and all are timed in turns in one process. A
part that takes more than 1.3 times the sum of its components is marked: it does something that none
of them does. What `fit` does around its steps,
it does once. The table is written to
`benchmarks/results/profile_fit_<attention>.md`, the numbers to the `.json` beside it.
"""

import argparse
import collections
import json
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import keras
import numpy as np
import tensorflow as tf
from measure import datasets, inputs, limits, report, results, side_keras, tensorflow_calls
from measure.cells import Cell

MARKED = 1.3
SUMS = {
    "fit, a step": {"compiled step": 1},
    "compiled step": {"embedding": 1, "block": "blocks", "head and loss": 1, "optimizer": 1},
    "block": {"attention layer": 1, "norm": 2, "feedforward": 1, "residual sum": 2},
    "attention layer": {"projection of the input": 3, "core": 1, "output projection": 1},
    "attention layer, padded": {"attention layer": 1, "zeroing of masked steps": 1},
    "block, padded": {"block": 1, "zeroing of masked steps": 2},
    "fit, a step, padded": {"fit, a step": 1, "zeroing of masked steps": "blocks"},
}
"""Part -> its components, and how often it has each. Other parts have none."""


def arguments_of(line=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--attention", choices=["cosformer", "linear", "softmax"], default="cosformer")
    add("--length", type=int, default=4096)
    add("--batch", type=int, default=1)
    add("--blocks", type=int, default=4)
    add("--heads", type=int, default=4)
    add("--size", type=int, default=64, help="of a head; the width is heads x size")
    add("--hidden", type=int, default=1024)
    add("--steps", type=int, default=8, help="of one fit")
    add("--repeats", type=int, default=7)
    add("--seed", type=int, default=0)
    add("--no-xla", action="store_true", help="compile graphs without XLA")
    add("--quick", action="store_true", help="a short, narrow model")
    add("--output", type=pathlib.Path, default=results.FOLDER, help="folder of the results")
    found = parser.parse_args(line)
    if found.quick:
        found.length, found.size, found.hidden, found.repeats = 256, 16, 128, 5
    return found


class StepClock(keras.callbacks.Callback):
    """Measures the steps of a `fit`, without what comes before the first and after the last."""

    def on_train_begin(self, logs=None):
        self.seconds = 0.0

    def on_train_batch_begin(self, batch, logs=None):
        self.start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.seconds += time.perf_counter() - self.start


class Parts:
    """Functions of no arguments, each of which runs one part of a model and waits for it.

    Those of a `fit` return the seconds of a step, and those around all steps of the `fit`.
    """

    def __init__(self, arguments):
        self.arguments = arguments
        options = tuple((name, getattr(arguments, name)) for name in ("blocks", "hidden", "steps"))
        side = "tensorflow" if arguments.no_xla else "tensorflow-xla"
        self.cell = Cell(
            "model", arguments.attention, side, arguments.length, True, True, arguments.batch,
            arguments.heads, arguments.size, arguments.seed, options=options,
        )  # fmt: skip
        self.told = self.cell.request()
        self.x, self.g = inputs.steps(self.told)
        lengths = np.linspace(arguments.length // 2, arguments.length, arguments.batch, dtype=int)
        self.mask = np.arange(arguments.length) < lengths[:, None]

    def call(self, function, x, g, layers=()):
        """A part that is a function of tensors."""
        variables = [w for layer in layers for w in layer.trainable_variables]
        return tensorflow_calls.build(self.told, function, x, g, variables)[0]

    def all(self):
        return {
            **self.steps(),
            **self.of_model(),
            **self.of_block(),
            **self.of_attention(),
        }

    def steps(self):
        """The whole step, in `fit`, with padding, and compiled without the loop around it."""
        x, y = side_keras.batches(self.told)
        plain, padded = (self.model(mask_zero) for mask_zero in (False, True))
        mask = np.tile(self.mask, (self.arguments.steps, 1))
        step = tf.function(plain.train_step, jit_compile=self.told["xla"])
        first = tuple(map(tf.constant, (x[: self.arguments.batch], y[: self.arguments.batch])))

        def fit(name, model, x):
            clock, data = StepClock(), datasets.in_order((x, y), self.arguments.batch)

            def run():
                start = time.perf_counter()
                model.fit(data, callbacks=[clock], shuffle=False, verbose=0)
                around = time.perf_counter() - start - clock.seconds
                around_name = name.replace("a step", "around the steps")
                return {name: clock.seconds / self.arguments.steps, around_name: around}

            return {name: run}

        def compiled():
            step(first)
            tf.test.experimental.sync_devices()

        return {
            **fit("fit, a step", plain, x),
            **fit("fit, a step, padded", padded, np.where(mask, x | 1, 0)),
            "compiled step": compiled,
        }

    def model(self, mask_zero):
        options = {**self.told["options"], "mask_zero": mask_zero}
        return side_keras.make_model({**self.told, "options": options})

    def of_model(self):
        width = self.x.shape[-1]
        embedding = keras.layers.Embedding(256, width)
        tokens = tf.constant(inputs.tokens(self.told))
        embedding.build(tokens.shape)
        norm, dense = keras.layers.LayerNormalization(), keras.layers.Dense(256)
        norm.build(self.x.shape)
        dense.build(self.x.shape)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model = side_keras.make_model(self.told)
        optimizer, variables = model.optimizer, model.trainable_variables
        optimizer.build(variables)
        gradients = [tf.ones_like(w) for w in variables]

        def update():
            apply(gradients)
            tf.test.experimental.sync_devices()

        apply = tf.function(
            lambda gradients: optimizer.apply(gradients, variables), jit_compile=self.told["xla"]
        )
        return {
            "embedding": self.call(lambda: embedding(tokens), [], self.g, [embedding]),
            "head and loss": self.call(
                lambda x: loss(tokens, dense(norm(x))), [self.x], np.float32(1), [norm, dense]
            ),
            "optimizer": update,
        }

    def of_block(self):
        keras.utils.set_random_seed(self.cell.seed)
        block = side_keras.keras_cosattn.TransformerDecoder(
            self.arguments.hidden,
            attention=side_keras.make_attention(self.told),
            normalize_first=True,
        )
        block.build(self.x.shape)
        norm = keras.layers.LayerNormalization()
        norm.build(self.x.shape)
        inner = keras.layers.Dense(self.arguments.hidden, activation="relu")
        outer = keras.layers.Dense(self.x.shape[-1])
        inner.build(self.x.shape)
        outer.build((*self.x.shape[:-1], self.arguments.hidden))
        x, g, mask = self.x, self.g, self.mask
        return {
            "block": self.call(block, [x], g, [block]),
            "block, padded": self.call(
                lambda x: block(x, decoder_padding_mask=mask), [x], g, [block]
            ),
            "norm": self.call(norm, [x], g, [norm]),
            "feedforward": self.call(lambda x: outer(inner(x)), [x], g, [inner, outer]),
            "residual sum": self.call(lambda x, y: x + y, [x, x], g),
            "zeroing of masked steps": self.call(
                lambda x: tf.where(mask[..., None], x, 0.0), [x], g
            ),
        }

    def of_attention(self):
        layer = side_keras.make_attention(self.told)
        layer.build(self.x.shape, self.x.shape)
        width, (b, n, h, d) = self.x.shape[-1], inputs.heads(self.told)[0].shape
        heads = keras.layers.EinsumDense("btm,mhd->bthd", (None, h, d), bias_axes="hd")
        output = keras.layers.EinsumDense("bthd,hdm->btm", (None, width), bias_axes="m")
        heads.build(self.x.shape)
        output.build((b, n, h, d))
        *qkv, g = inputs.heads(self.told)
        x, mask = self.x, self.mask

        def causal(x, **masks):
            return layer(x, x, use_causal_mask=True, **masks)

        return {
            "attention layer": self.call(causal, [x], self.g, [layer]),
            "attention layer, padded": self.call(
                lambda x: causal(x, query_mask=mask, value_mask=mask), [x], self.g, [layer]
            ),
            "projection of the input": self.call(heads, [x], g, [heads]),
            "core": self.call(side_keras.core({**self.told, "options": {}}), qkv, g),
            "output projection": self.call(output, [g], self.g, [output]),
        }


def timed(parts, repeats):
    """Median seconds of each part, in turns."""
    seconds = collections.defaultdict(list)
    for run in parts.values():
        run()
        run()
    for _ in range(repeats):
        for name, run in parts.items():
            start = time.perf_counter()
            of_parts = run()
            spent = {name: time.perf_counter() - start}
            for part, value in (of_parts if isinstance(of_parts, dict) else spent).items():
                seconds[part].append(value)
    return {name: statistics.median(spent) for name, spent in seconds.items()}


def compared(medians, blocks):
    """Rows: part, its seconds, the sum of its components, ratio, and the components."""
    rows = []
    for part, seconds in medians.items():
        components = {
            name: blocks if times == "blocks" else times
            for name, times in SUMS.get(part, {}).items()
        }
        total = sum(times * medians[name] for name, times in components.items())
        rows.append((part, seconds, total, report.ratio(seconds, total), components))
    return sorted(rows, key=lambda row: list(SUMS).index(row[0]) if row[0] in SUMS else len(SUMS))


def text_of(rows, arguments, run, limit):
    lines = report.head("One step of `fit`, and its parts", run, [0])
    lines.append(
        f"{arguments.attention}, {arguments.blocks} causal blocks, {arguments.length:,} steps, "
        f"batch {arguments.batch}, {arguments.heads} heads of {arguments.size}, {arguments.hidden} "
        f"hidden, {'graphs' if arguments.no_xla else 'XLA'}. Forward + gradient, medians of "
        f"{arguments.repeats} turns. Marked: above {MARKED} times the sum of the components.\n\n"
    )
    body = []
    for part, seconds, total, ratio, components in rows:
        names = " + ".join(f"{n} {name}" if n > 1 else name for name, n in components.items())
        shown = ["", "", ""]
        if components:
            mark = " **marked**" if ratio > MARKED else ""
            shown = [f"{1e3 * total:.2f}", f"{ratio:.2f}{mark}", names]
        body.append([part, f"{1e3 * seconds:.2f}", *shown])
    head = ["part", "ms", "sum of its components, ms", "ratio", "components"]
    lines += report.table(head, body)
    if limit is not None:
        (core,) = (row[1] for row in rows if row[0] == "core")
        lines.append(
            f"The core takes {core / limit:.1f} times its products at this machine's rate.\n"
        )
    return "".join(lines)


def main():
    arguments = arguments_of()
    parts = Parts(arguments)
    medians = timed(parts.all(), arguments.repeats)
    rows = compared(medians, arguments.blocks)
    name = f"profile_fit_{arguments.attention}{'_quick' * arguments.quick}"
    store = results.Store(arguments.output / f"{name}.json", fresh=True)
    run = store.begin(arguments.seed)
    run["versions"] = side_keras.versions()
    store.cells = {0: {"run": 0}}
    core = Cell(**{**vars(parts.cell), "level": "core", "same": arguments.attention})
    limit = limits.seconds(core, tensorflow_calls.rates("float32"))
    text = text_of(rows, arguments, store, limit)
    found = {
        **run,
        "seconds": medians,
        "marked": [row[0] for row in rows if (row[3] or 0) > MARKED],
    }
    results.write(store.path, json.dumps(found, indent=1) + "\n")
    results.write(store.path.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
