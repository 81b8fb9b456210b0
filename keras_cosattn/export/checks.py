"""The comparison of a file with its model on the same inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from keras_cosattn import probe
from keras_cosattn.export import check_inputs
from keras_cosattn.export.check_inputs import Arrays, StreamPiece
from keras_cosattn.export.export_plan import ExportPlan

BEST_SQNR = 200.0
"""dB. The SQNR of equal numbers, which must be a number in the description of a file."""

STATE_SQNR: dict[str | None, float] = {"int16": 40.0, "int8": 20.0}
"""dB. `state_dtype` and the SQNR that the outputs of a stream must have."""

Run = Callable[[str, Arrays], Arrays]
"""A file as a function of the name of a signature and its inputs."""

Pairs = Sequence[tuple[Arrays, Arrays]]
"""Expected and found outputs of several calls."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How far a file is from its model.

    Attributes:
        differences: The name of each signature and the largest relative difference.
        sqnr: The name of each signature and its signal to quantisation noise ratio in dB.
    """

    differences: dict[str, float]
    sqnr: dict[str, float]


def compare(plan: ExportPlan, run: Run) -> Comparison:
    """Run every signature of a file and compare its outputs with those of the model.

    Args:
        plan: What the file holds.
        run: The file as a function.
    """
    found: dict[str, list[tuple[Arrays, Arrays]]] = {}
    if "serve" in plan.functions:
        calls = check_inputs.whole_checks(plan)
        found["serve"] = [(expected, run("serve", x)) for x, expected in calls]
    if "serve_text" in plan.functions:
        texts, expected = check_inputs.text_check(plan)
        found["serve_text"] = [(expected, run("serve_text", texts))]
    if plan.streamed:
        pieces, inputs, whole = check_inputs.stream_check(plan)
        for (name, start, end), outputs in run_stream(plan, run, pieces, inputs):
            expected = {key: y[:, start:end] for key, y in whole.items()}
            found.setdefault(name, []).append((expected, outputs))
    return Comparison(
        {name: largest_difference(pairs) for name, pairs in found.items()},
        {name: sqnr(pairs) for name, pairs in found.items()},
    )


def run_stream(
    plan: ExportPlan, run: Run, pieces: Iterable[StreamPiece], inputs: Arrays
) -> Iterator[tuple[StreamPiece, Arrays]]:
    """Run the pieces of a stream one after the other, and yield each with its outputs."""
    state: Arrays = {}
    for piece in pieces:
        name, start, end = piece
        if start == 0:
            state = _begin(plan, run)
        outputs = run(name, {**{key: x[:, start:end] for key, x in inputs.items()}, **state})
        state = {key: outputs.pop(key) for key in state}
        yield piece, outputs


def _begin(plan: ExportPlan, run: Run) -> Arrays:
    """The state of a new stream."""
    if plan.options.state_form == "variables":
        run("reset", {})
        return {}
    if "init" not in plan.functions:
        return check_inputs.first_state(plan)
    if plan.options.batch_size is not None:
        return run("init", {})
    return run("init", {"batch_size": np.array(check_inputs.CHECKED_BATCH, "int32")})


def largest_difference(pairs: Pairs) -> float:
    """The largest difference, relative to the largest finite number that is expected.

    NaN if a number that is not finite differs.
    """
    worst = 0.0
    for name in pairs[0][0]:
        scale = max(1e-6, *(_largest(_finite(expected[name])) for expected, _ in pairs))
        for expected, found in pairs:
            worst = np.maximum(worst, _largest(_difference(expected[name], found[name])) / scale)
    return float(worst)


def sqnr(pairs: Pairs) -> float:
    """`10 log10(sum y^2 / sum (y - y')^2)` in dB; NaN if a number that is not finite differs."""
    signal = noise = 0.0
    for expected, found in pairs:
        for name, y in expected.items():
            signal += np.sum(np.square(_finite(y), dtype="float64"))
            noise += np.sum(np.square(_difference(y, found[name]), dtype="float64"))
    if noise <= signal * 10 ** (-BEST_SQNR / 10):
        return BEST_SQNR
    return float(10 * np.log10(signal / noise)) if signal else -BEST_SQNR


def _difference(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`x - y`, zero where both are NaN or the same infinity, NaN where one is not finite."""
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    finite = np.isfinite(x) & np.isfinite(y)
    difference = np.where(finite, x, 0) - np.where(finite, y, 0)
    return np.where(same | finite, np.where(same, 0, difference), np.nan)


def _finite(x: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(x), x, 0)


def _largest(x: np.ndarray) -> float:
    return float(np.max(np.abs(x), initial=0.0))


def why_not(
    plan: ExportPlan, comparison: Comparison, least_sqnr: float | None = None
) -> str | None:
    """Why a file is not accepted; `None` if it is.

    Args:
        plan: What the file holds.
        comparison: What `compare` found.
        least_sqnr: float. The SQNR in dB that a quantised file must have. `None` asks for equal
            numbers, but for what a state in integers changes.
    """
    differences, found, limit = comparison.differences, comparison.sqnr, probe.tolerance(plan.model)
    allowed, good = {}, True
    for name in differences:
        least = _least_sqnr(plan, name, least_sqnr)
        if least is None:
            allowed[name] = f"differences of at most {limit}"
            good = good and differences[name] <= limit
        else:
            allowed[name] = f"an SQNR of at least {least} dB"
            good = good and found[name] >= least
    if good and not np.isnan([*differences.values(), *found.values()]).any():
        return None
    return f"Differences: {differences}; SQNR in dB: {found}; allowed: {allowed}."


def _least_sqnr(plan: ExportPlan, name: str, of_scheme: float | None) -> float | None:
    """The SQNR that a signature must have; `None` if its numbers must be equal."""
    of_state = STATE_SQNR.get(plan.options.state_dtype) if name in plan.streamed else None
    return min((least for least in (of_scheme, of_state) if least is not None), default=None)


def accept(plan: ExportPlan, comparison: Comparison, least_sqnr: float | None = None) -> None:
    """Raise ValueError if a new file does not compute what the model computes.

    Args:
        plan, comparison, least_sqnr: As in `why_not`.
    """
    reason = why_not(plan, comparison, least_sqnr)
    if reason is not None:
        raise ValueError(
            f"The export of '{plan.named.name}' computes something else than the model, so it was "
            f"not kept. {reason}"
        )
