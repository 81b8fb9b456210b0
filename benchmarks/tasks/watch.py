"""Name the exercise at every sample of a watch: the recordings of `examples/watch_stream.py`.

People 9 and 10 are the test, 8 is the validation, and the others are trained on.
"""

import functools

import numpy as np
from measure.heads import each_step
from measure.model_inputs import Signal

from tasks.task import ACCURACY, Data, Size, Task, majority, rows

WINDOW, CHANNELS, EXERCISES = 256, 6, 7
VALIDATED, TESTED = (8,), (9, 10)
VALIDATION, TEST = 128, 1_024
FITTED = 4_000
"""Windows that the forest learns from."""


@functools.cache
def recordings():
    import watch_data

    return watch_data.load()


def windows(people, count, seed):
    """`Examples` of people, cut at random places; too short a past weighs nothing."""
    import watch_data

    x, y = recordings().of(*people).windows(count, WINDOW, np.random.default_rng(seed))
    return rows(np.float32(x), y, weights(watch_data, count))


def weights(watch_data, count):
    return np.where(np.arange(WINDOW) < watch_data.UNSCORED, 0.0, np.ones((count, 1)))


def read(seed):
    import watch_data

    train = recordings().without(*VALIDATED, *TESTED)

    def draw(rng, count):
        x, y = train.windows(count, WINDOW, rng)
        return rows(watch_data.augmented(x, rng), y, weights(watch_data, count))

    return Data(draw, windows(VALIDATED, VALIDATION, 1), windows(TESTED, TEST, 2))


def floors():
    """Majority, and a forest that reads statistics of whole windows."""
    import watch_data
    from sklearn.ensemble import RandomForestClassifier

    rng = np.random.default_rng(3)
    x, y = recordings().without(*VALIDATED, *TESTED).windows(FITTED, WINDOW, rng)
    forest = RandomForestClassifier(200, random_state=0)
    forest.fit([watch_data.statistics_of(each) for each in x], y[:, 0])
    test = windows(TESTED, TEST, 2)
    tests = [watch_data.statistics_of(each) for each in test.inputs]
    return {
        "majority": majority(test.labels),
        "random forest on statistics of windows": float(forest.score(tests, test.labels[:, 0])),
    }


TASKS = [
    Task(
        name="watch",
        about="windows of 256 samples of a watch; two people are the test",
        length=WINDOW,
        batch=16,
        every=25,
        causal=True,
        inputs=Signal(CHANNELS),
        head=each_step,
        classes=EXERCISES,
        scores=(ACCURACY,),
        read=read,
        floors=floors,
        size=Size(blocks=1, heads=2, key_dim=16, hidden=64),
    )
]
