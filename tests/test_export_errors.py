"""What an export refuses, by the name of the cause and with what to do."""

import importlib.util
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from support import BACKEND

from keras_cosattn import export
from keras_cosattn.export import checks
from keras_cosattn.export.file_metadata import describe

pytestmark = pytest.mark.skipif(BACKEND != "tensorflow", reason="exports need TensorFlow")

CHANNELS = 4


def dense(**options):
    x = keras.Input((None, CHANNELS))
    return keras.Model(x, keras.layers.Dense(3)(x), name="dense", **options)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    model, path = dense(), tmp_path_factory.mktemp("written") / "m.tflite"
    export.to_tflite(model, path)
    return model, path


def test_a_model_that_keras_quantised_is_refused(tmp_path, written):
    model, path = dense(), tmp_path / "m.tflite"
    model.quantize("int8")
    message = (
        r"'dense' was quantised by `model.quantize\('int8'\)`: its layer 'dense.*"
        r"as it was before `quantize`, and quantize='weight_int8'"
    )
    with pytest.raises(ValueError, match=message):
        export.to_tflite(model, path)
    with pytest.raises(ValueError, match=message):
        export.verify(model, written[1])
    assert not list(tmp_path.iterdir())
    export.to_saved_model(model, tmp_path / "m", signatures=["serve"])


def test_ops_without_a_builtin_form_are_named(tmp_path):
    x = keras.Input((None, CHANNELS))
    y = keras.layers.Lambda(tf.math.bessel_i0e, output_shape=(None, CHANNELS))(x)
    with pytest.raises(ValueError, match=r"converter cannot write 'bessel' .*BesselI0e.*builtin"):
        export.to_tflite(keras.Model(x, y, name="bessel"), tmp_path / "m.tflite")
    y = keras.layers.Lambda(tf.math.lgamma, output_shape=(None, CHANNELS))(x)
    with pytest.raises(ValueError, match=r"LiteRT cannot run the file.* It says: .*\(SUB\)"):
        export.to_tflite(keras.Model(x, y), tmp_path / "m.tflite", signatures=["serve"])
    assert not list(tmp_path.iterdir())


def test_lookup_tables_are_refused(tmp_path):
    ids = keras.Input((None,), dtype="int32")
    table = keras.layers.IntegerLookup(vocabulary=[3, 5])
    model = keras.Model(ids, keras.layers.Embedding(3, 2)(table(ids)))
    with pytest.raises(ValueError, match="has lookup tables, which TFLite's builtin ops cannot"):
        export.to_tflite(model, tmp_path / "m.tflite")


def test_what_is_no_built_model_is_refused(tmp_path):
    for write in (export.to_tflite, export.to_saved_model):
        with pytest.raises(TypeError, match=r"must be a Keras model.* Received: 'm.keras'"):
            write("m.keras", tmp_path / "m")
        bare = keras.Sequential([keras.layers.Dense(2)], name="bare")
        with pytest.raises(ValueError, match=r"'bare' is not built. Call it once"):
            write(bare, tmp_path / "m")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": export.Int8}, r"`quantize` must be one of .* Received: <class"),
        ({"target": export.GPU}, r"`target` must be one of .* Received: <class"),
        ({"target": ["gpu"]}, r"`target` must be one of .* Received: \['gpu'\]"),
        ({"signatures": "step"}, r"`signatures` must be some of .* in a list.* Received: 'step'"),
        ({"batch_size": True}, r"`batch_size` must be an integer .* Received: True"),
        ({"length": 2.5}, r"`length` must be an integer of at least 1.* Received: 2.5"),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export.to_tflite(dense(), tmp_path / "m.tflite", **options)


def test_sizes_may_be_numbers_of_numpy(tmp_path):
    sizes = {"length": np.int64(9), "batch_size": np.int32(2)}
    report = export.to_tflite(dense(), tmp_path / "m.tflite", signatures=["serve"], **sizes)
    assert report.signatures["serve"]["inputs"]["x"][0] == [2, 9, CHANNELS]


def test_a_batch_size_that_the_model_cannot_have_is_refused(tmp_path):
    x = keras.Input(batch_shape=(4, None, CHANNELS))
    model = keras.Model(x, keras.layers.Dense(3)(x), name="four")
    with pytest.raises(ValueError, match=r"'four' takes inputs of 4 examples, not `batch_size`=1"):
        export.to_tflite(model, tmp_path / "m.tflite", signatures=["serve"])
    report = export.to_tflite(model, tmp_path / "m.tflite", signatures=["serve"], batch_size=4)
    assert report.signatures["serve"]["inputs"]["x"][0] == [4, None, CHANNELS]


def test_a_missing_package_is_named_before_the_model_is_run(tmp_path, monkeypatch):
    def find_spec(name, *arguments):
        return None if name == "litert_quantizer" else find(name, *arguments)

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(keras.Model, "__call__", lambda *_, **__: pytest.fail("the model ran"))
    with pytest.raises(ImportError, match="pip install litert-quantizer"):
        export.to_tflite(dense(), tmp_path / "m.tflite", quantize="weight_int8")
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(ImportError, match="pip install ai-edge-litert"):
        export.to_tflite(dense(), tmp_path / "m.tflite")


def test_a_file_that_is_missing_or_foreign_is_said_to_be(tmp_path):
    with pytest.raises(ValueError, match=r"there is no such file"):
        describe(tmp_path / "missing.tflite")
    (tmp_path / "foreign.tflite").write_bytes(b"\x1c\x00\x00\x00TFL3")
    with pytest.raises(ValueError, match=r"was not written by keras_cosattn.export"):
        describe(tmp_path / "foreign.tflite")


def test_a_damaged_file_is_not_said_to_be_of_another_model(written, tmp_path):
    model, path = written
    content = bytearray(path.read_bytes())
    content[describe(path)["content"]["bytes"] // 2] ^= 1
    (tmp_path / "m.tflite").write_bytes(content)
    with pytest.raises(ValueError, match=r"m.tflite is damaged: its model is not the one"):
        export.verify(model, tmp_path / "m.tflite")


def test_verify_does_not_speak_of_a_file_that_was_not_kept(written):
    keras.utils.set_random_seed(1)
    other = dense()
    with pytest.raises(ValueError, match=r"an export of 'dense' computes something else") as caught:
        export.verify(other, written[1])
    assert "not kept" not in str(caught.value)
    assert "Was the model trained since" in str(caught.value)


def test_a_model_that_gives_infinities_is_not_said_to_differ(tmp_path):
    x = keras.Input((None, CHANNELS))
    model = keras.Model(x, keras.layers.Lambda(lambda x: 1.0 / tf.nn.relu(x))(x))
    report = export.to_saved_model(model, tmp_path / "m", signatures=["serve"])
    assert report.largest_difference < 1e-5
    infinite = {"y": np.array([1.0, np.inf])}
    assert checks.sqnr([(infinite, infinite)]) == checks.BEST_SQNR
    assert np.isnan(checks.sqnr([(infinite, {"y": np.array([1.0, 2.0])})]))
    assert np.isnan(checks.largest_difference([({"y": np.array([1.0, 2.0])}, infinite)]))


def test_data_that_do_not_fit_are_refused(written):
    model, path = written
    x = np.ones((2, 5, CHANNELS), "float32")
    with pytest.raises(ValueError, match=r"needs one label.*labels of shape \(2,\).*a `metric`"):
        export.verify(model, path, dataset=[(x, np.zeros(2))], verbose=0)
    with pytest.raises(ValueError, match=r"`drift_steps` must be at least 10, or 0. Received: 5"):
        export.verify(model, path, drift_steps=5, verbose=0)
    with pytest.raises(ValueError, match=r"`count` must be at least 1. Received: 0"):
        export.representative_data([x], count=0)


def test_a_model_in_float64_is_built_again_in_float32(tmp_path):
    x = keras.Input((None, CHANNELS), dtype="float64")
    model = keras.Model(x, keras.layers.Dense(3, dtype="float64")(x))
    report = export.to_tflite(model, tmp_path / "m.tflite", signatures=["serve"])
    assert report.signatures["serve"]["inputs"]["x"][1] == "float32"
    assert report.largest_difference < 1e-5


def test_a_tokenizer_that_fails_is_not_said_to_give_too_many_ids(tmp_path):
    def failing(text):
        with tf.control_dependencies([tf.debugging.Assert(tf.size(text) < 2, ["too many texts"])]):
            return tf.strings.length(text)[:, None]

    x = keras.Input((None,), dtype="int32")
    model = keras.Model(x, keras.layers.Embedding(300, 4)(x))
    with pytest.raises(ValueError, match=r"The tokenizer fails for one of .*too many texts"):
        export.to_saved_model(model, tmp_path / "m", tokenizer=failing)
