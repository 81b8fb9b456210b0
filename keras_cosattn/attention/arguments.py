"""Checks and copies of constructor arguments."""

from __future__ import annotations

import numbers
from typing import Any

import keras

from keras_cosattn.component import Component


def positive(name: str, value: Any) -> int:
    """Return `value` as an int. Raises ValueError unless it is an integer of at least 1."""
    return _integer(name, value, 1)


def not_negative(name: str, value: Any) -> int:
    """Return `value` as an int. Raises ValueError unless it is an integer of at least 0."""
    return _integer(name, value, 0)


def optional(check, name: str, value: Any) -> int | None:
    """Return None for None, and `check(name, value)` for everything else."""
    return None if value is None else check(name, value)


def own_copy(value: Any, dtype: Any) -> Any:
    """Return an object of the same configuration, from an object, its saved form or None.

    A layer copies every component that it is given. So one object may be given to many layers,
    and each of them saves and loads its own.
    """
    if isinstance(value, dict):
        value = keras.saving.deserialize_keras_object(value)
    return value.clone(dtype) if isinstance(value, Component) else value


def saved_form(value: Any) -> Any:
    """Return the dict from which Keras makes an object again, the same before and after `build`.

    The layer that gets the object builds it, so shapes are left out.
    """
    config = keras.saving.serialize_keras_object(value)
    if isinstance(config, dict):
        config.pop("build_config", None)
    return config


def _integer(name, value, least):
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(
            f"The argument `{name}` must be an integer of at least {least}. "
            f"Received: {name}={value!r}"
        )
    return int(value)
