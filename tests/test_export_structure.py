"""A model passes through the modules of the exporter in one direction."""

import ast
import pathlib
import re

import pytest

from keras_cosattn import export

FOLDER = pathlib.Path(export.__file__).parent
CONTRIBUTING = pathlib.Path(__file__).parent.parent / "CONTRIBUTING.md"
LONGEST = 300
ROWS = [
    re.findall(r"`([a-z0-9_*]+)/?`", row.split("|")[2])
    for row in re.findall(r"^\| .*\|$", CONTRIBUTING.read_text(), re.MULTILINE)
]
STAGE = {name: stage for stage, names in enumerate(ROWS) for name in names}
NOT_STAGES = ("__init__", "__main__", "run_on_device")
FILES = sorted(file for file in FOLDER.glob("*.py") if file.stem not in NOT_STAGES)


def stage_of(module):
    return STAGE.get(module, STAGE.get(re.sub(r"^gpu_.*", "gpu_*", module)))


def imported(file):
    prefix = "keras_cosattn.export"
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(prefix):
            inner = node.module.removeprefix(prefix).removeprefix(".")
            yield from [inner.split(".")[0]] if inner else [name.name for name in node.names]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_modules_import_from_their_own_stage_and_earlier_ones(file):
    own = stage_of(file.stem)
    assert own is not None, "the module has no row in CONTRIBUTING.md"
    for name in imported(file):
        assert stage_of(name) <= own, f"{file.stem} imports {name}"


def test_no_module_is_long():
    lengths = {file.name: len(file.read_text().splitlines()) for file in FOLDER.rglob("*.py")}
    assert not {name: n for name, n in lengths.items() if n > LONGEST}
