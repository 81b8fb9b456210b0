"""Files that compute what the model computes, run without Keras, and are whole or not there."""

import json
import pathlib
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from support import BACKEND, assert_close
from variants import BIDIRECTIONAL, CASES, LOOPS, STREAMING, inputs, layer_of

import keras_cosattn
from keras_cosattn import (
    CausalConv1D,
    CosFormerAttention,
    PositionEmbedding,
    RunningMean,
    SoftmaxAttention,
    TransformerDecoder,
    TransformerEncoder,
)
from keras_cosattn import export as exporting
from keras_cosattn.export import checks, signatures
from keras_cosattn.export.tflite_graph import TFLiteGraph

RECIPES = pathlib.Path(exporting.__file__).parent
PROGRAMS = pathlib.Path(__file__).parent / "programs"
CHANNELS = 6

pytestmark = pytest.mark.skipif(BACKEND != "tensorflow", reason="exports need TensorFlow")


def causal(attention):
    x = keras.Input((None, CHANNELS))
    y = PositionEmbedding(400)(CausalConv1D(8, 3)(x))
    y = TransformerDecoder(16, attention=attention, normalize_first=True)(y)
    return keras.Model(x, keras.layers.Dense(3)(RunningMean()(y)), name="causal")


def bidirectional():
    x = keras.Input((None, CHANNELS))
    y = TransformerEncoder(16, attention=CosFormerAttention(2, 4, max_length=200))(x)
    return keras.Model(x, keras.layers.GlobalAveragePooling1D()(y), name="bidirectional")


@pytest.fixture(scope="module")
def model():
    return causal(CosFormerAttention(2, 4, horizon=8))


@pytest.fixture(scope="module")
def tflite(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "model.tflite"
    return path, exporting.to_tflite(model, path, prefill_chunk=32)


@pytest.mark.parametrize("case", STREAMING)
@pytest.mark.sample(16)
def test_every_streaming_variant_becomes_a_tflite_file_of_builtins(case, tmp_path, rng):
    from ai_edge_litert.interpreter import Interpreter

    cls, arguments = CASES[case]
    model = causal(layer_of(cls, 4, 5, num_key_value_heads=2, **arguments))
    path = tmp_path / "model.tflite"
    signatures = ["prefill", "step"] if case in LOOPS else None
    batch = 1 if case in LOOPS else None
    report = exporting.to_tflite(model, path, signatures=signatures, batch_size=batch)
    assert set(report.differences) == {*(signatures or ["serve", "prefill", "step"])}
    assert set(report.signatures) == {*report.differences, "init"}
    # The norm of a head divides by a number that may be 300 times smaller than what it is made of.
    close = 1e-4 if cls.__name__ == "DeltaRuleAttention" else 1e-5
    assert report.largest_difference < close
    interpreter = Interpreter(str(path))
    names = {op["op_name"] for op in interpreter._get_ops_details()}
    assert not [name for name in names if name.startswith("Flex")]
    if case in LOOPS:
        return
    serve = interpreter.get_signature_runner("serve")
    for b, t in ((1, 1), (3, 131), (2, 13)):  # any batch and length, and back to a shorter one
        x = inputs(rng, b, t, CHANNELS)
        assert_close(serve(x=x)["y"], model(x), close)


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[pytest.mark.slow] if c in STREAMING else []) for c in BIDIRECTIONAL],
)
def test_every_variant_that_looks_both_ways_becomes_a_tflite_file_of_builtins(case, tmp_path, rng):
    from ai_edge_litert.interpreter import Interpreter

    cls, arguments = CASES[case]
    x = keras.Input((None, CHANNELS))
    model = keras.Model(x, layer_of(cls, 4, 5, num_key_value_heads=2, **arguments)(x, x))
    report = exporting.to_tflite(model, tmp_path / "model.tflite", batch_size=None)
    assert set(report.differences) == {"serve"}
    interpreter = Interpreter(str(tmp_path / "model.tflite"))
    names = {op["op_name"] for op in interpreter._get_ops_details()}
    assert not [name for name in names if name.startswith("Flex")]
    serve = interpreter.get_signature_runner("serve")
    for b, t in ((1, 1), (3, 29), (2, 13)):
        x = inputs(rng, b, t, CHANNELS)
        assert_close(serve(x=x)["y"], model(x), 1e-5)


def test_a_chunk_of_seven_steps_converts(tmp_path):
    """The converter makes RELU6, which takes floats only, of an index clipped to 0 to 6."""
    one = keras.Input((None, 8))
    model = keras.Model(one, SoftmaxAttention(2, 4, max_length=16)(one, one, use_causal_mask=True))
    path = tmp_path / "m.tflite"
    exporting.to_tflite(model, path, signatures=["prefill"], prefill_chunk=7)
    assert path.exists()


def test_a_signature_is_traced_once(model, tmp_path, monkeypatch):
    traced, call = [], signatures.Serve.__call__
    monkeypatch.setattr(
        signatures.Serve, "__call__", lambda self, x: [traced.append(x), call(self, x)][1]
    )
    exporting.to_tflite(model, tmp_path / "m.tflite", signatures=["serve"])
    assert len(traced) == 1


def test_weights_are_stored_once(tmp_path):
    x = keras.Input((None, CHANNELS))
    y = keras.layers.Dense(300)(keras.layers.Dense(300)(x))
    model = keras.Model(x, TransformerDecoder(8, attention=CosFormerAttention(1, 2, horizon=8))(y))
    report = exporting.to_tflite(model, tmp_path / "model.tflite")
    weights = 4 * model.count_params()
    assert weights < report.size < 1.7 * weights


class Logits(keras.layers.Layer):
    """A head with the table that reads the tokens."""

    def __init__(self, table, **kwargs):
        super().__init__(**kwargs)
        self.table = table

    def call(self, x):
        return keras.ops.matmul(x, keras.ops.transpose(self.table.embeddings))


def test_a_quantised_file_has_one_table_for_all_signatures(tmp_path):
    ids, table = keras.Input((None,), dtype="int32"), keras.layers.Embedding(500, 64)
    x = table(ids)
    x = CosFormerAttention(2, 32, horizon=8)(x, x, use_causal_mask=True)
    path = tmp_path / "model.tflite"
    exporting.to_tflite(keras.Model(ids, Logits(table)(x)), path, quantize="weight_int8")
    buffers = TFLiteGraph(path.read_bytes()).model.buffers
    sizes = [len(buffer.data) for buffer in buffers if buffer.data is not None]
    assert (sizes.count(500 * 64 * 4), sizes.count(500 * 64)) == (1, 1)


def test_constants_outside_the_tables_of_a_large_file_are_arrays(tflite, monkeypatch):
    """LiteRT's tool reads them as bytes, and packs these one at a time."""
    from ai_edge_litert.tools import flatbuffer_utils

    read = flatbuffer_utils.read_model_from_bytearray

    def as_bytes(content):
        model = read(content)
        for buffer in model.buffers:
            buffer.data = None if buffer.data is None else bytes(buffer.data)
        return model

    content = tflite[0].read_bytes()
    packed = TFLiteGraph(content).pack()
    monkeypatch.setattr(flatbuffer_utils, "read_model_from_bytearray", as_bytes)
    graph = TFLiteGraph(content)
    assert {type(buffer.data) for buffer in graph.model.buffers} <= {np.ndarray, type(None)}
    assert graph.pack() == packed


def test_a_bidirectional_model_gets_one_signature_and_the_reason(tmp_path):
    for export, name in ((exporting.to_tflite, "m.tflite"), (exporting.to_saved_model, "m")):
        report = export(bidirectional(), tmp_path / name)
        batch = report.batch_size
        assert list(report.signatures) == ["serve"]
        assert report.signatures["serve"]["inputs"] == {"x": [[batch, None, CHANNELS], "float32"]}
        assert report.signatures["serve"]["outputs"] == {"y": [[batch, CHANNELS], "float32"]}
        assert "it looks ahead" in report.whole_only


def test_a_saved_model_streams_in_a_process_without_keras_or_this_package(model, tmp_path, rng):
    path = tmp_path / "saved"
    report = exporting.to_saved_model(model, path)
    assert report.largest_difference < 1e-5
    x = inputs(rng, 3, 20, CHANNELS)
    np.save(tmp_path / "x.npy", x)
    command = [
        sys.executable, PROGRAMS / "without_modules.py", "keras,keras_cosattn",
        PROGRAMS / "stream_saved_model.py", path, "x.npy", "y.npy",
    ]  # fmt: skip
    subprocess.run(command, cwd=tmp_path, check=True)
    assert_close(np.load(tmp_path / "y.npy"), model(x), 1e-5)


def test_a_file_describes_itself(model, tflite):
    path, report = tflite
    about = exporting.describe(path)
    assert about["versions"]["keras_cosattn"] == keras_cosattn.__version__
    assert about["state_bytes"] == report.state_bytes
    assert about["max_steps"] == 400
    assert set(about["signatures"]["step"]["inputs"]) == {"x", *about["state"]}
    assert about["signatures"]["step"]["outputs"]["y"] == [[1, 1, 3], "float32"]
    with zipfile.ZipFile(path) as archive:
        assert json.loads(archive.read("keras_cosattn.json")) == about


def test_verify_accepts_its_file_and_refuses_other_weights(model, tflite, tmp_path):
    assert exporting.verify(model, tflite[0]).largest_difference < 1e-5
    other = keras.models.clone_model(model)
    other.name = "other"
    with pytest.raises(ValueError, match=r"export of 'other' computes something else"):
        exporting.verify(other, tflite[0])
    (tmp_path / "foreign.tflite").write_bytes(b"TFL3 junk")
    for path in (tmp_path / "foreign.tflite", tmp_path / "missing.tflite", tmp_path):
        with pytest.raises(ValueError, match=r"has no description"):
            exporting.verify(model, path)


@pytest.mark.parametrize("name", ["m.tflite", "m"])
def test_a_wrong_export_is_not_kept_and_an_old_one_stays_whole(name, tmp_path, monkeypatch):
    export = exporting.to_tflite if "." in name else exporting.to_saved_model
    model = keras.Sequential([keras.Input((None, CHANNELS)), keras.layers.Dense(3)])
    path = tmp_path / name
    export(model, path, signatures=["serve"])
    files = sorted(f for f in tmp_path.rglob("*") if f.is_file())
    before = [file.read_bytes() for file in files]
    monkeypatch.setattr(checks, "largest_difference", lambda *_: float("nan"))
    with pytest.raises(ValueError, match=r"computes something else"):
        export(model, path, signatures=["serve"])
    assert sorted(f for f in tmp_path.rglob("*") if f.is_file()) == files
    assert [file.read_bytes() for file in files] == before
    monkeypatch.undo()
    export(model, path, signatures=["serve"])  # replaces the old one
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("export", [exporting.to_tflite, exporting.to_saved_model])
def test_an_unwritable_path_is_refused_before_work_is_lost(export, model, tmp_path):
    with pytest.raises(OSError, match=r"Cannot write .* Its folder must exist"):
        export(model, tmp_path / "nowhere" / "model")
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(OSError, match=r"there, it is a folder|folder with other things in it"):
        export(model, folder)
    assert (folder / "thesis.txt").exists()


def test_what_cannot_be_exported_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match=r"cannot stream: .*looks ahead"):
        exporting.to_tflite(bidirectional(), tmp_path / "m.tflite", signatures=["step"])
    with pytest.raises(ValueError, match=r"`signatures` must be some of .* Received: \['run'\]"):
        exporting.to_tflite(model, tmp_path / "m.tflite", signatures=["run"])
    assert not list(tmp_path.iterdir())


def test_the_runner_needs_neither_tensorflow_nor_keras(tflite):
    command = [
        sys.executable, PROGRAMS / "without_modules.py", "tensorflow,keras,keras_cosattn",
        PROGRAMS / "step_on_device.py", RECIPES, tflite[0], CHANNELS,
    ]  # fmt: skip
    subprocess.run([*map(str, command)], check=True)
