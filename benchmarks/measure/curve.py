"""Training with plain `fit`. Each validation is kept, with the updates and seconds before it."""

import json
import math
import time

import keras
import numpy as np
import tensorflow as tf

from measure import datasets, results
from measure.learning import TimeLimit
from measure.recall_data import TRAIN

WAYS, TIMED = (False, True), 3
"""Without XLA and with it, and the updates that are timed to choose one. The last way is not
compiled again if it is chosen, so it is the dearer one."""
WARM_UP = 50
"""Updates in which the rate rises."""


class InverseRoot(keras.optimizers.schedules.LearningRateSchedule):
    """The rate rises for some updates, then falls as one over the root of their number.

    It does not depend on how long the training is. So the beginning of a long run is a short run,
    and runs can be compared after equally many updates or seconds.
    """

    def __init__(self, rate=0.0):
        # As a variable it can change without another compilation.
        self.rate = keras.Variable(rate, trainable=False, dtype="float32")

    def __call__(self, step):
        n = keras.ops.cast(step, "float32") + 1
        return self.rate * keras.ops.minimum(n / WARM_UP, keras.ops.sqrt(WARM_UP / n))

    def get_config(self):
        return {"rate": float(self.rate)}


class Curve(TimeLimit):
    """The validations of `fit`, written to a file after each, so that an interrupted run goes on.

    Seconds are those of the updates. Validations do not count, and neither does the first update of
    a `fit`, which may compile and waits for the first batch.

    Args:
        minutes: of updates, after which `fit` ends.
        path: of the file.

    Attributes:
        validations: dicts of `updates`, `seconds`, `loss` and `accuracy`.
    """

    def __init__(self, minutes, path):
        super().__init__(minutes)
        self.path, self.started = path, False
        self.validations, self.finished = [], False
        if path.exists():
            kept = json.loads(path.read_text())
            self.validations, self.ended = kept["validations"], kept["ended"]
            self.finished = kept["finished"]
        self._seconds = self._after(self.validations)

    @property
    def seconds(self):
        return self._seconds

    @staticmethod
    def _after(validations):
        return validations[-1]["seconds"] if validations else 0.0

    def on_epoch_begin(self, epoch, logs=None):
        if not self.started:  # the weights may be older than the last validation
            self.validations = self.validations[:epoch]
            self._seconds, self.finished = self._after(self.validations), False

    def on_train_batch_begin(self, batch, logs=None):
        self.batch_start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        loss = float(logs["loss"])
        if self.started:
            self._seconds += time.perf_counter() - self.batch_start
        self.started = True
        super().on_train_batch_end(batch, logs)
        if not math.isfinite(loss):
            self.end("diverged")

    def end(self, why):
        super().end(why)
        self.finished = True

    def on_epoch_end(self, epoch, logs=None):
        self.validations.append({
            "updates": int(self.model.optimizer.iterations),
            "seconds": round(self._seconds, 2),
            **scores_of({name: logs[f"val_{name}"] for name in ("nats", "accuracy")}),
        })  # fmt: skip
        names = "validations", "ended", "finished"
        results.write(self.path, json.dumps({name: getattr(self, name) for name in names}))


def scores_of(logs):
    """Loss and accuracy, None where they are no finite numbers."""
    found = {"loss": float(logs["nats"]), "accuracy": float(logs["accuracy"])}
    return {name: round(x, 5) if math.isfinite(x) else None for name, x in found.items()}


def batches(data, count, seed, first=0):
    """A dataset without end. What an update reads depends on the seed and its number only.

    Args:
        data: `Data`.
        count: examples of a batch.
        seed: of the draws.
        first: the number of the first update, more than 0 if an interrupted run goes on.
    """
    like = tuple(data.draw(np.random.default_rng([seed, TRAIN, 0]), count))
    flat = keras.tree.flatten(like)

    def draw(n):
        return keras.tree.flatten(tuple(data.draw(np.random.default_rng([seed, TRAIN, n]), count)))

    def tensors(n):
        found = tf.numpy_function(draw, [n], [x.dtype for x in flat])
        for x, y in zip(found, flat, strict=True):
            x.set_shape(y.shape)
        return keras.tree.pack_sequence_as(like, found)

    return datasets.untuned(tf.data.Dataset.counter(first).map(tensors).prefetch(2))


def fixed(examples, count):
    """A dataset of `Examples` in their order.

    Raises:
        ValueError: If the last batch would be smaller, which XLA would compile for.
    """
    if len(examples.labels) % count:
        raise ValueError(
            f"The number of examples must be a multiple of the batch. Received: "
            f"{len(examples.labels)} examples, a batch of {count}"
        )
    data = tf.data.Dataset.from_tensor_slices(tuple(examples)).batch(count, drop_remainder=True)
    return datasets.untuned(data)


def compiled(model, xla):
    """Compile a model with or without XLA, and return the schedule, whose rate can be changed."""
    schedule = InverseRoot()
    model.compile(
        keras.optimizers.Adam(schedule, clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[
            keras.metrics.SparseCategoricalCrossentropy("nats", from_logits=True),
            keras.metrics.SparseCategoricalAccuracy("accuracy"),
        ],
        jit_compile=xla,
    )
    model.optimizer.build(model.trainable_variables)
    return schedule


def compiled_faster(model, examples):
    """Compile a model the way in which its updates are faster. Its weights stay as they are.

    With or without XLA: on a CPU softmax attention may be twice as fast without, and linear
    attention slower. So each attention is trained its own faster way.

    Args:
        model: a built model.
        examples: `Examples` of one update.

    Returns:
        The schedule, and whether XLA compiles the updates.
    """
    if len(WAYS) == 1:
        return compiled(model, *WAYS), WAYS[0]
    seconds = {}
    for xla in WAYS:
        schedule = compiled(model, xla)  # with the rate 0
        seconds[xla] = min(_times(model, examples)[1:])
    best = min(WAYS, key=seconds.get)
    return (schedule if best == WAYS[-1] else compiled(model, best)), best


def _times(model, examples):
    """Seconds of a few updates, of which the first compiles."""
    return [update_seconds(model, examples) for _ in range(1 + TIMED)]


def update_seconds(model, examples):
    """Seconds of one update of a compiled model."""
    inputs, labels, weights = examples
    start = time.perf_counter()
    model.train_on_batch(inputs, labels, sample_weight=weights)
    return time.perf_counter() - start


def fit(model, curve, task, data, *, seed, updates, folder, callbacks=(), verbose=1):
    """Train a compiled model. An interrupted call goes on where it was.

    Args:
        model: that of `task`, with the weights to start from.
        curve: a `Curve`, which is told the validations.
        task: a `Task`.
        data: `Data` of the task.
        seed: of the batches.
        updates: after which the training ends, if the curve does not end it before; they are
            rounded up to whole validations.
        folder: for the weights of an unfinished training. The caller deletes it.
        callbacks: more callbacks of Keras.
        verbose: of `fit`.
    """
    backup = keras.callbacks.BackupAndRestore(
        folder, double_checkpoint=True, delete_checkpoint=False
    )
    done = curve.validations[-1]["updates"] if curve.validations else 0
    every = min(task.every, updates)
    model.fit(
        batches(data, task.batch, seed, done),
        steps_per_epoch=every,
        epochs=len(curve.validations) if curve.finished else -(-updates // every),
        validation_data=fixed(data.validation, task.batch),
        callbacks=[curve, backup, *callbacks],
        shuffle=False,  # the dataset draws its batches at random
        verbose=verbose,
    )
