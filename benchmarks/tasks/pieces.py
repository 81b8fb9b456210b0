"""WordPiece pieces of the reviews: the vocabulary is learned from those to train on, and kept."""

import numpy as np
from measure.data_cache import kept_arrays, kept_text

from keras_cosattn.export.tokenizers import WordPieceTokenizer
from tasks import reviews

VOCABULARY = 4096
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PADDING, MASK = SPECIAL.index("[PAD]"), SPECIAL.index("[MASK]")
LEARNED_FROM = 5_000
"""Reviews from which the vocabulary is learned."""
AT_ONCE = 500
VALIDATION, TEST = 320, 1_024
"""Held-out texts of each source. Their number is that of whole batches."""


def vocabulary():
    """The pieces, a list of at most `VOCABULARY`."""

    def learn():
        import tensorflow as tf
        from tensorflow_text.tools.wordpiece_vocab import bert_vocab_from_dataset

        texts = reviews.split("imdb", VALIDATION, TEST)[0][0][:LEARNED_FROM]
        found = bert_vocab_from_dataset.bert_vocab_from_dataset(
            tf.data.Dataset.from_tensor_slices(texts).batch(AT_ONCE),
            VOCABULARY,
            SPECIAL,
            {"lower_case": True},
        )
        return "\n".join(found[:VOCABULARY])

    return kept_text(f"wordpieces_{VOCABULARY}_{LEARNED_FROM}.txt", learn).split("\n")


def read(source):
    """Pieces and labels to train on, to validate with and to test with.

    Returns:
        Three tuples: pieces of all texts one after the other, the number of each text's pieces, and
        its label.
    """

    def make():
        tokenizer, found = WordPieceTokenizer(vocabulary()), {}
        for i, (texts, labels) in enumerate(reviews.split(source, VALIDATION, TEST)):
            parts = [tokenizer(texts[n : n + AT_ONCE]) for n in range(0, len(texts), AT_ONCE)]
            found[f"pieces_{i}"] = np.concatenate([x.flat_values for x in parts]).astype("uint16")
            found[f"lengths_{i}"] = np.concatenate([x.row_lengths() for x in parts]).astype("int32")
            found[f"labels_{i}"] = labels.astype("int32")
        return found

    found = kept_arrays(f"wordpieces_{source}_{VOCABULARY}_{LEARNED_FROM}", make)
    names = "pieces", "lengths", "labels"
    return [tuple(found[f"{name}_{i}"] for name in names) for i in range(3)]


def padded(pieces, lengths, length):
    """The first `length` pieces of each text, `(texts, length)`, then padding."""
    tokens, start = np.full((len(lengths), length), PADDING, "int32"), 0
    for row, n in zip(tokens, lengths, strict=True):
        row[: min(n, length)] = pieces[start : start + min(n, length)]
        start += n
    return tokens
