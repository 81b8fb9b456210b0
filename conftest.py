"""Doctests know `keras`, `np` and the package, and start with the same seed in an empty folder."""

import pytest


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
