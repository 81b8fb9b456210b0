"""A file beside the model it came from: on the same inputs, how far apart are they?"""

import numpy as np

from keras_cosattn import probe
from keras_cosattn.export.plan import CHECKED_BATCH

BEST_SQNR = 200.0
"""dB; what no difference at all is called, so that it can be written as a number."""


def compare(plan, run):
    """Signature -> largest relative difference, and signature -> SQNR in dB.

    Args:
        plan: a `Plan`.
        run: function `(signature, inputs) -> outputs`, the file.
    """
    found = {}
    if "serve" in plan.functions:
        found["serve"] = [(expected, run("serve", x)) for x, expected in plan.wholes()]
    if "serve_text" in plan.functions:
        texts, expected = plan.texts()
        found["serve_text"] = [(expected, run("serve_text", texts))]
    if plan.streamed:
        pieces, inputs, whole = plan.streams()
        for name, start, end, outputs in streamed(plan, run, pieces, inputs):
            expected = {key: y[:, start:end] for key, y in whole.items()}
            found.setdefault(name, []).append((expected, outputs))
    differences = {name: largest_difference(pairs) for name, pairs in found.items()}
    return differences, {name: sqnr(pairs) for name, pairs in found.items()}


def streamed(plan, run, pieces, inputs):
    """Run the pieces one after the other: yields each with its outputs."""
    for name, start, end in pieces:
        if start == 0:
            state = _begin(plan, run)
        outputs = run(name, {**{key: x[:, start:end] for key, x in inputs.items()}, **state})
        state = {key: outputs.pop(key) for key in state}
        yield name, start, end, outputs


def _begin(plan, run):
    """The state of a new stream."""
    if plan.state_form == "variables":
        run("reset", {})
        return {}
    if "init" not in plan.functions:
        return plan.zero_state()
    return run("init", {"batch_size": np.int32(CHECKED_BATCH)} if plan.batch_size is None else {})


def largest_difference(pairs):
    """Relative to the largest number expected; NaN if one is NaN and the other is not.

    Args:
        pairs: list of (expected, found), both dicts name -> array.
    """
    worst = 0.0
    for name in pairs[0][0]:
        scale = max(1e-6, *(_largest(np.nan_to_num(expected[name])) for expected, _ in pairs))
        for expected, found in pairs:
            worst = np.maximum(worst, _largest(_difference(expected[name], found[name])) / scale)
    return float(worst)


def sqnr(pairs):
    """`10 log10(sum y^2 / sum (y - y')^2)` in dB; NaN if one is NaN and the other is not."""
    signal = noise = 0.0
    for expected, found in pairs:
        for name, y in expected.items():
            signal += np.nansum(np.square(y, dtype="float64"))
            noise += np.sum(np.square(_difference(y, found[name]), dtype="float64"))
    if noise <= signal * 10 ** (-BEST_SQNR / 10):
        return BEST_SQNR
    return float(10 * np.log10(signal / noise)) if signal else -BEST_SQNR


def _difference(x, y):
    return np.where(np.isnan(x) & np.isnan(y), 0, x - y)


def _largest(x):
    return float(np.max(np.abs(x), initial=0.0))


def accept(plan, differences, sqnr, least_sqnr=None):
    """Raises ValueError if the file is not the model.

    Args:
        plan, differences, sqnr: of `compare`.
        least_sqnr: dB that a quantised file must have; None asks for equal numbers.
    """
    if least_sqnr is None:
        limit = probe.tolerance(plan.model)
        good, rule = max(differences.values()) <= limit, f"differences of at most {limit}"
    else:
        good, rule = min(sqnr.values()) >= least_sqnr, f"an SQNR of at least {least_sqnr} dB"
    if not good or np.isnan([*differences.values(), *sqnr.values()]).any():
        raise ValueError(
            f"The export of '{plan.model.name}' computes something else than the model, so it was "
            f"not kept. Differences: {differences}; SQNR in dB: {sqnr}; allowed: {rule}."
        )
