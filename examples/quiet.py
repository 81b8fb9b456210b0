"""Keeps log lines of TensorFlow and its converter out of what an example prints: import it first.

Warnings and errors of Python are shown. `TF_CPP_MIN_LOG_LEVEL=0` shows the log of TensorFlow.
"""

import contextlib
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow reads it when it is imported


@contextlib.contextmanager
def without_stderr():
    """Discard what is written to stderr, also by C++, which writes before it reads settings."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


if os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3":
    with without_stderr():
        import tensorflow  # noqa: F401
