"""On tflite-micro: what Keras says at every step, in a small arena; or a clear refusal."""

import sys

import keras
import numpy as np
import pytest
from support import BACKEND, assert_close
from variants import inputs

from keras_cosattn import CausalConv1D, CosFormerAttention, PositionEmbedding, TransformerDecoder
from keras_cosattn.export import checks, file_runners, to_tflite, verify
from keras_cosattn.export.micro_arena import micro_arena

runtime = pytest.importorskip("tflite_micro", reason="needs the extra `micro`").runtime

CHANNELS, STEPS = 6, 60
ARENA = 96 * 1024

pytestmark = pytest.mark.skipif(BACKEND != "tensorflow", reason="exports need TensorFlow")


def sensor(activation="relu"):
    """As examples/watch_model.py builds it."""
    x = y = keras.Input((None, CHANNELS))
    for size, dilation in ((9, 1), (5, 4)):
        y = CausalConv1D(32, size, dilation_rate=dilation, activation="relu")(y)
    attention = CosFormerAttention(2, 16, horizon=16)
    block = TransformerDecoder(64, attention=attention, activation=activation, normalize_first=True)
    return keras.Model(x, keras.layers.Dense(7)(keras.layers.LayerNormalization()(block(y))))


def convolution(activation=None):
    x = keras.Input((None, CHANNELS))
    y = CausalConv1D(8, 3, activation=activation)(x)
    return keras.Model(x, keras.layers.Dense(3)(y), name="convolution")


@pytest.fixture(scope="module")
def model():
    return sensor()


@pytest.fixture(scope="module")
def x():
    return inputs(np.random.default_rng(0), 1, STEPS, CHANNELS)


class Chip:
    """One stream through a file; tensors have the places that the report lists them in."""

    def __init__(self, report):
        self.micro = runtime.Interpreter.from_file(report.path, arena_size=report.arena_bytes)
        (sides,) = report.signatures.values()
        self._names = list(sides["inputs"]), list(sides["outputs"])
        self._state = {name: np.zeros(*sides["inputs"][name]) for name in self._names[0][1:]}

    def read(self, x):
        outputs = []
        for step in np.split(x, x.shape[1], axis=1):
            for i, name in enumerate(self._names[0]):
                self.micro.set_input({"x": step, **self._state}[name], i)
            self.micro.invoke()
            found = {name: self.micro.get_output(i) for i, name in enumerate(self._names[1])}
            self._state = {name: found[name] for name in self._state}
            outputs.append(found["y"])
        return np.concatenate(outputs, axis=1)


@pytest.mark.parametrize("state", ["tensors", "variables"])
def test_every_prediction_of_a_stream_is_that_of_keras(state, model, x, tmp_path):
    report = to_tflite(model, tmp_path / "m.tflite", target="micro", state=state)
    assert 0 < report.arena_bytes < ARENA
    assert list(report.signatures) == ["step"]
    chip, expected = Chip(report), np.asarray(model(x))
    found = chip.read(x)
    assert_close(found, expected, 1e-5)
    np.testing.assert_array_equal(found.argmax(-1), expected.argmax(-1))
    if state == "variables":
        assert np.abs(chip.read(x) - expected).max() > 0.1  # the stream goes on
        chip.micro.reset()
        np.testing.assert_array_equal(chip.read(x), found)


def test_a_tiny_model_of_bytes_gets_an_arena_in_which_it_runs(tmp_path, rng):
    """It ends where an index is none, and where the arena is smaller still than the model."""
    codes = keras.Input((None,), dtype="int32")
    y = PositionEmbedding(STEPS)(keras.layers.Embedding(256, 4)(codes))
    model = keras.Model(codes, keras.layers.Dense(3)(y))
    report = to_tflite(model, tmp_path / "m.tflite", target="micro")
    x = rng.integers(0, 256, (1, STEPS)).astype("int32")
    assert_close(Chip(report).read(x), model(x), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["weight_int8", "int8"])
def test_a_quantised_stream_is_near_that_of_keras(quantize, model, x, tmp_path):
    data = [inputs(np.random.default_rng(i), 1, STEPS, CHANNELS) for i in range(1, 4)]
    report = to_tflite(
        model, tmp_path / "m.tflite", target="micro", quantize=quantize, representative_data=data
    )
    assert report.size < 60_000
    assert 0 < report.arena_bytes < ARENA
    expected = np.asarray(model(x))
    assert checks.sqnr([({"y": expected}, {"y": Chip(report).read(x)})]) > 20


def test_int8_weights_of_channels_of_very_different_size_are_right(tmp_path):
    """tflite-micro turns int8 weights back with one scale."""
    model = convolution()
    kernel = model.layers[-1].kernel
    kernel.assign(kernel * [0.1, 1.0, 3.0])
    report = to_tflite(model, tmp_path / "m.tflite", target="micro", quantize="weight_int8")
    assert report.sqnr["step"] > 30


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (lambda: convolution("gelu"), {}, r"lacks ops .*\['GELU'\].* relu or silu for GELU"),
        (convolution, {"batch_size": None}, r"'micro' needs fixed shapes. Give `batch_size`"),
        (convolution, {"signatures": ["serve"]}, r"Give `length`.*batch_size=1, length=None"),
        (convolution, {"signatures": ["serve", "step"], "length": 9}, r"one signature a file"),
        (convolution, {"quantize": "float16"}, r"for the target 'micro'. Received: 'float16'"),
        (convolution, {"quantize": "dynamic_int8"}, r"'micro'. Received: 'dynamic_int8'"),
        (
            convolution,
            {"quantize": "int8", "state": "variables", "representative_data": [np.ones((1, 9, 6))]},
            r"Give state='tensors', or quantize='weight_int8'. Received: state='variables'",
        ),
    ],
)
def test_what_it_does_not_run_is_refused_and_not_kept(build, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        to_tflite(build(), tmp_path / "m.tflite", target="micro", **options)
    assert not list(tmp_path.iterdir())


def test_what_ends_its_process_is_an_error_here():
    with pytest.raises(ValueError, match=r"tflite-micro cannot run the model. It says: "):
        micro_arena(bytes(1000))


def test_without_tflite_micro_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tflite_micro", None)
    with pytest.raises(ImportError, match="pip install tflite-micro"):
        to_tflite(convolution(), tmp_path / "m.tflite", target="micro")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("state", ["tensors", "variables"])
@pytest.mark.sample(2)
def test_verify_runs_every_stream_from_its_start_on_tflite_micro(
    state, model, tmp_path, rng, monkeypatch
):
    to_tflite(model, tmp_path / "m.tflite", target="micro", state=state)
    monkeypatch.delattr(file_runners, "tflite_runner")
    streams = [inputs(rng, 1, STEPS, CHANNELS) for _ in range(4)]
    labelled = [(x, np.asarray(model(x)).argmax(-1)) for x in streams]
    report = verify(model, tmp_path / "m.tflite", dataset=labelled, verbose=0)
    assert report.accuracy == {"keras": 1.0, "file": 1.0}
    assert report.largest_difference < 1e-5
