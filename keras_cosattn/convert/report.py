"""What a conversion keeps, and what it saves."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_cosattn.attention import SoftmaxAttention
from keras_cosattn.convert.outputs import perplexity
from keras_cosattn.convert.passkey import Passkey, passkey_recall
from keras_cosattn.convert.replace import generates, replace_attention
from keras_cosattn.convert.transfer import attention_errors
from keras_cosattn.streaming import Streaming

Nest = Any  # a tensor, or lists, tuples and dicts of tensors
Pair = tuple[float | None, float | None]
WARM_UP, TURNS = 2, 15  # calls that are not timed, and that are


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """A model and its conversion, beside each other. Pairs are of the model and the conversion.

    `print` shows it as a table.

    Attributes:
        errors: Path of a new layer -> its error, as `attention_errors` returns it.
        errors_before: The same before the training, if it was given; else empty.
        score_name: `"perplexity"` or `"score"`.
        scores: A pair, or `None` if nothing was given to compute it.
        passkey: Number of tokens -> a pair, the shares of prompts that are answered.
        state_bytes: Number of steps -> a pair, the bytes that one example's stream keeps. That of
            the model are keys and values, whether or not it can read so many steps. `None` where
            the other stream ends before.
        steps_per_second: Number of steps that the model's cache holds -> a pair, the steps that a
            stream of one example reads in a second, one in a call.
        no_stream: Why there are no states and times; `None` if there are.
    """

    errors: dict[str, float]
    errors_before: dict[str, float]
    score_name: str
    scores: tuple[float, float] | None
    passkey: dict[int, Pair]
    state_bytes: dict[int, Pair]
    steps_per_second: dict[int, Pair]
    no_stream: str | None

    @property
    def retained(self) -> float | None:
        """The share of the model's score that the conversion has; of 1 / perplexity."""
        if self.scores is None:
            return None
        model, converted = self.scores
        return model / converted if self.score_name == "perplexity" else converted / model

    def __str__(self) -> str:
        width = max(map(len, self.errors), default=0) + 2
        lines = [f"{'error of a layer':{width}}" + f"{'before':>9}" * bool(self.errors_before)]
        lines[0] += f"{'now':>9}"
        for path, error in self.errors.items():
            before = f"{self.errors_before[path]:9.4f}" if self.errors_before else ""
            lines.append(f"{path:{width}}{before}{error:9.4f}")
        lines.append(f"{'':{width}}{'model':>16}{'converted':>16}")
        rows: list[tuple[str, Pair, str]] = []
        if self.scores is not None:
            rows.append((self.score_name, self.scores, ".4g"))
        rows += [(f"passkey, {n:,} tokens", pair, ".0%") for n, pair in self.passkey.items()]
        rows += [(f"state at {n:,} steps", pair, ",") for n, pair in self.state_bytes.items()]
        rows += [(f"steps/s, cache of {n:,}", x, ",.1f") for n, x in self.steps_per_second.items()]
        for name, pair, form in rows:
            texts = ("ends before" if x is None else f"{x:{form}}" for x in pair)
            lines.append(f"{name:{width}}" + "".join(f"{text:>16}" for text in texts))
        if self.retained is not None:
            lines.append(f"share retained: {self.retained:.1%}")
        if self.no_stream:
            lines.append(f"no stream: {self.no_stream}")
        return "\n".join(lines)


def report(
    model: keras.Model,
    converted: keras.Model,
    x: Nest,
    y: Any = None,
    *,
    mask: Any = None,
    score: Callable[[keras.Model], float] | None = None,
    errors_before: Mapping[str, float] | None = None,
    passkey: Passkey | None = None,
    passkey_lengths: Sequence[int] = (256, 1024),
    state_steps: Sequence[int] = (1024, 16_384, 1_048_576),
    cache_steps: Sequence[int] = (1024,),
    batch_size: int = 8,
) -> ConversionReport:
    """Compare a model and its conversion: quality, state and speed.

    The speed is the median of single steps of both streams, in turns. If the conversion cannot
    stream, as an encoder, the report tells the reason in place of state and speed.

    Args:
        model: The model that was converted.
        converted: What `replace_attention` returned for it, trained or not.
        x: Inputs of both. The errors of the layers are computed on the first `batch_size` examples.
        y: Integers `(b, t)`, the token that each step of a language model should predict, for the
            perplexity on `x`. Defaults to `None`, no perplexity.
        mask: Boolean `(b, t)`, `False` where `y` does not count. Defaults to `None`.
        score: Function from a model to a number, in place of the perplexity. Larger is better.
            Defaults to `None`.
        errors_before: What `attention_errors` returned before the training. Defaults to `None`.
        passkey: The task, for language models. Defaults to `None`, no such task.
        passkey_lengths: Integers, the lengths of its prompts. Both models must be able to read
            them. Defaults to `(256, 1024)`.
        state_steps: Integers, the numbers of steps at which the states are compared.
            Defaults to `(1024, 16384, 1048576)`.
        cache_steps: Integers, the numbers of steps that the caches of the model hold when the
            speeds are compared. Defaults to `(1024,)`.
        batch_size: int, of the perplexity. Defaults to `8`.

    Returns:
        A `ConversionReport`.

    Raises:
        ValueError: If both `score` and `y` are given, `converted` is no conversion of `model`, or
            the other arguments do not fit to them.
    """
    if score is not None and y is not None:
        raise ValueError("Give `score` or `y`, not both. `y` is for the perplexity.")
    if not cache_steps or min(cache_steps) < WARM_UP + TURNS:
        raise ValueError(
            f"`cache_steps` needs numbers of at least {WARM_UP + TURNS} steps, which are read to "
            f"measure the speed. Received: cache_steps={cache_steps!r}"
        )
    some = keras.tree.map_structure(lambda a: a[:batch_size], x)
    errors = attention_errors(model, converted, some)
    if errors_before is not None and set(errors_before) != set(errors):
        raise ValueError(
            "`errors_before` must be what `attention_errors` returned for these models. The new "
            f"layers are {list(errors)}. Received: {list(errors_before)}"
        )
    if y is not None:
        score = functools.partial(perplexity, x=x, y=y, mask=mask, batch_size=batch_size)
    recalled: dict[int, Pair] = {}
    if passkey is not None:
        for n in passkey_lengths:
            recalled[n] = passkey_recall(model, passkey, n), passkey_recall(converted, passkey, n)
    states: dict[int, Pair] = {}
    speeds: dict[int, Pair] = {}
    no_stream = None
    try:
        stream = Streaming(_streamed(converted), sample=_read(converted, some))
    except ValueError as error:
        no_stream = str(error)
    else:
        for capacity in cache_steps:
            cached = _cached(model, capacity, some)
            speeds[capacity] = _speeds(cached, stream, some)
        states = {n: (_cache_bytes(cached, capacity, n), _bytes_at(stream, n)) for n in state_steps}
    return ConversionReport(
        errors=errors,
        errors_before=dict(errors_before or {}),
        score_name="score" if y is None else "perplexity",
        scores=None if score is None else (float(score(model)), float(score(converted))),
        passkey=recalled,
        state_bytes=states,
        steps_per_second=speeds,
        no_stream=no_stream,
    )


def _streamed(model: Any) -> keras.Model:
    """The part of a language model of KerasHub that streams; other models as they are."""
    return model.backbone if generates(model) else model


def _read(model: keras.Model, x: Nest) -> Nest | None:
    """Inputs to check a stream with, for a model that does not say what it reads."""
    return None if isinstance(model, (keras.Sequential, keras.Function)) else x


def _cached(model: keras.Model, steps: int, x: Nest) -> Streaming:
    """The stream of a model with softmax attention, whose caches hold some steps."""
    copy = replace_attention(model, SoftmaxAttention(1, 1, max_length=steps))
    return Streaming(_streamed(copy), sample=_read(copy, x))


def _cache_bytes(cached: Streaming, capacity: int, steps: int) -> int:
    """The bytes of the state with caches of `steps` steps, in place of `capacity` steps."""
    tensors = map(ops.convert_to_numpy, keras.tree.flatten(cached.initial_state(1)))
    of_a_step = sum(x.nbytes // capacity for x in tensors if x.shape[1:2] == (capacity,))
    return cached.state_bytes + of_a_step * (steps - capacity)


def _bytes_at(stream: Streaming, steps: int) -> int | None:
    ends_before = stream.max_steps is not None and stream.max_steps < steps
    return None if ends_before else stream.state_bytes


def _speeds(model: Streaming, converted: Streaming, x: Nest) -> Pair:
    """The steps a second of both streams, one step of the first example in a call."""
    step = keras.tree.map_structure(lambda a: a[:1, :1], x)
    states = [stream.initial_state(1) for stream in (model, converted)]
    seconds: list[list[float]] = [[], []]
    for _ in range(WARM_UP + TURNS):
        for i, stream in enumerate((model, converted)):
            start = time.perf_counter()
            y, states[i] = stream(step, states[i])
            keras.tree.map_structure(ops.convert_to_numpy, y)
            seconds[i].append(time.perf_counter() - start)
    first, second = (1 / statistics.median(times[WARM_UP:]) for times in seconds)
    return first, second
