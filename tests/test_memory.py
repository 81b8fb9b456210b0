"""Peak memory of forward + gradient grows with the length, not with its square."""

import pathlib
import sys

import pytest
from support import BACKEND

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "benchmarks"))
from memory import measure

pytestmark = pytest.mark.skipif(BACKEND != "tensorflow", reason="the benchmark is TensorFlow's")


def ratio(name, length):
    """Peak memory at twice the length over that at the length; quadratic would be 4."""
    short, long = (measure(name, n) for n in (length, 2 * length))
    print(f"{name}: {short:.0f} MiB at {length} steps, {long:.0f} MiB at {2 * length}")
    return long / short


def test_twice_the_length_takes_about_twice_the_memory():
    assert ratio("cosformer", 4_096) < 2.3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cosformer", "endless", "linear"])
def test_twice_16384_steps_take_about_twice_the_memory(name):
    assert ratio(name, 16_384) < 2.3
