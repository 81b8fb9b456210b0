"""Causal language models of State of the Union addresses, by bytes and by words.

The 249 documents are in the order of time. The last 20 are the test, the 12 before them the
validation; no document is in two parts.
"""

import bz2
import collections
import math
import re

import numpy as np
from measure import text
from measure.heads import each_step
from measure.model_inputs import Tokens
from measure.stream_scores import bits_by_length

from tasks.task import BITS_PER_BYTE, LOSS, PERPLEXITY, Data, Size, Task, rows

VALIDATION, TEST = 12, 20
LENGTH = 512
VALIDATED, TESTED = 64, 256
"""Pieces of the validation and of the test, from the beginning of their text."""
WORDS = 4096
UNKNOWN = 0


def parts(documents):
    """Documents to train on, to validate with and to test with."""
    return (documents[: -VALIDATION - TEST], documents[-VALIDATION - TEST : -TEST],
            documents[-TEST:])  # fmt: skip


def byte_parts():
    """The three parts as arrays of bytes."""
    return [np.frombuffer(b"\n".join(part), np.uint8) for part in parts(text.documents())]


def words(document):
    """The words and punctuation marks of a document."""
    return re.findall(r"\w+|[^\w\s]", document.decode("utf-8", "replace").lower())


def word_parts():
    """The three parts as arrays of numbers; 0 is a word that is rare in the training text."""
    found = [[words(document) for document in part] for part in parts(text.documents())]
    counts = collections.Counter(word for document in found[0] for word in document)
    known = {word: i for i, (word, _) in enumerate(counts.most_common(WORDS - 1), UNKNOWN + 1)}
    return [np.array([known.get(word, UNKNOWN) for document in part for word in document])
            for part in found]  # fmt: skip


def pieces(ids, count):
    """`Examples` that follow each other, at most `count`: each step is asked for the next."""
    count = min(count, (len(ids) - 1) // LENGTH)
    x, y = (np.int32(ids[i : i + count * LENGTH]).reshape(count, LENGTH) for i in (0, 1))
    return rows(x, y)


def read(read_parts):
    """`Data` of three arrays of ids."""
    train, validation, test = read_parts()

    def draw(rng, count):
        starts = rng.integers(len(train) - LENGTH, size=(count, 1))
        cut = np.int32(train[starts + np.arange(LENGTH + 1)])
        return rows(cut[:, :-1], cut[:, 1:])

    return Data(draw, pieces(validation, VALIDATED), pieces(test, TESTED))


def unigram_loss(train, test, size):
    """Nats for each id of the test with the frequencies of the training, each raised by one."""
    counts = np.bincount(train, minlength=size) + 1.0
    return float(-np.log(counts / counts.sum())[test].mean())


def scored(test):
    """The ids of the test that the models are asked for."""
    return np.ravel(pieces(test, TESTED).labels)


def bz2_bits(ids):
    """Bits for each byte that bz2 needs."""
    return 8 * len(bz2.compress(np.uint8(ids).tobytes())) / len(ids)


def byte_floors():
    train, _, test = byte_parts()
    return {
        "frequencies of bytes": unigram_loss(train, scored(test), 256) / math.log(2),
        "bz2 of the same bytes": bz2_bits(scored(test)),
        f"bz2 of all {len(test):,} bytes of the test": bz2_bits(test),
    }


def word_floors():
    train, _, test = word_parts()
    return {"frequencies of words": math.exp(unigram_loss(train, scored(test), WORDS))}


SIZE = Size(blocks=4, heads=3, key_dim=32, hidden=256)
RATES = 3e-3, 1e-2, 3e-2
"""Learning rates to choose from. For the models of bytes, 1e-3 was the worst in every search."""
TASKS = [
    Task(
        name="lm",
        about="bytes of State of the Union addresses, split by document",
        length=LENGTH,
        batch=8,
        every=50,
        causal=True,
        inputs=Tokens(256),
        head=each_step,
        classes=256,
        scores=(BITS_PER_BYTE,),
        read=lambda seed: read(byte_parts),
        floors=byte_floors,
        size=SIZE,
        rates=RATES,
        also=bits_by_length,
    ),
    Task(
        name="lm_words",
        about=f"words of State of the Union addresses, the {WORDS - 1:,} most frequent ones, split "
        "by document",
        length=LENGTH,
        batch=8,
        every=50,
        causal=True,
        inputs=Tokens(WORDS),
        head=each_step,
        classes=WORDS,
        scores=(PERPLEXITY, LOSS),
        read=lambda seed: read(word_parts),
        floors=word_floors,
        size=SIZE,
        rates=RATES,
    ),
]
