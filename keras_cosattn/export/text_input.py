"""Text as the input of a model of ids, by a tokenizer that is a part of the file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from keras_cosattn.export.needed_modules import import_needed
from keras_cosattn.export.sample_inputs import Sizes, TensorSize

EXAMPLES = ("", "a", "Ça va, déjà vu ?", "long sequences on small devices", "長い文 🙂")
"""Texts to check with: none, short, accents, of different lengths so that all but one are padded.
"""

TOO_MANY_IDS = "The tokenizer gives more ids than the model takes."


class TextInput:
    """A tokenizer in front of a model. Its ids are padded and checked.

    Args:
        tokenizer: Function from strings `(b,)` to integers `(b, t)`, padded with 0, or ragged.
            Optional attributes: `vocabulary_size`, of which the model must take every id, and
            `needs`, the modules to import before a file with its ops can be loaded.
        sizes: The name of each input of the model and its size.

    Attributes:
        sizes: The name and the size of the text.
        needs: The modules to import before a file is loaded.
        examples: Texts and their ids, both as named inputs.

    Raises:
        ValueError: If the model does not take ids, or the tokenizer does not give any.
    """

    def __init__(self, tokenizer: Callable[[Any], Any], sizes: Sizes) -> None:
        self.sizes: Sizes = {"text": TensorSize((None,), "string")}
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

    def ids(self, text: Any) -> dict[str, Any]:
        """The model's named input `(b, t)`, t at least 1, for strings `(b,)`."""
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
        tf.debugging.assert_less_equal(found, steps, TOO_MANY_IDS)
        ids = tf.pad(ids, [[0, 0], [0, steps - found]])
        return {self._name: tf.cast(tf.ensure_shape(ids, (None, self._steps)), self._dtype)}

    def check_range(
        self, call: Callable[[Mapping[str, Any]], Any], inputs: Mapping[str, np.ndarray]
    ) -> None:
        """Raise ValueError if the model does not take the largest id.

        Args:
            call: The model, a function of named inputs.
            inputs: Inputs that the model takes.
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

    def _check_ops(self) -> None:
        """Raise ValueError if a file with the tokenizer could not be loaded elsewhere."""
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

    def _encode(self, texts: tuple[str, ...]) -> dict[str, np.ndarray]:
        import tensorflow as tf

        try:
            found = self.ids(tf.constant(texts))
        except tf.errors.InvalidArgumentError as error:
            if TOO_MANY_IDS not in error.message:
                raise ValueError(
                    f"The tokenizer fails for one of {list(texts)}: {error.message}"
                ) from error
            raise ValueError(
                f"The model takes {self._steps} ids, and the tokenizer gives more for one of "
                f"{list(texts)}. Let it cut texts off, such as by `max_length={self._steps}`."
            ) from error
        return {name: ids.numpy() for name, ids in found.items()}


def tokenizer_in_file(
    path: str | os.PathLike[str], about: Mapping[str, Any]
) -> Callable[[Any], Any] | None:
    """Return the tokenizer in a SavedModel, or `None` if it has none.

    Args:
        path: str or path. The SavedModel.
        about: Its description.

    Raises:
        ImportError: If a module that the file needs is not installed.
    """
    import tensorflow as tf

    if "tokenize" not in about["signatures"]:
        return None
    for module in about["needs"]:
        import_needed(module)
    loaded = tf.saved_model.load(str(path))

    def tokenizer(text: Any) -> Any:
        (ids,) = loaded.signatures["tokenize"](text=text).values()
        return ids

    tokenizer.needs = about["needs"]  # type: ignore[attr-defined]
    return tokenizer
