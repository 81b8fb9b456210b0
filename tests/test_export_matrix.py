"""A file that was accepted computes the model's numbers on its target; all others are refused."""

import contextlib
import functools

import pytest
from export_cases import CELLS, COLUMNS, Cell, outcome, runtime_of, traced_once
from support import BACKEND

pytestmark = pytest.mark.skipif(BACKEND != "tensorflow", reason="exports need TensorFlow")

QUICK = [
    Cell("CosFormerAttention-endless", True, *column) for column in COLUMNS if column[0] != "gpu"
]


@pytest.fixture(scope="module", autouse=True)
def quicker(tmp_path_factory):
    with traced_once(tmp_path_factory.mktemp("saved_models")):
        yield


@pytest.fixture(scope="module")
def started():
    """Function target -> its runtime, started once."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def start(target):
            runtime, why_not = runtime_of(target)
            if runtime is None:
                pytest.skip(why_not)
            return stack.enter_context(runtime)

        yield start


@pytest.mark.parametrize("cell", QUICK, ids=str)
@pytest.mark.sample(16)
def test_a_step_is_right_on_its_target(cell, tmp_path, started):
    found = outcome(cell, tmp_path / "m.tflite", started(cell.target), signatures=["step"])
    assert found.refused is None
    assert found.right, found


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_every_signature_is_right_on_its_target_or_refused(cell, tmp_path, started):
    found = outcome(cell, tmp_path / "m.tflite", started(cell.target))
    assert found.right, found
    if cell[2:] == ("litert", None):
        assert found.refused is None
