"""One run of a task: train its model with an attention, and score it on the test."""

import importlib.util
import math
import shutil

import keras
import numpy as np
from tasks import TASKS

from keras_cosattn.atomic_write import atomic_write
from measure import curve, models
from measure.data_cache import CACHE

MOST = 1_000_000
"""Updates of a run that the minutes end."""


class Learner:
    """A model of a task with an attention, which is compiled once and trained any number of times.

    Args:
        task: a `Task`.
        attention: name of the attention.
        conv: whether a convolution stands before each block.
        verbose: of `fit`.
    """

    def __init__(self, task, attention, conv=False, verbose=1):
        self.task, self.attention, self.conv, self.verbose = task, attention, conv, verbose
        self._built = None

    def run(self, given, name, start=None):
        """Train and, if it is no search, test. An interrupted run of the same name goes on.

        Args:
            given: of `learning_runs.given_of`.
            name: of the run, without a suffix, for its files in the cache.
            start: name of the run whose body the model starts from, or None.

        Returns:
            What was found, a dict.
        """
        task, folder = self.task, CACHE / "unfinished" / name
        folder.mkdir(parents=True, exist_ok=True)
        data = task.read(given["seed"])
        if self._built is None:
            self._compile(data)
        built = self._begin(given, start)
        minutes = math.inf if given["minutes"] is None else given["minutes"]
        found = curve.Curve(minutes, folder / "curve.json")
        goes_on = bool(found.validations)
        updates = MOST if given["updates"] is None else given["updates"]
        callbacks = [] if given["search"] else tensorboard(name)
        curve.fit(built.model, found, task, data, seed=given["seed"], updates=updates,
                  folder=folder / "backup", callbacks=callbacks,
                  verbose=self.verbose)  # fmt: skip
        more = {} if given["search"] else self._tested(given, name, data)
        shutil.rmtree(folder)
        if goes_on:  # Keras keeps the epoch at which this training began, also for the next one
            self._built = None
        return {
            "ended": found.ended,
            **{key: found.validations[-1][key] for key in ("updates", "seconds")},
            "validations": found.validations,
            "xla": self._xla,
            "parameters": built.parameters,
            "softmax_parameters": built.softmax_parameters,
            "feed_forward_units": built.hidden,
            **more,
        }

    def _compile(self, data):
        built = self._built = models.build(self.task, self.attention, self.conv)
        examples = data.draw(np.random.default_rng(0), self.task.batch)
        self._schedule, self._xla = curve.compiled_faster(built.model, examples)
        apart = built.parameters / built.softmax_parameters - 1
        print(f"{built.parameters:,} parameters with {built.hidden} feed-forward units; with "
              f"softmax {built.softmax_parameters:,} ({apart:+.2%}), "
              f"{'with' if self._xla else 'without'} XLA", flush=True)  # fmt: skip

    def _begin(self, given, start):
        """The model with new weights, or with those of a trained body, and with a new optimizer."""
        built = self._built
        keras.utils.set_random_seed(given["seed"])
        drawn = models.build(self.task, self.attention, self.conv)
        built.model.set_weights(drawn.model.get_weights())
        if start is not None:
            built.body.load_weights(trained_weights(start))
        for variable in built.model.optimizer.variables:
            variable.assign(keras.ops.zeros_like(variable))
        self._schedule.rate.assign(given["rate"])
        return built

    def _tested(self, given, name, data):
        """Scores on the test, and what else the task measures of a trained model."""
        task, built = self.task, self._built
        test = curve.fixed(data.test, task.batch)
        test = curve.scores_of(built.model.evaluate(test, verbose=0, return_dict=True))
        scores = {score.name: score.value(test) for score in task.scores}
        found = {"test": test, "scores": scores}
        if None not in test.values() and task.also is not None:
            found |= task.also(task, built, data, given)
        if any(other.starts_from == task.name for other in TASKS.values()):
            keep_weights(built.body, name)
        return found


def tensorboard(name):
    """The callback that writes logs for TensorBoard, if that is installed."""
    if importlib.util.find_spec("tensorboard") is None:
        print("no logs for TensorBoard are written: the package `tensorboard` is not installed")
        return []
    logs = CACHE / "logs" / name
    print(f"logs: tensorboard --logdir {logs.parent}")
    return [keras.callbacks.TensorBoard(logs)]


def keep_weights(body, name):
    """Keep the weights of a trained body for the tasks that start from it."""
    (CACHE / "trained").mkdir(parents=True, exist_ok=True)
    with atomic_write(CACHE / "trained" / name, folder=True) as new:
        body.save_weights(new / "body.weights.h5")


def trained_weights(name):
    """The file that `keep_weights` wrote.

    Raises:
        FileNotFoundError: If it is not in the cache.
    """
    path = CACHE / "trained" / name / "body.weights.h5"
    if not path.exists():
        raise FileNotFoundError(
            f"There are no weights at {path}. Repeat the run {name} with `--fresh`: its result was "
            "kept, its weights were not."
        )
    return path
