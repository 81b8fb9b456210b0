"""An exported file says how many steps it takes."""

import keras
import pytest
from support import BACKEND

from keras_cosattn import (
    CosFormerAttention,
    LowRankAttention,
    PositionEmbedding,
    TransformerDecoder,
    export,
    limits,
)
from keras_cosattn.export.export_plan import make_plan

CHANNELS, LIMIT = 4, 40

pytestmark = pytest.mark.skipif(BACKEND != "tensorflow", reason="exports need TensorFlow")


class Limited(keras.layers.Layer):
    """Takes at most `LIMIT` steps, as `keras_cosattn.limits` asks of layers."""

    def call(self, x):
        return limits.check_steps(x, x.shape[1], LIMIT, self.name, "Use fewer steps.")


def model_of(*layers, length=None):
    x = y = keras.Input((length, CHANNELS))
    for layer in layers:
        y = layer(y, y) if hasattr(layer, "num_heads") else layer(y)
    return keras.Model(x, y)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: CosFormerAttention(2, 4, max_length=LIMIT),
        lambda: LowRankAttention(2, 4, max_length=LIMIT, rank=8),
        lambda: PositionEmbedding(LIMIT),
        Limited,
    ],
)
def test_a_file_records_the_limit_of_its_layer(layer, tmp_path):
    model = model_of(layer())
    report = export.to_saved_model(model, tmp_path / "m", signatures=["serve"])
    assert report.max_whole_steps == LIMIT
    assert export.describe(tmp_path / "m")["max_whole_steps"] == LIMIT
    assert f"serve: up to {LIMIT} valid steps" in str(report)


def test_a_tflite_file_records_both_limits(tmp_path):
    x = keras.Input((None, CHANNELS))
    attention = CosFormerAttention(2, 4, max_length=LIMIT)
    model = keras.Model(x, TransformerDecoder(8, attention=attention)(PositionEmbedding(50)(x)))
    report = export.to_tflite(model, tmp_path / "m.tflite", length=12, prefill_chunk=4)
    about = export.describe(tmp_path / "m.tflite")
    assert (about["max_steps"], about["max_whole_steps"]) == (LIMIT, LIMIT)
    assert (report.max_steps, report.max_whole_steps) == (LIMIT, LIMIT)


def test_a_file_without_limits_or_without_serve_records_none(tmp_path):
    endless = model_of(keras.layers.Dense(3))
    report = export.to_saved_model(endless, tmp_path / "m")
    assert (report.max_steps, report.max_whole_steps) == (None, None)
    assert "valid steps" not in str(report)
    x = keras.Input((None, CHANNELS))
    attention = CosFormerAttention(2, 4, max_length=LIMIT)
    stream = keras.Model(x, attention(x, x, use_causal_mask=True))
    report = export.to_tflite(stream, tmp_path / "m.tflite", signatures=["step"])
    assert (report.max_steps, report.max_whole_steps) == (LIMIT, None)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("pool", "steps"), [(2, 70), (2, 71), (3, 11), (4, 70)])
def test_layers_that_stride_multiply_the_limit(padding, pool, steps):
    model = model_of(keras.layers.AveragePooling1D(pool, padding=padding), Limited())
    sample = keras.ops.convert_to_numpy(keras.ops.ones((1, steps, CHANNELS)))
    found = make_plan(model, sample).max_whole_steps
    exact = LIMIT * pool + (pool - 1 if padding == "valid" else 0)
    assert 0.85 * exact < found <= exact
    model(keras.ops.ones((1, found, CHANNELS)))


def test_a_model_of_one_length_has_the_limit_of_its_layers():
    model = model_of(keras.layers.AveragePooling1D(2), Limited(), length=20)
    assert make_plan(model).max_whole_steps == 2 * LIMIT
