"""Mails of 20 Newsgroups as tokens for a sentence encoder: to learn from, to choose by, to test on.

A text is an array of tokens without the marks that stand around what the encoder reads.
"""

import dataclasses

import minilm
import numpy as np
import retrieval
from long_texts import marked
from newsgroups_data import mails

LENGTHS = (32, 128, 512)
"""Tokens of the texts that a student learns from, with their marks."""
BATCH_TOKENS = 1024
CHOOSE = 1000
"""Mails of the training part from which nothing is learned."""
LONG = (1024, 4096)
"""The fewest and the most tokens of a mail that passages are cut out of."""
PASSAGES, PASSAGE = 4, 64
"""How many passages are cut out of a mail, behind what MiniLM reads, and their tokens."""


@dataclasses.dataclass(frozen=True)
class Texts:
    """Attributes: lists of texts, of which `learn` and `choose` are of the training part."""

    learn: list
    choose: list
    test: list


def read(seed):
    """All mails as tokens, in an order drawn by the seed."""
    rng, tokenize, found = np.random.default_rng(seed), minilm.tokenizer(), []
    for part in ("train", "test"):
        tokens = tokenize(mails(part)[0])
        texts = np.split(tokens.flat_values.numpy(), tokens.row_splits.numpy()[1:-1])
        found.append([texts[i] for i in rng.permutation(len(texts))])
    train, test = found
    return Texts(train[CHOOSE:], train[:CHOOSE], test)


def windows(texts, length, count, seed):
    """Marked parts of texts, `(count, length)`, from places drawn by the seed."""
    rng, room = np.random.default_rng([seed, length]), length - 2
    long = [text for text in texts if len(text) >= room]
    drawn = [long[i] for i in rng.integers(len(long), size=count)]
    starts = [rng.integers(len(text) - room + 1) for text in drawn]
    return np.stack([marked(x[i : i + room]) for x, i in zip(drawn, starts, strict=True)])


def of_lengths(texts, lengths, count, seed):
    """`windows` for each of some lengths, as a dict."""
    return {length: windows(texts, length, count, seed) for length in lengths}


def batches(texts, count, seed):
    """Windows of each of `LENGTHS` in turn, `BATCH_TOKENS` tokens in each batch."""
    rounds, of_length = -(-count // len(LENGTHS)), []
    for n in LENGTHS:
        rows = BATCH_TOKENS // n
        of_length.append(windows(texts, n, rounds * rows, seed).reshape(rounds, rows, n))
    return [x for batch in zip(*of_length, strict=True) for x in batch][:count]


def searches(texts, count, seed):
    """Passages that were cut out of the first `count` long texts, and the rest of these."""
    long = [text for text in texts if LONG[0] <= len(text) <= LONG[1]][:count]
    rng = np.random.default_rng(seed)
    return retrieval.search(long, PASSAGES, PASSAGE, minilm.READS - 2, rng)
