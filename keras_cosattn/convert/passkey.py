"""Whether a language model finds a key that it read long ago."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from keras_cosattn import probe
from keras_cosattn.convert.outputs import read_outputs


@dataclasses.dataclass(frozen=True)
class Passkey:
    """The passkey task, in token ids: a long text, a key at a random place in it, and a question.

    A prompt is `filler ... before key after ... filler question`. The model should continue it
    with the key.

    Args:
        filler: Integers, the text that is repeated as often as needed.
        before: Integers, what announces the key, such as "The pass key is".
        question: Integers, the end of the prompt, such as "What is the pass key? The pass key is".
        keys: Integers `(n, k)`. Each prompt has one of them, drawn at random.
        after: Integers, what follows the key in the text. Defaults to `()`.

    Raises:
        ValueError: If `filler` is empty, or `keys` is no array of integers `(n, k)`.

    Reference:

    - [Mohtashami and Jaggi, 2023](https://arxiv.org/abs/2305.16300), section 4.2

    Example:
    >>> from keras_cosattn.convert import Passkey
    >>> task = Passkey(filler=[1, 2], before=[3], question=[4, 3], keys=[[7, 8], [8, 9]])
    >>> task.prompts(length=10, count=2, seed=0).shape
    (2, 10)
    """

    filler: Sequence[int]
    before: Sequence[int]
    question: Sequence[int]
    keys: Sequence[Sequence[int]] | np.ndarray
    after: Sequence[int] = ()

    def __post_init__(self) -> None:
        keys = np.asarray(self.keys)
        if keys.ndim != 2 or not keys.size or not np.issubdtype(keys.dtype, np.integer):
            raise ValueError(
                "`keys` must be integers of shape (keys, tokens of a key). Received: shape "
                f"{keys.shape}, dtype {keys.dtype}"
            )
        if not len(self.filler):
            raise ValueError("`filler` must have at least one token. Received: none")

    @property
    def key_length(self) -> int:
        """The number of tokens of a key."""
        return np.asarray(self.keys).shape[1]

    def prompts(self, length: int, count: int, seed: int = 0) -> np.ndarray:
        """Return prompts with their answers, integers `(count, length)`. The answer ends each.

        Args:
            length: int, the number of tokens, the answer included.
            count: int, the number of prompts.
            seed: int, which keys and places are drawn.

        Raises:
            ValueError: If `length` has no room for the key, the question and the answer, or `count`
                is 0.
        """
        rng, keys = np.random.default_rng(seed), np.asarray(self.keys)
        around = [*self.before, *self.after, *self.question]
        if count < 1:
            raise ValueError(f"`count` must be at least 1. Received: count={count}")
        filler = length - len(around) - 2 * keys.shape[1]
        if filler < 0:
            raise ValueError(
                f"A prompt needs at least {length - filler} tokens: for the key twice, what is "
                f"around it and the question. Received: length={length}"
            )
        text = np.resize(np.asarray(self.filler, "int32"), filler)
        prompts = []
        for _ in range(count):
            key, place = keys[rng.integers(len(keys))], rng.integers(filler + 1)
            told = [*self.before, *key, *self.after]
            prompts.append([*text[:place], *told, *text[place:], *self.question, *key])
        return np.asarray(prompts, "int32")


def passkey_recall(
    model: keras.Model, passkey: Passkey, length: int, *, count: int = 8, seed: int = 0
) -> float:
    """Return the share of prompts that a model continues with their key, token for token.

    The model reads each prompt and its answer in one call, and each token of the answer must be its
    first choice. So the result is that of generation without sampling, at the cost of one forward
    pass for each prompt.

    Args:
        model: A causal language model, from token ids `(b, t)` or as KerasHub's, to logits
            `(b, t, V)`.
        passkey: The task.
        length: int, the number of tokens of a prompt with its answer.
        count: int, the number of prompts. Defaults to `8`.
        seed: int, which keys and places are drawn. Defaults to `0`.
    """
    tokens, size = passkey.prompts(length, count, seed), passkey.key_length
    given = probe.token_inputs(model, tokens, np.ones_like(tokens, "bool"))

    def choices(logits):
        return ops.argmax(logits[:, -size - 1 : -1], axis=-1)

    found = read_outputs(model, choices, given, batch_size=1)
    return float((found == tokens[:, -size:]).all(axis=1).mean())
