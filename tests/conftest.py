import os

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Tests run many shapes a few times each, so compiling takes longer than computing.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def pytest_collection_modifyitems(config, items):
    """Leave out the slow tests unless `-m` or a test's own name asks for something.

    Those against peers need packages that nothing else does, and `-m peers`.
    """
    asked = config.getoption("markexpr")
    if any("::" in arg for arg in config.args):
        return
    if "peers" not in asked:
        for item in items:
            if "peers" in item.keywords:
                item.add_marker(
                    pytest.mark.skip(reason="needs the extra `peers`; run with -m peers")
                )
    if asked:
        return
    _mark_most_as_slow_on_jax(items)
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow; run with -m slow"))


def _mark_most_as_slow_on_jax(items):
    """JAX compiles every shape: each newer variant runs a third of the contract, each another."""
    from support import BACKEND
    from variants import CASES, PLAIN

    if BACKEND != "jax":
        return
    cases, tests = list(CASES), {}
    for item in items:
        case = item.callspec.params.get("case") if hasattr(item, "callspec") else None
        if case in CASES and CASES[case][0].__name__ not in PLAIN:
            test = tests.setdefault(item.function, len(tests))
            if (test + cases.index(case)) % 3:
                item.add_marker(pytest.mark.slow)
