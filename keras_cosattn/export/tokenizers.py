"""Tokenizers that become a part of a SavedModel."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from keras_cosattn.export.needed_modules import import_needed


class ByteTokenizer:
    """The bytes of UTF-8: `id = byte + offset`, for every language, without a vocabulary.

    Args:
        offset: int. At least 1, since 0 is padding. Defaults to `1`.
        max_length: int. The number of bytes after which a text is cut, maybe inside a character.
            `None` cuts nothing. Defaults to `None`.

    Call arguments:
        text: Strings of shape `(b,)`.

    Returns:
        int32 ids of shape `(b, t)`, where t is the length of the longest text, padded with 0. An
        `Embedding(tokenizer.vocabulary_size, width, mask_zero=True)` reads them.

    Example:
    >>> ByteTokenizer()(["ab", "c"]).numpy().tolist()
    [[98, 99], [100, 0]]
    """

    def __init__(self, offset: int = 1, max_length: int | None = None) -> None:
        if offset < 1:
            raise ValueError(f"`offset` must be at least 1, since 0 is padding. Received: {offset}")
        self.offset, self.max_length = offset, _checked_length(max_length)

    @property
    def vocabulary_size(self) -> int:
        """The number of ids, with that of padding."""
        return self.offset + 256

    def __call__(self, text: Any) -> Any:
        import tensorflow as tf

        lengths = tf.strings.length(text)
        if self.max_length is not None:
            lengths = tf.minimum(lengths, self.max_length)
        longest = tf.maximum(tf.reduce_max(lengths), 1)
        read = tf.cast(tf.io.decode_raw(text, tf.uint8, fixed_length=longest), tf.int32)
        return tf.where(tf.sequence_mask(lengths, longest), read + self.offset, 0)


class WordPieceTokenizer:
    """BERT's WordPiece: the longest known piece of each word, then the longest piece of the rest.

    Words end at white space and control characters; each punctuation mark and each Chinese
    character is a word. A word that no known pieces make, or of more than 100 bytes, is `unknown`.
    It needs tensorflow-text, here and where the file is loaded.

    Args:
        vocabulary: List of the pieces, or path of a file with one a line. Pieces inside a word
            begin with "##". The first piece has id 0 and must be `padding`.
        lower_case: bool. Whether to remove capitals and accents, as uncased BERT models do.
            Defaults to `True`.
        max_length: int. The number of ids after which a text is cut, with those of `start` and
            `end`. `None` cuts nothing. Defaults to `None`.
        unknown: str. The piece for words that the other pieces do not make.
        start: str. The piece to put before each text, such as "[CLS]". Defaults to `None`.
        end: str. The piece to put after each text, such as "[SEP]". Defaults to `None`.
        padding: str. The piece for padding.

    Call arguments:
        text: Strings of shape `(b,)`.

    Returns:
        int32 ids of shape `(b, t)`, ragged.

    Raises:
        ImportError: If tensorflow-text is not installed.
        ValueError: If the vocabulary lacks a special piece, or holds a piece twice.

    Example (it needs tensorflow-text):
    >>> pieces = ["[PAD]", "[UNK]", "great", "##est"]
    >>> WordPieceTokenizer(pieces)(["greatest"]).to_list()  # doctest: +SKIP
    [[2, 3]]

    Reference:
        - [Fast WordPiece tokenization](https://arxiv.org/abs/2012.15524)
    """

    needs = ("tensorflow_text",)

    def __init__(
        self,
        vocabulary: Sequence[str] | str | os.PathLike[str],
        lower_case: bool = True,
        max_length: int | None = None,
        unknown: str = "[UNK]",
        start: str | None = None,
        end: str | None = None,
        padding: str = "[PAD]",
    ) -> None:
        tensorflow_text: Any = import_needed("tensorflow_text")
        import tensorflow as tf

        pieces = _read_pieces(vocabulary)
        self.vocabulary_size = len(pieces)
        around = [piece for piece in (start, end) if piece is not None]
        missing = [piece for piece in (padding, unknown, *around) if piece not in pieces]
        if missing or pieces[0] != padding or len(set(pieces)) != len(pieces):
            raise ValueError(
                f"`vocabulary` must hold {[padding, unknown, *around]}, the first of them first "
                f"since 0 is padding, and no piece twice. Received: {len(pieces)} pieces, "
                f"{len(set(pieces))} of them different, first {pieces[:1]}, without {missing}"
            )
        self.max_length = _checked_length(max_length, more_than=len(around))
        self._before = [pieces.index(start)] if start is not None else []
        self._after = [pieces.index(end)] if end is not None else []
        self._pieces = tensorflow_text.FastBertTokenizer(
            pieces,
            token_out_type=tf.int32,
            unknown_token=unknown,
            lower_case_nfd_strip_accents=lower_case,
        )

    def __call__(self, text: Any) -> Any:
        import tensorflow as tf

        ids = self._pieces.tokenize(text)
        if self.max_length is not None:
            ids = ids[:, : self.max_length - len(self._before) - len(self._after)]
        ends = (
            tf.tile(tf.constant([piece], tf.int32, [1, len(piece)]), [tf.shape(text)[0], 1])
            for piece in (self._before, self._after)
        )
        return tf.concat([next(ends), ids, next(ends)], axis=1)


def _read_pieces(vocabulary: Sequence[str] | str | os.PathLike[str]) -> list[str]:
    if isinstance(vocabulary, str | os.PathLike):
        lines = pathlib.Path(vocabulary).read_text(encoding="utf-8").split("\n")
        return [line.removesuffix("\r") for line in lines[: -1 if not lines[-1] else None]]
    return list(vocabulary)


def _checked_length(max_length: int | None, more_than: int = 0) -> int | None:
    if max_length is not None and max_length <= more_than:
        raise ValueError(
            f"`max_length` must be more than {more_than}, or None. Received: {max_length}"
        )
    return max_length
