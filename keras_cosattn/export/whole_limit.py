"""The number of valid steps that a model takes in one call."""

from __future__ import annotations

import bisect

import keras

from keras_cosattn import limits
from keras_cosattn.export.named_model import NamedModel
from keras_cosattn.export.sample_inputs import resize


def max_whole_steps(named: NamedModel) -> int | None:
    """Return the number of valid steps that the model takes in one call, or `None` for any.

    A layer that reads every step of the input limits the model to its own limit. A layer that
    reads fewer steps, after a layer that strides, limits it to proportionally more. How many more
    depends on how the other layers round, so that number is tried.
    """
    steps = named.sample_steps
    exact = [limit for limit, seen in named.recorded_limits if seen in (steps, None)]
    scaled = [
        limit * steps // seen for limit, seen in named.recorded_limits if seen not in (steps, None)
    ]
    most = min([*exact, *scaled], default=None)
    any_length = all(shape[1] is None for shape, _ in named.any_size.values())
    if most is None or not scaled or not any_length or _fits(named, most):
        return most
    return bisect.bisect_left(range(1, most), True, key=lambda n: not _fits(named, n))


def _fits(named: NamedModel, steps: int) -> bool:
    """Whether all layers take what they get for an input of so many steps."""
    inputs = keras.tree.map_structure(lambda x: resize(x, len(x), steps), named.sample)
    with limits.recorded() as found:
        try:
            named.model(inputs, training=False)
        except ValueError:  # a layer refuses the input
            return False
    return all(seen is None or seen <= limit for limit, seen in found)
