"""`keras_cosattn.models` says what its import needs. The package itself does not import it.

`peers/test_tf_models.py` tests its layers.
"""

import builtins
import subprocess
import sys

import keras
import pytest


def without_modules_of(monkeypatch, name):
    for module in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
        monkeypatch.delitem(sys.modules, module)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the backend is refused first")
def test_without_tf_keras_the_import_of_models_says_how_to_install_it(monkeypatch):
    without_modules_of(monkeypatch, "keras_cosattn.models")
    imports = builtins.__import__

    def without_tf_keras(name, *args, **kwargs):
        if name.split(".")[0] == "tf_keras":
            raise ImportError("No module named 'tf_keras'")
        return imports(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_tf_keras)
    with pytest.raises(ImportError, match="pip install tf-keras"):
        import keras_cosattn.models  # noqa: F401


def test_on_another_backend_the_import_of_models_names_the_variable(monkeypatch):
    without_modules_of(monkeypatch, "keras_cosattn.models")
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ImportError, match=r"KERAS_BACKEND=tensorflow.*Received: KERAS_BACKEND=jax"):
        import keras_cosattn.models  # noqa: F401


def test_the_package_imports_neither_tf_keras_nor_models():
    found = (
        "import sys, keras_cosattn;"
        "print([m for m in sys.modules if m.startswith(('tf_keras', 'keras_cosattn.models'))])"
    )
    done = subprocess.run([sys.executable, "-c", found], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
