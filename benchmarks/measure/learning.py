"""Training until a validation is passed, with plain `fit`."""

import time

import keras

from measure import datasets

BATCHES = 100
"""Updates between two validations."""
PASSED = 0.99
WARM_UP = 0.1
"""Part of the updates in which the rate rises."""


class TimeLimit(keras.callbacks.Callback):
    """Base of the callbacks that end `fit` when the time is over. A subclass counts `seconds`.

    Attributes:
        ended: why `fit` ended.
        updates: how many there were.
    """

    def __init__(self, minutes):
        super().__init__()
        self.minutes, self.ended, self.updates = minutes, "all updates", 0

    @property
    def seconds(self):
        raise NotImplementedError(f"{type(self).__name__} must override `seconds`.")

    def on_train_batch_end(self, batch, logs=None):
        self.updates += 1
        if self.seconds > 60 * self.minutes:
            self.end("out of time")

    def end(self, why):
        self.ended, self.model.stop_training = why, True


class Stop(TimeLimit):
    """End `fit` when the validation is passed, or the time is over.

    Attributes:
        accuracies: of the validations.
        seconds: all that `fit` took: compilation, updates and validations.
        cpu_seconds: of all cores, which other programs on the machine change less.
    """

    def __init__(self, minutes):
        super().__init__(minutes)
        self.accuracies = []
        self.start, self.cpu_start = time.perf_counter(), time.process_time()

    @property
    def seconds(self):
        return time.perf_counter() - self.start

    @property
    def cpu_seconds(self):
        return time.process_time() - self.cpu_start

    def on_epoch_end(self, epoch, logs=None):
        self.accuracies.append(round(float(logs["val_accuracy"]), 4))
        if self.accuracies[-1] >= PASSED:
            self.end("passed")


def fit(model, batches, validation, *, rate, updates, batch, minutes):
    """Train on batches, which never repeat, and return what `Stop` has seen."""
    warm_up = int(WARM_UP * updates)
    rates = keras.optimizers.schedules.CosineDecay(
        0.0, updates - warm_up, warmup_target=rate, warmup_steps=warm_up
    )
    model.compile(
        keras.optimizers.Adam(rates),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy("accuracy")],
        jit_compile=True,
    )
    stop = Stop(minutes)
    model.fit(
        batches,
        steps_per_epoch=min(BATCHES, updates),
        epochs=-(-updates // BATCHES),
        validation_data=datasets.in_order(validation, batch),
        callbacks=[stop],
        verbose=0,
    )
    return {
        "ended": stop.ended,
        "updates": stop.updates,
        "seconds": round(stop.seconds, 1),
        "cpu_seconds": round(stop.cpu_seconds, 1),
        "validations": stop.accuracies,
    }
