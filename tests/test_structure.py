"""The house rules that can be read from the source."""

import ast
import inspect
import pathlib

import pytest

import keras_cosattn

PACKAGE = pathlib.Path(keras_cosattn.__file__).parent
FLOORS = [
    ["atomic_write", "limits"],
    ["ops"],
    ["scope", "masks", "layout", "component", "layer_options", "keras3_only"],
    ["positions", "temporal", "running_mean", "feature_maps"],
    ["attention"],
    ["transformer", "analysis", "models"],
    ["compiled_step", "constant_inputs", "fingerprint", "probe", "state_checks", "state_file"],
    ["compact_state", "stream_check"],
    ["streaming"],
    ["carried", "convert", "generation"],
    ["export"],
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_every_module_has_a_floor():
    names = {file.relative_to(PACKAGE).parts[0].removesuffix(".py") for file in FILES}
    assert names - {"__init__"} == set(FLOOR)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down(file):
    parts = file.relative_to(PACKAGE).parts
    mine = parts[0].removesuffix(".py")
    tree = ast.parse(file.read_text())
    for name in imported(tree):
        below = name.split(".")
        if below[0] != "keras_cosattn" or len(below) == 1 or mine == "__init__":
            continue
        if below[1] in FLOOR and below[1] != mine:
            assert FLOOR[below[1]] < FLOOR[mine], f"{file} imports {name}"
        variants = {"aggregators", "arguments", "axes", "base", "bucketed", "cached", "call_inputs"}
        variants |= {"constant_values", "decayed", "keras_arguments", "known_masks", "levels"}
        variants |= {"mask_factoring", "options", "projections", "refusals", "short_convolutions"}
        variants |= {"step_sizes", "sums"}
        if mine == below[1] == "attention" and parts[-1] != "__init__.py":
            assert below[2] in variants, f"the variant {file} imports {name}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_few_modules_know_a_backend_and_none_at_import(file):
    tree, parts = ast.parse(file.read_text()), file.relative_to(PACKAGE).parts
    backends = {"tensorflow", "torch", "jax"}
    allowed = {
        "limits.py": {"tensorflow"}, "export": {"tensorflow"}, "compiled_step.py": backends,
        "block_size.py": backends, "scan_tensorflow.py": {"tensorflow"}, "scan_jax.py": {"jax"},
        "scan_torch.py": {"torch"}, "tensor_lists.py": {"tensorflow"}, "models": {"tensorflow"},
    }  # fmt: skip
    top = {name.split(".")[0] for name in imported(tree)}
    assert top & backends <= allowed.get(parts[-1], allowed.get(parts[0], set()))
    at_import = {
        name.split(".")[0]
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in imported(node)
    }
    # No other module imports `models`, whose classes are those of tf_keras, on TensorFlow.
    assert parts[0] == "models" or not at_import & backends


def test_one_module_imports_tf_keras_and_only_its_package_needs_that():
    of_tf_keras, of_models = set(), set()
    for file in FILES:
        path = str(file.relative_to(PACKAGE))
        for name in imported(ast.parse(file.read_text())):
            if name.split(".")[0] == "tf_keras":
                of_tf_keras.add(path)
            if name.startswith("keras_cosattn.models"):
                of_models.add(path.split("/")[0])
    assert of_tf_keras == {"models/keras2.py"}
    assert of_models == {"models"}


@pytest.mark.parametrize("name", keras_cosattn.__all__)
def test_public_classes_say_formula_cost_and_source(name):
    text = inspect.getdoc(getattr(keras_cosattn, name))
    assert text
    if name not in ("Attention", "Position", "Streaming"):
        assert "O(" in text or "et al." in text
