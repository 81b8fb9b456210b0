"""Examples of what a model will read, from a `tf.data.Dataset` or any iterable of batches."""

import itertools

import keras
import numpy as np

STEPS = 256
"""Most steps of one example that are streamed to see ranges; every eighth is looked at."""


def batches(data):
    """Inputs, and labels or None, of every batch: NumPy, `(b, t, ...)`.

    An element is the inputs, or a tuple that begins with the inputs and the labels, as for
    `model.fit`.
    """
    for element in data:
        x, y = element[:2] if isinstance(element, tuple) else (element, None)
        yield keras.tree.map_structure(np.asarray, x), y if y is None else np.asarray(y)


def representative_data(dataset, count=16):
    """The inputs of the first `count` examples of a dataset, each `(1, t, ...)`, for `to_tflite`.

    Args:
        dataset: a `tf.data.Dataset` or another iterable of batches, as for `model.fit`.
        count: how many.

    Raises ValueError if it is empty.
    """

    def examples():
        for x, _ in batches(dataset):
            for i in range(len(keras.tree.flatten(x)[0])):
                yield keras.tree.map_structure(lambda array, i=i: array[i : i + 1], x)

    found = list(itertools.islice(examples(), count))
    if not found:
        raise ValueError("The representative data are empty. Give at least one batch of inputs.")
    return found


def calibration(plan, run, inputs):
    """Inputs for every signature, with the states that a stream of the data goes through.

    Args:
        plan: a `Plan`.
        run: function `(signature, inputs) -> outputs` of the float file.
        inputs: list of examples.

    Returns a list of (signature, named inputs).
    """
    seen = []
    for x in inputs:
        if "serve" in plan.functions:
            seen.append(("serve", plan.fit(x, plan.length)))
        if plan.streamed:
            seen += _streamed(plan, run, x)
    return seen


def _streamed(plan, run, x):
    steps = min(keras.tree.flatten(x)[0].shape[1], plan.stream.max_steps or STEPS, STEPS)
    for name in plan.streamed:
        size = 1 if name == "step" else plan.prefill_chunk or steps
        named = plan.fit(x, max(steps, size))
        state = {} if plan.state_form == "variables" else plan.zero_state()
        for start in range(0, max(steps, size) - size + 1, size):
            piece = {key: value[:, start : start + size] for key, value in named.items()}
            if size > 1 or start % 8 == 0:
                yield name, {**piece, **state}
            outputs = run(name, {**piece, **state})
            state = {key: outputs[key] for key in state}
