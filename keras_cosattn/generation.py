"""Text or other tokens, one after another, from a stream."""

from __future__ import annotations

import functools
import numbers
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from keras import ops

from keras_cosattn import probe
from keras_cosattn.streaming import Streaming

INT32 = np.iinfo("int32")

Tensor = Any
Sampler = Callable[[Tensor], Tensor]


def generate(
    stream: Streaming,
    prompt: Any,
    max_new_tokens: int,
    *,
    sampler: Sampler | Any = None,
    prompt_mask: Any = None,
    stop_token_ids: Collection[int] = (),
    pad_token_id: int = 0,
) -> np.ndarray:
    """Continue prompts token by token, with the state of a stream in place of a cache.

    The prompt is read in one call, then each token in a call of its own. So a token takes the time
    of one step of the stream: O(1) in the number of tokens before, with constant-size states.

    Args:
        stream: The stream of a causal language model, from token ids `(b, t)`, or from
            `{"token_ids": ..., "padding_mask": ...}` as KerasHub's models, to logits `(b, t, V)`.
        prompt: Integers `(b, t)`, t at least 1.
        max_new_tokens: int, the number of tokens that each example gets.
        sampler: Function from the logits `(b, V)` of the next token to its ids `(b,)`, or one of
            `keras_hub.samplers` that chooses one token at a time. Defaults to `None`, the token
            with the largest logit.
        prompt_mask: Boolean `(b, t)`, `False` where a prompt is padded, on any side. Defaults to
            `None`, no padding.
        stop_token_ids: Integers. An example ends with the first of them. Defaults to `()`.
        pad_token_id: int, the token after the end of an example. Defaults to `0`.

    Returns:
        NumPy integers `(b, n)`, the new tokens. n is `max_new_tokens`, or less if all examples
        ended before.

    Raises:
        ValueError: If an argument has the wrong type or shape, a prompt has no tokens, the
            sampler returns something else than one token for each example, or the stream is full.

    Example:
    >>> ids = keras.Input((None,), dtype="int32")
    >>> x = keras.layers.Embedding(10, 4)(ids)
    >>> x = keras_cosattn.CausalConv1D(8, 3)(x)
    >>> model = keras.Model(ids, keras.layers.Dense(10)(x))
    >>> stream = keras_cosattn.Streaming(model)
    >>> keras_cosattn.generate(stream, [[1, 2, 3]], max_new_tokens=5).shape
    (1, 5)
    """
    _check_numbers(max_new_tokens, stop_token_ids)
    tokens, mask = _checked_prompt(prompt, prompt_mask)
    choose = _chooser(sampler)
    logits, state = stream(
        probe.token_inputs(stream.model, tokens, mask),
        stream.initial_state(len(tokens)),
        None if mask.all() else mask,
    )
    last = mask.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=1)  # of the valid steps
    logits = ops.take_along_axis(logits, last[:, None, None], axis=1)[:, 0]
    found: list[np.ndarray] = []
    ended = np.zeros(len(tokens), "bool")
    while len(found) < max_new_tokens and not ended.all():
        chosen = np.where(ended, pad_token_id, _checked_choice(choose(logits), tokens))
        found.append(chosen)
        ended |= np.isin(chosen, list(stop_token_ids))
        if len(found) < max_new_tokens and not ended.all():
            step = chosen[:, None]
            going_on = ~ended[:, None]  # only their steps count
            x = probe.token_inputs(stream.model, step, going_on)
            logits, state = stream(x, state, going_on if ended.any() else None)
            logits = logits[:, 0]
    return np.stack(found, axis=1) if found else tokens[:, :0]


def _check_numbers(max_new_tokens, stop_token_ids):
    if not isinstance(max_new_tokens, numbers.Integral) or max_new_tokens < 0:
        raise ValueError(
            "`max_new_tokens` must be an integer of at least 0. "
            f"Received: max_new_tokens={max_new_tokens!r}"
        )
    integers = isinstance(stop_token_ids, Collection) and all(
        isinstance(token, numbers.Integral) for token in stop_token_ids
    )
    if not integers:
        raise ValueError(
            "`stop_token_ids` must be integers in a list or another collection. "
            f"Received: stop_token_ids={stop_token_ids!r}"
        )


def _checked_prompt(prompt, prompt_mask):
    """Return the prompt and its mask as arrays. Raise ValueError unless they fit together."""
    tokens = np.asarray(ops.convert_to_numpy(prompt))
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(
            "`prompt` must be integers of shape (batch, steps). Received: shape "
            f"{tokens.shape}, dtype {tokens.dtype}"
        )
    if tokens.max(initial=0) > INT32.max or tokens.min(initial=0) < INT32.min:
        raise ValueError(
            f"`prompt` must have tokens within int32. Received: {tokens.min()} to {tokens.max()}"
        )
    mask = np.ones(tokens.shape, "bool")
    if prompt_mask is not None:
        mask = np.asarray(ops.convert_to_numpy(prompt_mask)).astype("bool")
    if mask.shape != tokens.shape:
        raise ValueError(
            f"`prompt_mask` must have the shape of the prompt, {tokens.shape}. "
            f"Received: shape {mask.shape}"
        )
    empty = np.flatnonzero(~mask.any(axis=1)).tolist()
    if empty:
        raise ValueError(
            f"Each prompt needs at least one token, such as a start token. Those of the examples "
            f"{empty} have none. Received: shape {tokens.shape}"
        )
    return tokens.astype("int32"), mask


def _checked_choice(chosen, tokens):
    """Return what a sampler chose as an array. Raise ValueError unless it is a token for each."""
    found = ops.convert_to_numpy(chosen)
    if found.shape != (len(tokens),) or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(
            f"`sampler` must return integers of shape ({len(tokens)},), the next token of each "
            f"example. Received: shape {found.shape}, dtype {found.dtype}"
        )
    return found.astype(tokens.dtype)


def _chooser(sampler: Any) -> Sampler:
    if sampler is None:
        return lambda logits: ops.argmax(logits, axis=-1)
    if hasattr(sampler, "get_next_token"):
        return functools.partial(_of_keras_hub, sampler)
    if not callable(sampler):
        raise ValueError(
            "`sampler` must be a function from logits to tokens, or an object of "
            f"`keras_hub.samplers`. Received: sampler={sampler!r}"
        )
    return sampler


def _of_keras_hub(sampler, logits):
    try:
        return sampler.get_next_token(sampler.compute_probabilities(logits))
    except NotImplementedError as error:
        raise ValueError(
            "`sampler` must choose one token at a time, such as TopKSampler. "
            f"Received: sampler={sampler!r}"
        ) from error
