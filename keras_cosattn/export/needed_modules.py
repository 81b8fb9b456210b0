"""The modules that a tokenizer needs."""

from __future__ import annotations

import importlib
from types import ModuleType


def import_needed(module: str) -> ModuleType:
    """Import a module. Raise ImportError with what to install if it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        hint = ": pip install tensorflow-text" if module == "tensorflow_text" else ""
        raise ImportError(f"The tokenizer needs the module {module}{hint}.") from error
