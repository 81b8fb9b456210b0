"""The state of a stream in integers, for devices with little memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import keras
from keras import ops

from keras_cosattn.state_checks import Spec

Tensor = Any
StateDtype = Literal["int8", "int16"]

STATE_DTYPES: tuple[StateDtype, ...] = get_args(StateDtype)

LARGEST: dict[str | None, int] = {"int8": 127, "int16": 32767}

SHORTEST_ROW = 8
"""A row of fewer numbers stays as it is: its scale, a float32, would take half of what is saved."""

SMALLEST_SCALE = 1e-30
"""So that a row of zeros is not divided by zero."""


class CompactState:
    """Write rows of floating point numbers as integers with a scale.

    A row `x` is the last axis of a tensor. With `L = 127` or `32767` its scale is
    `s = max |x| / L`, and the integers are `round(x / s)`. An entry is off by at most `s / 2`.
    `docs/compact_state.md` derives what this does to a state over many steps.

    Args:
        spec: The name of each tensor of a state, its shape without the batch axis and its dtype.
        dtype: `"int8"` or `"int16"`. `None` leaves every state as it is.

    Attributes:
        spec: As the argument, of the compact state. The scales of tensor `x` are `x_scale`.
    """

    def __init__(self, spec: Spec, dtype: StateDtype | None) -> None:
        check_state_dtype(dtype)
        self._dtype, self._exact, self.spec = dtype, spec, {}
        for name, (shape, exact_dtype) in spec.items():
            if dtype is None or not _has_rows(shape, exact_dtype):
                self.spec[name] = shape, exact_dtype
                continue
            self.spec[name] = shape, dtype
            self.spec[_scale(name)] = (*shape[:-1], 1), "float32"

    def pack(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the compact form of a state."""
        packed = {}
        for name, x in state.items():
            packed[name] = x
            if _scale(name) in self.spec:
                x = ops.cast(x, "float32")
                largest = ops.max(ops.abs(x), axis=-1, keepdims=True)
                scale = ops.maximum(largest / LARGEST[self._dtype], SMALLEST_SCALE)
                packed[name] = ops.cast(ops.round(x / scale), self._dtype)
                packed[_scale(name)] = scale
        return packed

    def unpack(self, packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state of a compact form."""
        state = {name: packed[name] for name in self._exact}
        for name in state:
            if _scale(name) in self.spec:
                row = ops.cast(packed[name], "float32") * packed[_scale(name)]
                state[name] = ops.cast(row, self._exact[name][1])
        return state

    def kept(
        self, new: Mapping[str, Tensor], old: Mapping[str, Tensor], mask: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the new state, where examples without a step keep their old integers and scales.

        Args:
            new, old: Compact states.
            mask: Boolean `(b, t)`, or `None`, all `True`.
        """
        if mask is None or self._dtype is None:
            return dict(new)
        read = ops.any(mask, axis=1)
        return {
            name: ops.where(ops.reshape(read, (-1, *[1] * (len(x.shape) - 1))), x, old[name])
            for name, x in new.items()
        }


def check_state_dtype(dtype: str | None) -> None:
    """Raise ValueError if there is no such form of a state."""
    if dtype not in (None, *STATE_DTYPES):
        raise ValueError(
            f"`state_dtype` must be one of {STATE_DTYPES}, or None. Received: {dtype!r}"
        )


def _has_rows(shape: tuple[int, ...], dtype: str) -> bool:
    return keras.backend.is_float_dtype(dtype) and bool(shape) and (shape[-1] or 0) >= SHORTEST_ROW


def _scale(name: str) -> str:
    return f"{name}_scale"
