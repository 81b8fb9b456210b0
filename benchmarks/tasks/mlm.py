"""Masked language model of film reviews: find the pieces that were hidden.

Of each row 15 % of the pieces are asked for. Of these 80 % are replaced by a mask, 10 % by another
piece, and 10 % stay (Devlin et al., 2019). The rows are cut from the reviews of IMDB.
"""

import math

import numpy as np
from measure.heads import at_places
from measure.model_inputs import Tokens
from measure.weight_measures import weight_measures

from tasks import pieces
from tasks.task import LOSS, PERPLEXITY, Data, Size, Task, rows

LENGTH = 256
ASKED = round(0.15 * LENGTH)
HIDDEN, CHANGED = 0.8, 0.1
VALIDATED, TESTED = 128, 512
"""Rows, cut from the held-out reviews."""
SIZE = Size(blocks=2, heads=2, key_dim=32, hidden=256)


def hide(rng, tokens, size=pieces.VOCABULARY):
    """`Examples` of rows `(b, t)` of pieces, some of which are hidden."""
    places = np.argsort(rng.random(tokens.shape), axis=1)[:, :ASKED]
    labels = np.take_along_axis(tokens, places, axis=1)
    drawn = rng.random(labels.shape)
    other = rng.integers(len(pieces.SPECIAL), size, labels.shape)
    shown = np.where(drawn < HIDDEN, pieces.MASK,
                     np.where(drawn < HIDDEN + CHANGED, other, labels))  # fmt: skip
    tokens = tokens.copy()
    np.put_along_axis(tokens, places, shown, axis=1)
    return rows({"tokens": np.int32(tokens), "places": np.int32(places)}, labels)


def cut(text, count, seed):
    """`Examples` from the beginning of a text, which has at least so many rows."""
    kept = text[: count * LENGTH].reshape(-1, LENGTH).astype("int32")
    return hide(np.random.default_rng(seed), kept)


def read(seed):
    (train, *_), (validation, *_), (test, *_) = pieces.read("imdb")

    def draw(rng, count):
        starts = rng.integers(len(train) - LENGTH, size=(count, 1))
        return hide(rng, train[starts + np.arange(LENGTH)].astype("int32"))

    return Data(draw, cut(validation, VALIDATED, 1), cut(test, TESTED, 2))


def floors():
    (train, *_), _, (test, *_) = pieces.read("imdb")
    counts = np.bincount(train, minlength=pieces.VOCABULARY) + 1.0
    frequencies = counts / counts.sum()
    asked = cut(test, TESTED, 2).labels
    return {
        "frequencies of pieces": float(-np.log(frequencies)[asked].mean()),
        "any piece": math.log(pieces.VOCABULARY),
    }


TASKS = [
    Task(
        name="mlm",
        about=f"hidden pieces of IMDB reviews, {pieces.VOCABULARY:,} WordPiece pieces, 80/20 of "
        "the 25,000",
        length=LENGTH,
        batch=16,
        every=50,
        causal=False,
        inputs=Tokens(pieces.VOCABULARY, padded=True),
        head=at_places,
        classes=pieces.VOCABULARY,
        scores=(LOSS, PERPLEXITY),
        read=read,
        floors=floors,
        size=SIZE,
        also=weight_measures,
    )
]
