"""Forms of one computation on TensorFlow: compared with each other, then timed in turns."""

import sys
import time

import numpy as np
import tensorflow as tf

TOLERANCE = 1e-4
"""Largest difference between forms, of the largest number of all outputs or gradients."""


def timed(forms, arrays, *, gradient, jit, repeats, alone=()):
    """Milliseconds of each form, the median of its turns: a dict by the names of the forms.

    Args:
        forms: dict of functions of the arrays.
        arrays: list of tensors.
        gradient: whether to time the gradients of the sum of squares, and not the outputs.
        jit: whether XLA compiles the forms.
        repeats: the number of turns.
        alone: names of forms that compute something else than the others.
    """
    calls = {name: with_gradient(form) if gradient else form for name, form in forms.items()}
    calls = {
        name: tf.function(call, jit_compile=jit, autograph=False) for name, call in calls.items()
    }
    check({name: call for name, call in calls.items() if name not in alone}, arrays)
    return median_times(calls, arrays, repeats)


def with_gradient(form):
    def run(*arrays):
        with tf.GradientTape() as tape:
            tape.watch(arrays)
            total = tf.reduce_sum(tf.square(form(*arrays)))
        return tape.gradient(total, arrays)

    return run


def check(functions, arrays):
    """Stop if a form differs from the first."""
    first = None
    for name, function in functions.items():
        found = [x.numpy() for x in tf.nest.flatten(function(*arrays))]
        first = first or found
        largest = max(np.abs(x).max() for x in first)  # a gradient may be zero but for rounding
        for a, b in zip(found, first, strict=True):
            if not np.abs(a - b).max() <= TOLERANCE * largest:
                sys.exit(f"error: '{name}' differs from the first form")


def median_times(functions, arrays, repeats):
    for function in functions.values():
        function(*arrays)
    seconds = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            tf.nest.flatten(function(*arrays))[0].numpy()
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * float(np.median(found)) for name, found in seconds.items()}
