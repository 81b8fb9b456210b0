"""Doctests begin with the same seed, and write their files into a folder of their own."""

import pytest


@pytest.fixture(autouse=True)
def _for_doctests(request):
    if isinstance(request.node, pytest.DoctestItem):
        import keras

        request.getfixturevalue("monkeypatch").chdir(request.getfixturevalue("tmp_path"))
        keras.utils.set_random_seed(0)
