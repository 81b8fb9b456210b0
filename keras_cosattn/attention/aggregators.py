"""What makes one step of the next level of each unit: a weighted mean, or a Keras layer."""

from __future__ import annotations

import inspect
from typing import Any

import keras
from keras import ops

from keras_cosattn.ops import arrays, hierarchy
from keras_cosattn.ops.hierarchy import Units
from keras_cosattn.ops.pool import pool

Tensor = Any


def check_aggregator(aggregator: Any) -> Any:
    """Return `aggregator` itself, or the layer whose saved form it is.

    Raises:
        ValueError: If it is not "attention", "mean" or a Keras layer.
    """
    if isinstance(aggregator, dict):
        aggregator = keras.saving.deserialize_keras_object(aggregator)
    if aggregator not in ("attention", "mean") and not isinstance(aggregator, keras.Layer):
        raise ValueError(
            '`aggregator` must be "attention", "mean" or a Keras layer. '
            f"Received: aggregator={aggregator!r}"
        )
    return aggregator


def for_levels(aggregator: Any, number: int) -> tuple[str | None, list[keras.Layer], Any]:
    """Return the name of a weighted mean, or a layer for each level; and the saved form.

    The copies of a layer are not built, as the inputs of the levels may differ.
    """
    if not isinstance(aggregator, keras.Layer):
        return aggregator, [], aggregator
    copies = [type(aggregator).from_config(aggregator.get_config()) for _ in range(number)]
    return None, copies, keras.saving.serialize_keras_object(copies[0])


def output_width(aggregator: keras.Layer, size: int, width: int, owner: str) -> int:
    """Return the number of features that a layer makes of units of `size` steps.

    Raises:
        ValueError: If it does not make `(units, features)`. The message names the layer `owner`.
    """
    shape = aggregator(keras.KerasTensor((None, size, width))).shape
    if len(shape) != 2 or shape[-1] is None:
        raise ValueError(
            f"{owner}: `aggregator` must make (units, features) of (units, {size}, "
            f"{width}). It made: {shape}"
        )
    return shape[-1]


def aggregate_with_layer(aggregator: keras.Layer, x: Tensor, units: Units) -> Tensor:
    """Return a layer's aggregates `(b, U, m')` of units of steps `x (b * U, c, m)`."""
    options = {}
    if "mask" in inspect.signature(aggregator.call).parameters:
        # All places of a unit without valid steps are True: a mean over no steps is NaN.
        some = ops.any(units.valid, axis=1, keepdims=True)
        options["mask"] = ops.logical_or(units.valid, ops.logical_not(some))
    return _as_steps(aggregator(x, **options), units)


def aggregate_with_weights(query: Tensor | None, x: Tensor, units: Units) -> tuple[Tensor, Tensor]:
    """Return weighted means `(b, U, m)` of units of steps, and the weights `(b * U, 1, 1, c)`.

    `query (1, m)` is the learned query of the pooling. `None` gives plain means.
    """
    aggregates, weights = pool(ops.expand_dims(x, 2), units.valid, query)
    return _as_steps(aggregates[:, 0], units), weights


def _as_steps(aggregates, units):
    """`(b * U, m)` as the steps of the next level, `(b, U, m)`; zero for empty units."""
    steps = hierarchy.by_example(aggregates, units)
    return arrays.zero_masked(steps, hierarchy.not_empty(units))
