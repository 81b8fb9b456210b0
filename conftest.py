"""Doctests know `keras`, `np` and the package, and start with the same seed in an empty folder."""

import importlib.util

import pytest

# These modules cannot be imported without tf_keras, which is in an environment of its own.
collect_ignore = [] if importlib.util.find_spec("tf_keras") else ["keras_cosattn/models"]


@pytest.fixture(autouse=True)
def _for_doctests(request):
    if isinstance(request.node, pytest.DoctestItem):
        import keras
        import numpy as np

        import keras_cosattn

        names = request.getfixturevalue("doctest_namespace")
        names.update(keras=keras, np=np, keras_cosattn=keras_cosattn)
        request.getfixturevalue("monkeypatch").chdir(request.getfixturevalue("tmp_path"))
        keras.utils.set_random_seed(0)
