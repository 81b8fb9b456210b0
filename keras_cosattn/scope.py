"""The stream that is open while a model is called, and the observer of attention weights.

A layer with a state asks `current()`. Without a stream it computes the whole sequence. In a
stream it reads its state, computes the next steps and writes its new state. The layer itself
keeps nothing, so one model serves training, many streams and export.
"""

from __future__ import annotations

import contextlib
import contextvars
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar

import keras
from keras import ops

Tensor = Any
S = TypeVar("S", bound="Stream | None")
Observer = Callable[[keras.layers.Layer, Tensor], None]

_stream: contextvars.ContextVar[Stream | None] = contextvars.ContextVar(
    "keras_cosattn_stream", default=None
)
_observer: contextvars.ContextVar[Observer | None] = contextvars.ContextVar(
    "keras_cosattn_observer", default=None
)


class Stream:
    """The state before one call of a model, and the state after it.

    A state is a dict of tensors whose first axis is the batch. Every state starts as zeros. The
    name of a tensor consists of the class of its layer, the rank of the call among the calls of
    that class, and a name that the layer chooses, for example `"linear_attention_0_sums"`. So the
    same architecture always has the same names.

    Args:
        state: dict of tensors, the state before the call. `None` is zeros.
        mask: Boolean tensor `(b, t)`, `False` where an example has no step. `None` is all `True`.
        means: bool. Whether layers keep means in place of sums that grow without bound. Means
            cancel in the outputs, and stay in the range of float16. Defaults to `False`.
        constants: `"write"`, `"read"` or `None`. What an attention layer does with values that are
            the same at every step, such as an encoder's outputs: it writes their keys and values
            to the state, or reads them from there. `None` means that there are no such values.

    Attributes:
        next_state: dict of tensors, the state after the call.
        limits: dict of the name of a state tensor that counts steps, to the largest number of
            steps that its layer can hold.
        constant_slots: set of the slots of layers whose state is constant.
    """

    def __init__(
        self,
        state: Mapping[str, Tensor] | None = None,
        mask: Tensor | None = None,
        means: bool = False,
        constants: Literal["write", "read"] | None = None,
    ) -> None:
        self.state, self.mask, self.means, self.constants = state, mask, means, constants
        self.constant_slots: set[str] = set()
        self.next_state: dict[str, Tensor] = {}
        self.limits: dict[str, int] = {}
        self._calls: dict[str, int] = {}
        self._averaged: set[str] = set()
        self._dtypes: dict[str, str] = {}

    def read(
        self,
        layer: keras.layers.Layer,
        batch: int | Tensor,
        limit: int | None = None,
        averages: bool = False,
        **spec: tuple[tuple[int, ...], str],
    ) -> tuple[str, dict[str, Tensor]]:
        """Return the layer's slot, for `write`, and its state before the call.

        Args:
            layer: the layer that reads.
            batch: int or scalar tensor, the batch size.
            limit: int, the largest number of steps that the layer can hold. The layer's state
                then has a tensor `position (b,)`, the number of steps so far. `None` is no limit.
            averages: bool. Whether the layer's `sums` are means in a stream of means. There their
                name is `means`, so that no state of sums is taken for one of means.
            **spec: for each tensor of the state its shape without the batch axis, and its dtype.
                A layer that computes in float64 has float64 in place of float32.

        Returns:
            A string and a dict with a tensor for each name in `spec`.

        Raises:
            ValueError: If the stream's state is not of this layer.
        """
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(layer).__name__).lower()
        rank = self._calls.get(kind, 0)
        self._calls[kind] = rank + 1
        slot = f"{kind}_{rank}"
        if averages and self.means:
            self._averaged.add(slot)
        if limit is not None:
            self.limits[f"{slot}_position"] = limit
        dtypes = {name: _wide(dtype, layer) for name, (_, dtype) in spec.items()}
        self._dtypes.update({self._key(slot, name): dtype for name, dtype in dtypes.items()})
        if self.state is None:
            return slot, {
                name: ops.zeros((batch, *shape), dtypes[name]) for name, (shape, _) in spec.items()
            }
        keys = {name: self._key(slot, name) for name in spec}
        missing = [key for key in keys.values() if key not in self.state]
        if missing:
            raise ValueError(
                f"{layer.path} ({type(layer).__name__}): the state must have {missing}. Start from "
                f"an initial state or cache of this layer. Received: state with {list(self.state)}"
            )
        return slot, {name: self.state[key] for name, key in keys.items()}

    def write(self, slot: str, state: Mapping[str, Tensor]) -> None:
        """Keep the layer's state after the call, in the dtypes that `read` was given.

        Args:
            slot: string, from `read`.
            state: dict with a tensor for each name that `read` was given.
        """
        for name, value in state.items():
            key = self._key(slot, name)
            self.next_state[key] = ops.cast(value, self._dtypes[key])

    def _key(self, slot, name):
        return f"{slot}_{'means' if slot in self._averaged and name == 'sums' else name}"


def _wide(dtype: str, layer: keras.layers.Layer) -> str:
    return "float64" if dtype == "float32" and layer.compute_dtype == "float64" else dtype


def current() -> Stream | None:
    """Return the open stream, or `None`."""
    return _stream.get()


@contextlib.contextmanager
def opened(stream: S) -> Iterator[S]:
    """Make `stream` the current one in the context."""
    token = _stream.set(stream)
    try:
        yield stream
    finally:
        _stream.reset(token)


def watching() -> Observer | None:
    """Return the observer of attention weights, or `None`."""
    return _observer.get()


@contextlib.contextmanager
def watched(observer: Observer) -> Iterator[None]:
    """Call `observer(layer, weights)` for every attention layer that is called in the context."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)
