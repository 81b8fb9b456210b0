"""What a task tells the training: its data, its model's inputs and outputs, its scores."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Examples(NamedTuple):
    """Inputs (an array, or a dict of arrays), labels, and weights of the labels."""

    inputs: Any
    labels: np.ndarray
    weights: np.ndarray


class Data(NamedTuple):
    """Attributes:
    draw: function `(rng, count)` that returns `Examples` to train on.
    validation: `Examples` for the curves, and to choose the learning rate.
    test: `Examples` for the final scores.
    """

    draw: Callable[[np.random.Generator, int], Examples]
    validation: Examples
    test: Examples


@dataclasses.dataclass(frozen=True)
class Size:
    """The model: `blocks` of width `heads x key_dim`, with `hidden` feed-forward units."""

    blocks: int = 2
    heads: int = 2
    key_dim: int = 32
    hidden: int = 256

    @property
    def width(self):
        return self.heads * self.key_dim


@dataclasses.dataclass(frozen=True)
class Score:
    """A number made of the mean loss (in nats) and the accuracy.

    Attributes: `name`; `of`, a function of the dict of both; `higher`, whether more is better;
    `form`, how it is printed.
    """

    name: str
    of: Callable[[dict[str, float]], float]
    higher: bool
    form: str = "{:.3f}"

    def value(self, found):
        """The score of a dict of loss and accuracy, None if it is no finite number."""
        if None in found.values():
            return None
        try:
            value = self.of(found)
        except OverflowError:
            return None
        return round(value, 5) if math.isfinite(value) else None


ACCURACY = Score("accuracy", lambda found: found["accuracy"], higher=True, form="{:.1%}")
BITS_PER_BYTE = Score("bits per byte", lambda found: found["loss"] / math.log(2), higher=False)
LOSS = Score("loss", lambda found: found["loss"], higher=False)
PERPLEXITY = Score("perplexity", lambda found: math.exp(found["loss"]), higher=False, form="{:.1f}")


@dataclasses.dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: of the task.
        about: one line: the data, and how it is split.
        length: the most steps of an example.
        batch: examples of an update.
        every: updates between two validations.
        causal: whether the model is a decoder.
        inputs: what the model reads, of `measure/model_inputs.py`.
        head: what it answers, a function of `measure/heads.py`.
        classes: the number of outputs of each answer.
        scores: `Score`s, the first of which counts.
        read: function of a seed that returns `Data`.
        floors: function that returns a dict of names to values of the first score.
        size: of the model.
        rates: the learning rates that are tried.
        starts_from: name of the task whose trained body the model starts from, or None.
        also: function of the task, what `models.build` returned, `Data` and what the run was given,
            which returns more findings, a dict; or None.
    """

    name: str
    about: str
    length: int
    batch: int
    every: int
    causal: bool
    inputs: Any
    head: Callable
    classes: int
    scores: tuple[Score, ...]
    read: Callable[[int], Data]
    floors: Callable[[], dict[str, float]]
    size: Size = Size()
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    starts_from: str | None = None
    also: Callable[..., dict] | None = None


def rows(inputs, labels, weights=None):
    """`Examples` of arrays; without weights, all labels count."""
    labels = np.asarray(labels, "int32")
    weights = np.ones(labels.shape, "float32") if weights is None else np.float32(weights)
    return Examples(inputs, labels, weights)


def chosen(examples, index):
    """Some of the examples."""
    inputs, labels, weights = examples
    if isinstance(inputs, dict):
        return Examples({name: x[index] for name, x in inputs.items()}, labels[index],
                        weights[index])  # fmt: skip
    return Examples(inputs[index], labels[index], weights[index])


def drawn_from(examples):
    """A `draw` of `Data` that takes examples at random, each time anew."""

    def draw(rng, count):
        return chosen(examples, rng.integers(len(examples.labels), size=count))

    return draw


def in_three(examples, validation, test, seed=0):
    """`Data` of one set: the last examples of a drawn order are held out."""
    order = np.random.default_rng(seed).permutation(len(examples.labels))
    train, middle, last = np.split(order, [-validation - test, -test])
    return Data(drawn_from(chosen(examples, train)), chosen(examples, middle),
                chosen(examples, last))  # fmt: skip


def majority(labels):
    """The share of the most frequent label."""
    return float(np.bincount(np.ravel(labels)).max() / np.size(labels))
