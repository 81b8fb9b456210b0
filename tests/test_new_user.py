"""As a new user does it: files from one computer run on another that has no TensorFlow.

There are only the file, the inputs and a copy of run_on_device.py there; on a microcontroller's
runtime a loop that reads the file's description.
"""

import pathlib
import shutil
import subprocess
import sys
import types
import typing

import keras
import numpy as np
import pytest
from keras import layers
from runtimes import UnavailableError, environment, tflite_runtime
from support import BACKEND, assert_close

from keras_cosattn import CausalConv1D, CosFormerAttention, TransformerDecoder, TransformerEncoder
from keras_cosattn.export import checks, to_tflite

RUNNER = pathlib.Path(checks.__file__).with_name("run_on_device.py")
PROGRAMS = pathlib.Path(__file__).parent / "programs"
WITHOUT_TENSORFLOW = PROGRAMS / "without_modules.py", "tensorflow,keras,keras_cosattn"
LENGTH, CHANNELS, SEED = 4096, 6, 0

pytestmark = pytest.mark.skipif(BACKEND != "tensorflow", reason="exports need TensorFlow")


def texts(padded=True):
    """Tells kinds of text from their bytes; 0 is padding."""
    codes = keras.Input((None,), dtype="int32")
    y = layers.Embedding(256, 16, mask_zero=padded)(codes)
    y = TransformerEncoder(32, attention=CosFormerAttention(2, 8, max_length=LENGTH))(y)
    y = layers.GlobalAveragePooling1D()(y)
    return keras.Model(codes, layers.Dense(4)(y), name="texts")


def whole_texts():
    """All of one length: GPU delegates cannot count what a mask leaves."""
    return texts(padded=False)


def sensor():
    x = keras.Input((None, CHANNELS))
    y = CausalConv1D(16, 5, activation="relu")(x)
    block = TransformerDecoder(
        32, attention=CosFormerAttention(2, 8, horizon=16), activation="relu", normalize_first=True
    )
    return keras.Model(x, layers.Dense(7)(block(y)), name="sensor")


def some_texts(rng):
    """`(3, LENGTH)`: one of full length and two with padding behind."""
    codes = rng.integers(1, 256, (3, LENGTH)).astype("int32")
    return codes * (np.arange(LENGTH) < [[LENGTH], [1001], [57]])


def some_steps(rng):
    return rng.standard_normal((1, 200, CHANNELS)).astype("float32")


class File(typing.NamedTuple):
    """What is exported, for which runtime, and what its outputs must hold to."""

    build: typing.Callable
    target: str
    runtime: str
    options: dict = types.MappingProxyType({})
    least_sqnr: float | None = None

    @property
    def name(self):
        options = "-".join(str(value) for value in self.options.values())
        return "-".join(filter(None, [self.build.__name__, self.target, options]))


FILES = [
    File(texts, "litert", "litert"),
    File(texts, "litert", "litert", {"quantize": "dynamic_int8"}, 15),
    File(texts, "litert", "litert", {"length": LENGTH}),
    File(texts, "tflite-runtime", "tflite-runtime", {"quantize": "dynamic_int8"}, 15),
    File(whole_texts, "gpu", "litert", {"length": LENGTH}),  # on LiteRT's CPU
    File(sensor, "litert", "litert"),
    File(sensor, "litert", "litert", {"quantize": "dynamic_int8"}, 15),
    File(sensor, "tflite-runtime", "tflite-runtime"),
    File(sensor, "micro", "micro"),
]
QUICK = {"whole_texts-gpu-4096", "sensor-litert"}


class Case(typing.NamedTuple):
    """A file that was exported, the folder of a new user, and what Keras computes there."""

    file: File
    folder: pathlib.Path
    expected: list


@pytest.fixture
def exported(request, tmp_path):
    file, rng = request.param, np.random.default_rng(SEED)
    keras.utils.set_random_seed(SEED)
    model = file.build()
    to_tflite(model, tmp_path / "m.tflite", target=file.target, **file.options)
    shutil.copy(RUNNER, tmp_path)
    inputs = some_steps(rng) if file.build is sensor else some_texts(rng)
    for i, x in enumerate(inputs):
        np.save(tmp_path / f"x{i}.npy", x[None])
    expected = [np.asarray(model(x[None], training=False)) for x in inputs]
    return Case(file, tmp_path, expected)


def on_the_device(case, python, *start):
    """The outputs of a program that gets the file, an input, and the name of the output."""
    outputs = []
    for i in range(len(case.expected)):
        arguments = ["m.tflite", f"x{i}.npy", f"y{i}.npy"]
        done = subprocess.run(
            [python, *start, *arguments], cwd=case.folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        outputs.append(np.load(case.folder / f"y{i}.npy"))
    return outputs


def assert_as_keras(case, found):
    if case.file.least_sqnr is None:
        for y, expected in zip(found, case.expected, strict=True):
            assert_close(y, expected, 1e-5)
    else:
        pairs = [({"y": y}, {"y": z}) for y, z in zip(case.expected, found, strict=True)]
        assert checks.sqnr(pairs) > case.file.least_sqnr


def of(files):
    return pytest.mark.parametrize("exported", files, ids=lambda file: file.name, indirect=True)


@of([file for file in FILES if file.name in QUICK])
def test_a_copied_file_and_runner_give_what_keras_gives(exported):
    start = [*WITHOUT_TENSORFLOW, "run_on_device.py"]
    assert_as_keras(exported, on_the_device(exported, sys.executable, *start))


@pytest.mark.slow
@of(FILES)
def test_in_an_environment_without_tensorflow_a_file_gives_what_keras_gives(exported):
    python = environment_of(exported.file.runtime)
    found = subprocess.run([python, "-c", "import tensorflow"], capture_output=True, text=True)
    assert "No module named 'tensorflow'" in found.stderr
    on_micro = exported.file.runtime == "micro"
    program = PROGRAMS / "stream_on_micro.py" if on_micro else "run_on_device.py"
    assert_as_keras(exported, on_the_device(exported, python, program))


def environment_of(runtime):
    """The Python of an environment with NumPy and the runtime alone."""
    if runtime == "tflite-runtime":
        python, why_not = tflite_runtime()
    else:
        package = {"litert": "ai-edge-litert", "micro": "tflite-micro"}[runtime]
        try:
            python, why_not = environment(package, "numpy", package), None
        except UnavailableError as reason:
            python, why_not = None, str(reason)
    return python or pytest.skip(why_not)
