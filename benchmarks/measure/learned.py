"""One run of a task: train its model with an attention, and score it on the test."""

import importlib.util
import math
import shutil

import keras
from tasks import TASKS

from keras_cosattn.atomic_write import atomic_write
from measure import curve, models
from measure.data_cache import CACHE

PARTS = ("blocks", "heads", "key_dim", "hidden")


def given_of(task, attention, conv, seed, rate, minutes, updates, also):
    """What a run is given, a dict: it names the run, and says what it was trained with."""
    sizes = {name: getattr(task.size, name) for name in PARTS}
    return {"task": task.name, "attention": attention, "conv": conv, "seed": seed, "rate": rate,
            "minutes": minutes, "updates": updates, "also": also, "length": task.length,
            "batch": task.batch, **sizes}  # fmt: skip


def run(given, name, start=None, verbose=1):
    """Train and test, and return what was found, a dict.

    Args:
        given: of `given_of`.
        name: of the run, without a suffix, for its files in the cache.
        start: name of the run whose body the model starts from, or None.
        verbose: of `fit`.
    """
    task = TASKS[given["task"]]
    keras.utils.set_random_seed(given["seed"])
    built = models.build(task, given["attention"], given["conv"])
    print(f"{built.parameters:,} parameters with {built.hidden} feed-forward units; with softmax "
          f"{built.softmax_parameters:,} ({built.parameters / built.softmax_parameters - 1:+.2%})",
          flush=True)  # fmt: skip
    if start is not None:
        built.body.load_weights(trained_weights(start))
    data = task.read(given["seed"])
    folder = CACHE / "unfinished" / name
    folder.mkdir(parents=True, exist_ok=True)
    found = curve.fit(
        built.model,
        task,
        data,
        **{key: given[key] for key in ("rate", "seed", "minutes", "updates")},
        folder=folder,
        callbacks=tensorboard(name),
        verbose=verbose,
    )
    tested = built.model.evaluate(curve.fixed(data.test, task.batch), verbose=0, return_dict=True)
    test = curve.scores_of(tested)
    more = task.also(task, built, data, given) if given["also"] and task.also else {}
    if any(other.starts_from == task.name for other in TASKS.values()):
        keep_weights(built.body, name)
    shutil.rmtree(folder)
    return {
        "ended": found.ended,
        **{key: found.validations[-1][key] for key in ("updates", "seconds", "cpu_seconds")},
        "compile_seconds": round(found.compile_seconds, 1),
        "validations": found.validations,
        "test": test,
        "scores": {score.name: value_of(score, test) for score in task.scores},
        "parameters": built.parameters,
        "softmax_parameters": built.softmax_parameters,
        "feed_forward_units": built.hidden,
        **more,
    }


def value_of(score, found):
    """A score of a dict of loss and accuracy, None if they are no finite numbers."""
    if None in found.values():
        return None
    try:
        value = score.of(found)
    except OverflowError:
        return None
    return round(value, 5) if math.isfinite(value) else None


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
