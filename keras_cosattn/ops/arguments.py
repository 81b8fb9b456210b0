"""Checks of arguments."""

from __future__ import annotations

import operator
from typing import Any


def integer(name: str, value: Any, least: int = 1) -> int:
    """Return `value` as an `int`: an integer, also of NumPy, of at least `least`.

    Raises:
        ValueError: if `value` is smaller, or is no integer. A bool is no integer here.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise ValueError(
            f"`{name}` must be an integer of at least {least}. Received: {name}={value!r}"
        )
    return number
