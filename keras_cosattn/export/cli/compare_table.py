"""The table that `compare` prints."""

from __future__ import annotations

import datetime
import platform
from typing import Any

import keras

import keras_cosattn

LABELS = {
    "keras": "Keras, TensorFlow",
    "saved_model": "SavedModel, TensorFlow",
    "tflite": "LiteRT",
    "tflite_runtime": "tflite-runtime",
    "micro": "tflite-micro",
}
"""Format -> the begin of its row."""

COLUMNS = {"file, bytes": 18, "step, us": 17, "step, MiB": 16, "serve, ms": 17, "serve, MiB": 16}
"""Title -> width."""


def versions() -> str:
    """The line of versions above a table."""
    return (
        f"{datetime.date.today()}  {platform.machine()}  Python {platform.python_version()}  "
        f"Keras {keras.__version__}  keras_cosattn {keras_cosattn.__version__}  seed 0"
    )


def print_table(rows: dict[str, Any]) -> None:
    """Print the rows: dicts of numbers, or strings that say why there are none."""
    titles = "".join(f"{name:>{width}}" for name, width in COLUMNS.items())
    print(f"{'':34}{titles}  difference  SQNR, dB")
    reference = cells(rows["keras"])
    for name, row in rows.items():
        if isinstance(row, str):
            print(f"{LABELS[name]:34}{row}")
            continue
        values = "".join(
            f"{with_ratio(x, one):>{width}}"
            for x, one, width in zip(cells(row), reference, COLUMNS.values(), strict=True)
        )
        label = f"{LABELS[name]} {row['version']}"
        print(f"{label:34}{values}  {row['difference']:10.1e}  {row['sqnr']:8.1f}")


def cells(row: dict[str, Any]) -> list[float | None]:
    """A row's numbers in the order of the columns; None for a number that it lacks."""
    numbers = [row["bytes"]]
    for name, unit in (("step", 1e6), ("serve", 1e3)):
        took = row.get(name, {"seconds": None, "peak": None})
        numbers.append(took["seconds"] and took["seconds"] * unit)
        numbers.append(took["peak"] and took["peak"] / 2**20)
    return numbers


def with_ratio(x: float | None, reference: float | None) -> str:
    """A number, and its ratio to that of Keras.

    Example:
        >>> with_ratio(300.0, 100.0), with_ratio(None, 100.0)
        ('300 (3)', '-')
    """
    if x is None or not reference:
        return "-"
    form = ",.0f" if x >= 100 else ".3g"
    return f"{x:{form}} ({x / reference:.2g})"
