"""Tests that Keras ships in its wheel, read with another class in place of the one they test."""

import importlib.util
import pathlib
import sys
import types

import keras

FOLDER = pathlib.Path(keras.__file__).parent / "src" / "layers" / "attention"
# Private attributes of Keras's layers that are public in ours.
PUBLIC = (
    "query_dense",
    "key_dense",
    "value_dense",
    "gate_dense",
    "output_dense",
    "sliding_window",
)
KERAS_MARKER = "@pytest.mark.requires_trainable_backend\n"  # Keras's own configuration defines it


def load(file, replacements, **names):
    """The module of the test file, with the text replaced and `names` defined in it."""
    path = FOLDER / file
    text = path.read_text()
    for old, new in replacements.items():
        assert old in text, f"{path} no longer contains {old!r}"
        text = text.replace(old, new)
    for name in PUBLIC:
        text = text.replace(f"._{name}", f".{name}")
    text = text.replace(KERAS_MARKER, "\n")
    module = types.ModuleType(f"replaced_{path.stem}")
    module.__file__ = str(path)
    module.__spec__ = importlib.util.spec_from_loader(module.__name__, loader=None)
    vars(module).update(names)
    sys.modules[module.__name__] = module  # unittest and pickle look a class's module up by name
    exec(compile(text, path, "exec"), vars(module))
    return module


def mark(test_case, marks):
    """The class of tests, in which the tests named in `marks` carry a pytest mark."""
    for name, decorate in marks.items():
        setattr(test_case, name, decorate(getattr(test_case, name)))
    return test_case
