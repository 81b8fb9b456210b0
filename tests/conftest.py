import collections
import gc
import os

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Tests run many shapes a few times each, so compiling takes longer than computing.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import keras

if keras.backend.backend() == "torch":
    import torch

    # NumPy reads the tensors of the other backends whether they belong to a gradient or not.
    torch.Tensor.__array__ = lambda self, *args, **kwargs: np.asarray(
        self.numpy(force=True), *args, **kwargs
    )


@pytest.fixture(scope="module", autouse=True)
def _old_graphs():
    """TensorFlow never lets go of a graph, and Python would search them all for garbage."""
    gc.disable()
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def mixed_bfloat16():
    """The policy of layers that are given none."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy(before)


def pytest_runtest_setup(item):
    """Weights and dropout are drawn alike each time, also for a test that is run alone."""
    keras.utils.set_random_seed(0)


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
    _mark_more_as_slow(items)
    _take_samples(items)
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow; run with -m slow"))


def _mark_more_as_slow(items):
    """Leave out most cases of most tests.

    Each case runs others, so every test has some. The older variants run every test; on JAX every
    third, and on PyTorch every sixth. Of each newer variant one case, and optional cases of the
    older ones, run every third test; on JAX and PyTorch every sixth. JAX compiles every shape, and
    what is not compiled as a whole takes longest. On PyTorch what Keras compiles or quantises does.
    Of the tests without such cases, every second runs there.
    """
    from support import BACKEND
    from variants import CASES, OPTIONAL, PLAIN

    first = {cls.__name__: case for case, (cls, _) in reversed(CASES.items())}
    cases, tests, others = list(CASES), {}, {}
    for item in items:
        if not hasattr(item, "function"):
            continue  # a doctest
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        case = parameters.get("case")
        if case not in CASES:
            other = others.setdefault(item.function, len(others))
            if BACKEND != "tensorflow" and other % 2:
                item.add_marker(pytest.mark.slow)
            continue
        name = CASES[case][0].__name__
        is_older = name in PLAIN and case not in OPTIONAL
        if is_older and BACKEND == "tensorflow":
            continue
        share = 3 if BACKEND == "tensorflow" or (is_older and BACKEND == "jax") else 6
        test = tests.setdefault(item.function, len(tests))
        left_out = (test + cases.index(case)) % share
        newer = name not in PLAIN and case != first[name]
        long = {
            "jax": parameters.get("jit") is False,
            "torch": parameters.get("jit") or "int8" in item.name,
        }
        if left_out or newer or long.get(BACKEND):
            item.add_marker(pytest.mark.slow)


def _take_samples(items):
    """Of a test that is marked with `sample(n)`, run each n-th case."""
    seen = collections.Counter()
    for item in items:
        sample = item.get_closest_marker("sample")
        if sample is None or "slow" in item.keywords:
            continue
        if seen[item.function] % sample.args[0]:
            item.add_marker(pytest.mark.slow)
        seen[item.function] += 1
