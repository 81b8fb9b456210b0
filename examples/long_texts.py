"""Texts of any length for a sentence encoder: as one text, or in pieces; and their embeddings.

A text is an array of tokens without marks. What the encoder reads has `START` before it and `END`
after it.
"""

import numpy as np
import tensorflow as tf
from minilm import END, READS, START


def marked(text):
    return np.concatenate([[START], text, [END]]).astype("int32")


def pieces(text, length=READS):
    """The text cut into parts, each of them marked, and then of at most `length` tokens."""
    room = length - 2
    return [marked(text[i : i + room]) for i in range(0, len(text), room)]


def first_piece(text):
    return pieces(text)[0]


def one_after_the_other(text):
    """All pieces as one array: the marks are as frequent as in short texts."""
    return np.concatenate(pieces(text))


def begin_again(steps, count):
    return steps % count


def hold_the_last(steps, count):
    return np.minimum(steps, count - 1)


def go_slowly(steps, count):
    """Each position for four tokens."""
    return steps // 4 % count


LAYOUTS = {
    "pieces in a row, positions begin again": (one_after_the_other, begin_again),
    "one text, positions begin again": (marked, begin_again),
    "one text, each position four times": (marked, go_slowly),
    "one text, last position held": (marked, hold_the_last),
}
"""How a document that is longer than MiniLM reads is written, and which positions it gets."""


class Encoder:
    """A sentence encoder, compiled once for any number of texts of any length.

    Args:
        model: as `minilm.build` makes it, or a conversion of that.
    """

    def __init__(self, model):
        @tf.function(input_signature=[tf.TensorSpec((None, None), tf.int32)])
        def run(tokens):
            return model(tokens, training=False)["embedding"]

        self.model, self.run = model, run

    def embed(self, texts, at_once=4096):
        """Embeddings `(n, m)` of n marked texts, about `at_once` tokens in a batch."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found = {}
        while order:
            length = len(texts[order[-1]])
            batch = [order.pop() for _ in range(min(len(order), max(1, at_once // length)))]
            tokens = np.zeros((len(batch), length), "int32")
            for row, i in zip(tokens, batch, strict=True):
                row[: len(texts[i])] = texts[i]
            found |= zip(batch, self.run(tokens).numpy(), strict=True)
        return np.stack([found[i] for i in range(len(texts))])

    def embed_pieces(self, texts):
        """The means of the embeddings of the pieces of n texts, by their tokens, `(n, m)`."""
        cut = [pieces(text) for text in texts]
        each = self.embed([piece for parts in cut for piece in parts])
        owners = np.repeat(np.arange(len(cut)), [len(parts) for parts in cut])
        tokens = np.array([len(piece) for parts in cut for piece in parts])
        sums = np.zeros((len(cut), each.shape[1]))
        np.add.at(sums, owners, tokens[:, None] * each)
        return sums / np.linalg.norm(sums, axis=1, keepdims=True)
