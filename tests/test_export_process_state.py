"""An export changes no setting of its process, also not while it runs."""

import logging
import sys
import threading
import tracemalloc
import warnings

import keras
import numpy as np
import pytest
from support import BACKEND

from keras_cosattn import export

OF_TENSORFLOW = {"levels of loggers", "warnings"}
"""Settings that Keras and TensorFlow change for a moment while they write a SavedModel."""

pytestmark = pytest.mark.skipif(BACKEND != "tensorflow", reason="exports need TensorFlow")


def settings():
    root = logging.getLogger()
    return {
        "handlers of the root logger": tuple(root.handlers),
        "level of the root logger": root.level,
        "levels of loggers": {
            name: logger.level
            for name, logger in root.manager.loggerDict.items()
            if isinstance(logger, logging.Logger) and logger.level
        },
        "standard output": (sys.stdout, sys.stderr),
        "warnings": (warnings.showwarning, tuple(map(str, warnings.filters))),
        "traceback filtering": keras.config.is_traceback_filtering_enabled(),
        "options of NumPy": str(np.get_printoptions()),
        "tracing of allocations": tracemalloc.is_tracing(),
    }


@pytest.mark.parametrize("quantize", ["float16", "int8"])
def test_no_other_thread_sees_a_setting_change(quantize, tmp_path):
    x = keras.Input((None, 4))
    model = keras.Model(x, keras.layers.Dense(4)(keras.layers.Dense(300)(x)))
    data = [np.ones((1, 9, 4), "float32")]
    # What TensorFlow and its converter set when they are imported or first used.
    export.to_tflite(model, tmp_path / "m.tflite", signatures=["serve"])
    before, seen, stop = settings(), [], threading.Event()

    def watch():
        while not stop.wait(0.0005):
            now = settings()
            seen.extend(name for name in before.keys() - OF_TENSORFLOW if now[name] != before[name])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        export.to_tflite(
            model, tmp_path / "m.tflite", signatures=["serve"], quantize=quantize,
            representative_data=data,
        )  # fmt: skip
        export.verify(model, tmp_path / "m.tflite", sample=data[0], verbose=0)
    finally:
        stop.set()
        thread.join()
    assert not set(seen)
    assert settings() == before
