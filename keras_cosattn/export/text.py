"""Text in place of ids: tokenizers that go into a SavedModel with the model."""

import importlib
import os
import pathlib

import numpy as np

SIGNATURES = ("tokenize", "serve_text")
EXAMPLES = ("", "a", "Ça va, déjà vu ?", "long sequences on small devices", "長い文 🙂")
"""Texts to check with: none, short, accents, of different lengths so that all but one are padded.
"""


class ByteTokenizer:
    """The bytes of UTF-8: `id = byte + offset`, for every language, with no vocabulary.

    Args:
        offset: at least 1, for 0 is padding: `Embedding(tokenizer.vocabulary_size, width,
            mask_zero=True)`.
        max_length: bytes after which a text is cut off, inside a character if it comes so; None
            cuts nothing.

    Called with strings `(b,)` it returns int32 ids `(b, t)`, t of the longest, padded with 0.
    """

    def __init__(self, offset=1, max_length=None):
        if offset < 1:
            raise ValueError(f"`offset` must be at least 1, since 0 is padding. Received: {offset}")
        self.offset, self.max_length = offset, _checked_length(max_length)

    @property
    def vocabulary_size(self):
        """Ids, with that of padding."""
        return self.offset + 256

    def __call__(self, text):
        import tensorflow as tf

        lengths = tf.strings.length(text)
        if self.max_length is not None:
            lengths = tf.minimum(lengths, self.max_length)
        longest = tf.maximum(tf.reduce_max(lengths), 1)
        read = tf.cast(tf.io.decode_raw(text, tf.uint8, fixed_length=longest), tf.int32)
        return tf.where(tf.sequence_mask(lengths, longest), read + self.offset, 0)


class WordPieceTokenizer:
    """BERT's WordPiece: of each word the longest piece that is known, then that of the rest.

    Words end at white space and control characters; each mark and each Chinese character is one.
    A word that no known pieces make, or of more than 100 bytes, is `unknown`. It needs
    tensorflow-text, here and where the file is loaded.

    Args:
        vocabulary: the pieces, of which those inside a word begin with "##": a list, or a file
            with one a line. The first has id 0 and must be `padding`.
        lower_case: whether to take capitals and accents away first, as uncased BERT models.
        max_length: ids after which a text is cut off, with `start` and `end`; None cuts nothing.
        unknown: the piece for words that cannot be made of the others.
        start, end: pieces to put before and after each text, such as "[CLS]" and "[SEP]"; None
            puts nothing.
        padding: the piece for padding.

    Called with strings `(b,)` it returns int32 ids `(b, t)`, ragged. Song et al., 2021, "Fast
    WordPiece tokenization".
    """

    needs = ("tensorflow_text",)

    def __init__(
        self, vocabulary, lower_case=True, max_length=None, unknown="[UNK]", start=None, end=None,
        padding="[PAD]",
    ):  # fmt: skip
        tensorflow_text = _needed("tensorflow_text")
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

    def __call__(self, text):
        import tensorflow as tf

        ids = self._pieces.tokenize(text)
        if self.max_length is not None:
            ids = ids[:, : self.max_length - len(self._before) - len(self._after)]
        ends = (
            tf.tile(tf.constant([piece], tf.int32, [1, len(piece)]), [tf.shape(text)[0], 1])
            for piece in (self._before, self._after)
        )
        return tf.concat([next(ends), ids, next(ends)], axis=1)


class Text:
    """A tokenizer before a model: what it gives is padded and checked.

    Args:
        tokenizer: a function from strings `(b,)` to integers `(b, t)`, padded with 0, or ragged.
            Optional attributes: `vocabulary_size`, of which the model must take every id, and
            `needs`, the modules to import before a file with its ops can be loaded.
        sizes: input name -> (shape, dtype) of the model.

    Attributes: `spec`, the input of both signatures; `needs`; `examples`, texts and their ids, both
    as named inputs.

    Raises ValueError if the model does not take ids, or the tokenizer gives none.
    """

    spec = {"text": ((None,), "string")}  # noqa: RUF012  never changed

    def __init__(self, tokenizer, sizes):
        shapes = {name: (list(shape), dtype) for name, (shape, dtype) in sizes.items()}
        (self._name, ((*_, self._steps), self._dtype)), *others = sizes.items()
        if others or len(sizes[self._name][0]) != 2 or self._dtype not in ("int32", "int64"):
            raise ValueError(
                "With a `tokenizer` the model must have one input of ids, such as "
                f"keras.Input((None,), dtype='int32'). Received inputs: {shapes}"
            )
        self.tokenizer = tokenizer
        self.needs = list(getattr(tokenizer, "needs", ()))
        self._check_ops()
        self.examples = {"text": np.array(EXAMPLES)}, self._encode(EXAMPLES)

    def ids(self, text):
        """Strings `(b,)` -> the model's named input, `(b, t)` with t at least 1."""
        import tensorflow as tf

        ids = self.tokenizer(text)
        if isinstance(ids, tf.RaggedTensor) and ids.shape.rank == 2:
            ids = ids.to_tensor()
        if not tf.is_tensor(ids) or ids.shape.rank != 2 or not ids.dtype.is_integer:
            raise ValueError(
                "The tokenizer must give integers (b, t), padded with 0, or ragged: "
                f"`merge_dims(1, 2)` joins the pieces of words. Received: {ids}"
            )
        found = tf.shape(ids)[1]
        steps = self._steps or tf.maximum(found, 1)
        tf.debugging.assert_less_equal(
            found, steps, f"The model takes {self._steps} ids, and the tokenizer gives more."
        )
        ids = tf.pad(ids, [[0, 0], [0, steps - found]])
        return {self._name: tf.cast(tf.ensure_shape(ids, (None, self._steps)), self._dtype)}

    def check_range(self, call, inputs):
        """Raises ValueError if the model does not take the largest id.

        Args:
            call: the model, a function of named inputs.
            inputs: what it was called with before.
        """
        import tensorflow as tf

        size = getattr(self.tokenizer, "vocabulary_size", None)
        size = size() if callable(size) else size  # a method of Keras's own layers
        if size is None:
            return
        try:
            call({name: np.full_like(x, size - 1) for name, x in inputs.items()})
        except tf.errors.InvalidArgumentError as error:
            raise ValueError(
                f"The tokenizer gives ids from 0 to {size - 1}, and the model does not take all of "
                f"them; give its Embedding an `input_dim` of {size}. {error}"
            ) from error

    def _check_ops(self):
        """Raises ValueError if a file with the tokenizer could not be loaded elsewhere."""
        import tensorflow as tf

        traced = tf.function(self.ids).get_concrete_function(tf.TensorSpec((None,), tf.string))
        graph = traced.graph.as_graph_def()
        nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
        ops = {node.op for node in nodes}
        if python := ops & {"PyFunc", "PyFuncStateless", "EagerPyFunc"}:
            raise ValueError(
                f"The tokenizer runs Python ({', '.join(python)}), which no file can hold. Write "
                "it with TensorFlow's ops, or use ByteTokenizer or WordPieceTokenizer."
            )
        foreign = sorted(op for op in ops if not hasattr(tf.raw_ops, op))
        if foreign and not self.needs:
            raise ValueError(
                f"The tokenizer has ops that TensorFlow lacks: {foreign}. Give it an attribute "
                "`needs` with the modules to import before loading, such as ['tensorflow_text']."
            )

    def _encode(self, texts):
        import tensorflow as tf

        try:
            found = self.ids(tf.constant(texts))
        except tf.errors.InvalidArgumentError as error:
            raise ValueError(
                f"The model takes {self._steps} ids, and the tokenizer gives more for one of "
                f"{list(texts)}. Let it cut texts off, such as by `max_length={self._steps}`."
            ) from error
        return {name: ids.numpy() for name, ids in found.items()}


def of_file(path, about):
    """The tokenizer in a SavedModel with this description, or None if there is none.

    Raises ImportError if a module is not installed that the file needs.
    """
    import tensorflow as tf

    if "tokenize" not in about["signatures"]:
        return None
    for module in about["needs"]:
        _needed(module)
    loaded = tf.saved_model.load(str(path))

    def tokenizer(text):
        (ids,) = loaded.signatures["tokenize"](text=text).values()
        return ids

    tokenizer.needs = about["needs"]
    return tokenizer


def _needed(module):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        hint = ": pip install 'keras-cosattn[text]'" if module == "tensorflow_text" else ""
        raise ImportError(f"The tokenizer needs the module {module}{hint}.") from error


def _read_pieces(vocabulary):
    if isinstance(vocabulary, str | os.PathLike):
        lines = pathlib.Path(vocabulary).read_text(encoding="utf-8").split("\n")
        return [line.removesuffix("\r") for line in lines[: -1 if not lines[-1] else None]]
    return list(vocabulary)


def _checked_length(max_length, more_than=0):
    if max_length is not None and max_length <= more_than:
        raise ValueError(
            f"`max_length` must be more than {more_than}, or None. Received: {max_length}"
        )
    return max_length
