"""The check that a model can stream: its outputs in pieces are those on the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from keras_cosattn import probe
from keras_cosattn.compiled_step import Step

Tensor = Any
Nest = Any  # a tensor, or lists, tuples and dicts of tensors

PIECES = (5, 1, 1, 3, 2)
"""Lengths of the pieces in which the check reads its sample: one step, and several."""

STEPS = sum(PIECES)


def check_pieces(
    model: keras.Model,
    sample: Nest,
    run_whole: Callable[[], Nest],
    state: Mapping[str, Tensor],
    step: Step,
    compiled_step: Step,
) -> None:
    """Run `sample` whole and in pieces. Raise ValueError, with the layer, if the outputs differ.

    Args:
        model: The model.
        sample: Its inputs `(b, t, ...)`.
        run_whole: Function that calls it on all of `sample`.
        state: The state before the first step.
        step: Function of inputs, a state and a mask or `None`, to outputs and the new state.
        compiled_step: The same, compiled where that is faster for a few calls.
    """

    def run_pieces(step: Step = step) -> Iterator[Nest]:
        length, start, current = keras.tree.flatten(sample)[0].shape[1], 0, state
        for end in np.minimum(np.cumsum(PIECES), length).tolist():
            if end > start:
                piece = keras.tree.map_structure(lambda x, a=start, b=end: x[:, a:b], sample)
                outputs, current = step(piece, current, None)
                yield outputs
                start = end

    whole, pieces = run_whole(), list(run_pieces(compiled_step))
    if probe.difference(whole, pieces) > probe.tolerance(model):
        probe.refuse(model, whole, run_whole, run_pieces)
