"""Shoulder exercises seen by a watch: 140 recordings of 10 people, from the package `seglearn`.

Six channels at 50 Hz: acceleration in g and turning rate in rad/s, along x, y and z. Burns et al.,
2018. The recordings are fetched once, as a wheel that is not installed, into a cache. Here are
also what `watch_stream.py` needs beside its model: augmentation, a baseline, table and picture.
"""

import dataclasses
import io

import numpy as np
from matplotlib.figure import Figure
from sklearn.ensemble import RandomForestClassifier
from tables import made_with, print_columns
from wheel_data import CACHE, read_member

WHEEL = "seglearn-1.2.5-py3-none-any.whl"
MEMBER = "seglearn/data/watch_dataset.npy"
SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"

UNSCORED = 32

OTHER_ARM = np.float32([-1, 1, 1, 1, -1, -1])
"""Signs that mirror a movement: x turns over, and so do all rotations but that about x."""


@dataclasses.dataclass(frozen=True)
class Watch:
    """Attributes: `series`, a list of `(steps, 6)` float32; `labels`, `people`, one for each."""

    series: list
    labels: np.ndarray
    people: np.ndarray
    names: list

    def of(self, *people):
        """The recordings of some people."""
        return self._chosen(np.isin(self.people, people))

    def without(self, *people):
        """The recordings of all others."""
        return self._chosen(~np.isin(self.people, people))

    def longest(self):
        """The longest recording and its label."""
        i = max(range(len(self.series)), key=lambda i: len(self.series[i]))
        return self.series[i], self.labels[i]

    def windows(self, count, steps, rng):
        """`(count, steps, 6)` cut at random places, and their labels `(count, steps)`."""
        lengths = np.array([len(x) for x in self.series])
        which = rng.choice(len(lengths), count, p=lengths / lengths.sum())
        starts = rng.integers(lengths[which] - steps + 1)
        x = [self.series[i][start : start + steps] for i, start in zip(which, starts, strict=True)]
        return np.stack(x), np.repeat(self.labels[which, None], steps, axis=1)

    def batches(self, count, steps, rng):
        """Windows without end, augmented; their first samples, too few to tell, weigh nothing."""
        weights = np.where(np.arange(steps) < UNSCORED, 0.0, np.ones((count, 1)))
        while True:
            x, y = self.windows(count, steps, rng)
            yield augmented(x, rng), y, weights

    def _chosen(self, chosen):
        series = [x for x, take in zip(self.series, chosen, strict=True) if take]
        return Watch(series, self.labels[chosen], self.people[chosen], self.names)


def load(cache=CACHE):
    """All recordings. Raises RuntimeError if they cannot be fetched or are not the known ones."""
    # They are a pickle, which could run anything: the content is checked before it is opened.
    content = read_member("seglearn==1.2.5", WHEEL, MEMBER, SHA256, cache)
    data = np.load(io.BytesIO(content), allow_pickle=True).item()
    # A watch knows on which wrist it is worn: the left arm's signals are told as a right arm's.
    series = [
        np.float32(x) * (1 if right else OTHER_ARM)
        for x, right in zip(data["X"], data["side"], strict=True)
    ]
    return Watch(series, data["y"], data["subject"], data["y_labels"])


def augmented(x, rng, degrees=15.0, scale=0.1):
    """Windows `x (b, t, 6)` as of a watch that sits a little turned, and scaled."""
    turn = _rotations(rng.normal(size=(len(x), 3)), np.deg2rad(degrees) * rng.normal(size=len(x)))
    x = np.concatenate([x[..., :3] @ turn, x[..., 3:] @ turn], axis=-1)
    return np.float32(x * np.exp(scale * rng.normal(size=(len(x), 1, 1))))


def forest(watch, folds, seed):
    """The table's column of a random forest on statistics of whole recordings."""
    right, people = [], []
    for fold in folds:
        train, test = watch.without(*fold), watch.of(*fold)
        model = RandomForestClassifier(200, random_state=seed)
        model.fit([statistics_of(x) for x in train.series], train.labels)
        right.extend(model.predict([statistics_of(x) for x in test.series]) == test.labels)
        people.extend(test.people)
    return _rows("recording", right, people)


def accuracy(tested):
    """The table's rows on `tested`: pairs of recordings and their log-probabilities in time.

    A recording is named by the mean over its samples, a sample by itself.
    """
    recordings, samples, people = [], [], []
    for test, outputs in tested:
        for y, label in zip(outputs, test.labels, strict=True):
            recordings.append(y.mean(axis=0).argmax() == label)
            samples.append((y.argmax(axis=1) == label).mean())
        people.extend(test.people)
    return _rows("recording", recordings, people) | _rows("sample", samples, people)


def print_table(columns, seed):
    """Print `columns`, name -> row -> text, and what they were made with."""
    packages = ("keras-cosattn", "keras", "tensorflow", "ai-edge-litert", "scikit-learn")
    print(f"\n{made_with(seed, packages)}\n")
    print_columns(columns)


def draw(x, y, label, names, path):
    """A picture of a recording `x`, and of what its log-probabilities `y` say as it goes on."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    signal, said, sure = figure.subplots(3, sharex=True)
    seconds = np.arange(len(x)) / 50
    signal.plot(seconds, x[:, :3], linewidth=0.8, label=["x", "y", "z"])
    signal.set(ylabel="acceleration, g", title=f"{names[label]}, by a person not seen in training")
    signal.legend(loc="upper right", ncols=3)
    so_far = y.cumsum(axis=0) / np.arange(1, len(y) + 1)[:, None]
    said.plot(seconds, y.argmax(axis=1), ".", markersize=2, label="at this sample")
    said.plot(seconds, so_far.argmax(axis=1), label="so far")
    said.set(ylabel="exercise", yticks=range(len(names)), yticklabels=names)
    said.legend(loc="upper right")
    sure.plot(seconds, np.exp(y[:, label]), linewidth=0.8)
    sure.set(ylabel=f"probability of {names[label]}", xlabel="seconds", ylim=(0, 1.02))
    figure.savefig(path, dpi=120)


def log_softmax(y):
    """`y (t, classes)` as log-probabilities."""
    y = y - y.max(axis=1, keepdims=True)
    return y - np.log(np.exp(y).sum(axis=1, keepdims=True))


def _rows(unit, right, people):
    right, people = np.array(right), np.array(people)
    means = np.array([right[people == person].mean() for person in np.unique(people)])
    return {
        f"accuracy per {unit}, unseen people": f"{right.mean():.3f}",
        f"  of one person, per {unit}": f"{means.min():.2f} to {means.max():.2f}",
        f"  deviation between people, per {unit}": f"{means.std():.3f}",
    }


def statistics_of(x):
    return np.concatenate([x.mean(0), x.std(0), *np.percentile(x, [5, 25, 50, 75, 95], axis=0)])


def _rotations(axes, angles):
    """Rodrigues' formula: `(b, 3)` and `(b,)` -> `(b, 3, 3)`."""
    x, y, z = (axes / np.linalg.norm(axes, axis=1, keepdims=True)).T
    zero = np.zeros_like(x)
    cross = np.array([[zero, -z, y], [z, zero, -x], [-y, x, zero]]).transpose(2, 0, 1)
    sin, cos = np.sin(angles)[:, None, None], np.cos(angles)[:, None, None]
    return np.eye(3) + sin * cross + (1 - cos) * cross @ cross
