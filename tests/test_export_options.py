"""Sizes, forms of the state, numbers and targets: what is asked for is what the file has."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf
from support import BACKEND, assert_close
from variants import inputs

from keras_cosattn import (
    CompressiveMemoryAttention,
    CosFormerAttention,
    SoftmaxAttention,
    Streaming,
    TransformerDecoder,
    TransformerEncoder,
)
from keras_cosattn import export as exporting
from keras_cosattn.export import checks, file_runners
from keras_cosattn.export.calibration import calibration_calls
from keras_cosattn.export.check_inputs import stream_check
from keras_cosattn.export.export_options import ExportOptions
from keras_cosattn.export.export_plan import make_plan
from keras_cosattn.export.file_runners import interpreter_class, tflite_runner
from keras_cosattn.export.fill_rewrite import fill_constants
from keras_cosattn.export.run_on_device import Device
from keras_cosattn.export.tflite_graph import TFLiteGraph

CHANNELS = 6

pytestmark = pytest.mark.skipif(BACKEND != "tensorflow", reason="exports need TensorFlow")


def causal(dtype=None, horizon=8, units=3, max_length=None, key_dim=4):
    keras.utils.set_random_seed(0)
    x = keras.Input((None, CHANNELS))
    y = keras.layers.Dense(units, dtype=dtype)(x) if units > 3 else x
    attention = CosFormerAttention(2, key_dim, horizon=horizon, max_length=max_length, dtype=dtype)
    y = TransformerDecoder(16, attention=attention, normalize_first=True, dtype=dtype)(y)
    return keras.Model(x, keras.layers.Dense(units, dtype="float32")(y), name="causal")


def classifier(blocks=2):
    keras.utils.set_random_seed(0)
    x = keras.Input((None, CHANNELS))
    y = keras.layers.EinsumDense("btm,mf->btf", output_shape=(None, 8))(x)
    for _ in range(blocks):
        attention = CosFormerAttention(2, 4, max_length=200)
        y = TransformerEncoder(16, attention=attention, normalize_first=True)(y)
    return keras.Model(x, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling1D()(y)))


@pytest.mark.parametrize(
    ("dtype", "state_form"), [("int8", "tensors"), ("int8", "variables"), ("int16", "tensors")]
)
@pytest.mark.sample(3)
def test_a_state_in_integers_is_that_of_the_stream(dtype, state_form, tmp_path, rng):
    model, path, x = causal(key_dim=8), tmp_path / "m.tflite", inputs(rng, 1, 20, CHANNELS)
    report = exporting.to_tflite(
        model, path, prefill_chunk=8, length=20, state=state_form, state_dtype=dtype
    )
    stream = Streaming(model, state_dtype=dtype)
    assert report.state_dtype == dtype
    assert report.state_bytes == stream.state_bytes < Streaming(model).state_bytes / 1.5
    assert report.sqnr["serve"] > 115 > report.sqnr["step"] > checks.STATE_SQNR[dtype]
    device, state = Device(path), stream.initial_state(1)
    for start, end in [(0, 8), *((i, i + 1) for i in range(8, 20))]:
        y, state = stream(x[:, start:end], state)
        assert_close(device.read(x[:, start:end]), y, 2 / {"int8": 127, "int16": 32767}[dtype])
    assert exporting.verify(model, path, verbose=0).state_dtype == dtype


@pytest.mark.slow
def test_a_state_in_integers_runs_on_micro_and_in_a_saved_model(tmp_path):
    pytest.importorskip("tflite_micro")
    report = exporting.to_tflite(
        causal(key_dim=8), tmp_path / "m", target="micro", state_dtype="int8"
    )
    assert report.sqnr["step"] > checks.STATE_SQNR["int8"]
    report = exporting.to_saved_model(causal(key_dim=8), tmp_path / "s", state_dtype="int16")
    assert 130 > report.sqnr["step"] > checks.STATE_SQNR["int16"]
    assert exporting.verify(causal(key_dim=8), tmp_path / "s", verbose=0).state_dtype == "int16"


def test_a_gpu_has_no_state_in_integers(tmp_path):
    with pytest.raises(ValueError, match=r"GPU delegates do not run .*CAST of INT8.*ROUND"):
        exporting.to_tflite(
            causal(key_dim=8), tmp_path / "m", target="gpu", length=20, state_dtype="int8"
        )
    with pytest.raises(ValueError, match="`state_dtype` must be one of"):
        exporting.to_tflite(causal(), tmp_path / "m", state_dtype="int4")
    with pytest.raises(ValueError, match="TFLite has no int16 variables"):
        exporting.to_tflite(causal(), tmp_path / "m", state="variables", state_dtype="int16")
    assert not [*tmp_path.iterdir()]


@pytest.fixture(scope="module")
def step_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("step") / "step.tflite"
    model = causal()
    return model, path, exporting.to_tflite(model, path, signatures=["step"])


def test_a_fixed_size_is_one_delegated_part_and_any_length_at_most_three(tmp_path, rng):
    model, path = classifier(), tmp_path / "m.tflite"
    fixed = exporting.to_tflite(model, path, length=33)
    assert fixed.partitions == {"serve": 1}
    assert fixed.signatures["serve"]["inputs"]["x"] == [[1, 33, CHANNELS], "float32"]
    x = inputs(rng, 1, 33, CHANNELS)
    assert_close(tflite_runner(path)("serve", {"x": x})["y"], model(x), 1e-5)
    free = exporting.to_tflite(model, path)
    assert 1 < free.partitions["serve"] <= 3
    run = tflite_runner(path)
    for t in (150, 1, 33):
        x = inputs(rng, 1, t, CHANNELS)
        assert_close(run("serve", {"x": x})["y"], model(x), 1e-5)


def test_a_stream_is_one_delegated_part_too(tmp_path):
    model, path = causal(horizon=None, max_length=200), tmp_path / "m.tflite"
    report = exporting.to_tflite(model, path, signatures=["prefill", "step"], prefill_chunk=40)
    assert report.partitions == {"prefill": 1, "step": 1, "init": 0}
    interpreter = interpreter_class()(model_path=str(path))
    interpreter.allocate_tensors()  # which delegates all graphs, or none if the first has no ops
    assert "DELEGATE" in [op["op_name"] for op in interpreter._get_ops_details()]


@pytest.mark.parametrize("target", ["litert", "tflite-runtime"])
def test_a_file_does_not_hold_the_zeros_of_its_state(target, tmp_path):
    x = keras.Input((None, CHANNELS))
    y = TransformerDecoder(16, attention=SoftmaxAttention(2, 4, max_length=3000))(x)
    options = {"signatures": ["step"], "target": target}
    report = exporting.to_tflite(keras.Model(x, y), tmp_path / "m.tflite", **options)
    assert report.size < report.state_bytes / 5
    zeros = tflite_runner(tmp_path / "m.tflite")("init", {})
    assert set(zeros) == set(report.state)
    assert sum(x.nbytes for x in zeros.values()) == report.state_bytes
    assert not any(x.any() for x in zeros.values())


def test_only_constants_of_one_number_are_filled():
    held = {
        "zeros": np.zeros(100, "float32"), "ones": np.ones((2, 50), "int32"),
        "truth": np.zeros(100, "bool"), "table": np.arange(100, dtype="float32"),
    }  # fmt: skip
    function = tf.function(lambda: {name: tf.constant(x) for name, x in held.items()})
    module = tf.Module()
    module.function = function
    concrete = function.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)
    graph = TFLiteGraph(converter.convert())
    fill_constants(graph)
    assert [name for name, *_ in graph.operators()] == ["FILL", "FILL"]
    interpreter = interpreter_class()(model_content=graph.pack())
    found = interpreter.get_signature_runner()()
    for name, x in held.items():
        np.testing.assert_array_equal(found[name], x, strict=True)


def test_a_short_sample_is_repeated_until_every_signature_has_its_steps():
    sample = np.ones((1, 9, CHANNELS), "float32")
    plan = make_plan(causal(), sample, ExportOptions(prefill_chunk=40))
    pieces, given, expected = stream_check(plan)
    assert pieces[:2] == [("prefill", 0, 40), ("step", 40, 41)]
    assert given["x"].shape[1] == expected["y"].shape[1] == pieces[-1][-1]


def test_calibration_sees_what_happens_once_in_any_number_of_steps():
    examples = [np.tile(np.arange(256.0)[None, :, None], (1, 1, CHANNELS))] * 4
    plan = make_plan(causal(), examples[0], ExportOptions(["step"]))
    calls = calibration_calls(plan, lambda name, given: given, examples)
    taken = {int(given["x"][0, 0, 0]) for _, given in calls}
    assert len(calls) < 4 * 100
    for period in range(1, 65):
        assert taken & set(range(period - 1, 256, period)), period


def test_a_stream_begins_with_init_or_reset(tmp_path, rng, step_file):
    model, path, report = step_file
    x = inputs(rng, 1, 9, CHANNELS)
    expected = np.asarray(model(x))
    run = tflite_runner(path)
    state, found = run("init", {}), []
    assert set(state) == set(report.state)
    for i in range(9):
        outputs = run("step", {"x": x[:, i : i + 1], **state})
        found.append(outputs.pop("y"))
        state = outputs
    assert_close(np.concatenate(found, axis=1), expected, 1e-5)

    kept = exporting.to_tflite(model, tmp_path / "v.tflite", signatures=["step"], state="variables")
    assert set(kept.signatures) == {"step", "reset"}
    assert set(kept.signatures["step"]["inputs"]) == {"x"}
    assert kept.weights == report.weights
    run = tflite_runner(tmp_path / "v.tflite")
    for _ in range(2):  # the second time only a reset makes it right
        found = [run("step", {"x": x[:, i : i + 1]})["y"] for i in range(9)]
        assert_close(np.concatenate(found, axis=1), expected, 1e-5)
        run("reset", {})


def test_prefill_takes_one_chunk_of_at_most_what_the_stream_holds(tmp_path):
    x = keras.Input((None, CHANNELS))
    layer = CosFormerAttention(2, 4, max_length=20)
    model = keras.Model(x, layer(x, x, use_causal_mask=True))
    report = exporting.to_tflite(model, tmp_path / "m.tflite", signatures=["prefill", "step"])
    assert report.signatures["prefill"]["inputs"]["x"][0] == [1, 20, CHANNELS]
    assert set(report.differences) == {"prefill", "step"}


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.sample(2)
def test_a_half_precision_model_is_built_again_in_float32(dtype, tmp_path, step_file):
    full, _, _ = step_file
    half = causal(dtype)
    half.set_weights(full.get_weights())
    report = exporting.to_tflite(half, tmp_path / "m.tflite", signatures=["step"])
    assert report.largest_difference < 1e-5
    assert half.layers[1].compute_dtype == dtype.removeprefix("mixed_")
    exporting.verify(full, tmp_path / "m.tflite", verbose=0)


def test_half_precision_that_cannot_be_rebuilt_is_refused(tmp_path):
    class Bare(keras.Model):
        def __init__(self):
            super().__init__(dtype="mixed_float16")
            self.dense = keras.layers.Dense(2, dtype="mixed_float16")

        def call(self, x):
            return self.dense(x)

    model, x = Bare(), np.zeros((2, 12, CHANNELS), "float32")
    model(x)
    with pytest.raises(ValueError, match=r"compute in float32. 'bare' computes in .*float16"):
        exporting.to_tflite(model, tmp_path / "m.tflite", sample=x)
    assert not list(tmp_path.iterdir())


def test_every_kind_of_numbers_is_smaller_and_keeps_its_distance(tmp_path, rng):
    model = causal(horizon=64, units=64)
    data = [inputs(rng, 1, 64, CHANNELS) for _ in range(2)]
    sizes = {}
    for quantize in (None, "float16", "weight_int8", "dynamic_int8", "int8"):
        path = tmp_path / f"{quantize}.tflite"
        report = exporting.to_tflite(
            model, path, quantize=quantize, signatures=["step"], representative_data=data
        )
        sizes[quantize] = report.size
        assert report.quantize == quantize
        assert (report.sqnr["step"] > 100) == (quantize is None)
    assert all(size < sizes[None] for name, size in sizes.items() if name)


def test_representative_data_are_the_first_examples_of_all_batches(rng):
    x = inputs(rng, 10, 7, CHANNELS)
    for dataset in (
        tf.data.Dataset.from_tensor_slices((x, np.zeros(10))).batch(4),
        iter([x[:3], x[3:]]),
    ):
        found = exporting.representative_data(dataset, count=6)
        assert_close(np.concatenate(found), x[:6], 0)
        assert {example.shape for example in found} == {(1, 7, CHANNELS)}


def test_float16_keeps_a_row_that_sums_to_nothing_finite(tmp_path):
    """Small constants of the graph must not become zero with the weights."""
    model = causal()
    model.layers[1].set_weights([np.zeros_like(w) for w in model.layers[1].get_weights()])
    exporting.to_tflite(model, tmp_path / "m.tflite", quantize="float16", signatures=["step"])
    run = tflite_runner(tmp_path / "m.tflite")
    found = run("step", {"x": np.ones((1, 1, CHANNELS), "float32"), **run("init", {})})
    assert np.isfinite(found["y"]).all()


def test_an_export_prints_and_logs_nothing(tmp_path, capsys, caplog):
    handlers = logging.getLogger().handlers
    for quantize in ("float16", "int8"):
        exporting.to_tflite(
            causal(units=64), tmp_path / "m.tflite", signatures=["prefill", "step"],
            prefill_chunk=8, quantize=quantize,
            representative_data=[np.ones((1, 9, CHANNELS), "float32")],
        )  # fmt: skip
    assert tuple(capsys.readouterr()) == ("", "")
    assert not caplog.records
    assert logging.getLogger().handlers is handlers


def test_verify_prints_the_accuracy_and_the_drift(step_file, rng, capsys):
    model, path, _ = step_file
    x = inputs(rng, 10, 30, CHANNELS)
    right = np.argmax(model(x), axis=-1)
    wrong = (right + 1) % 3
    labels = np.where(np.arange(30) < 24, right, wrong)
    dataset = tf.data.Dataset.from_tensor_slices((x, labels)).batch(4)
    report = exporting.verify(model, path, dataset=dataset, drift_steps=300)
    assert report.accuracy == {"keras": pytest.approx(0.8), "file": pytest.approx(0.8)}
    assert min(report.drift.values()) > 100
    said = capsys.readouterr().out
    assert "accuracy: Keras 0.8000, file 0.8000" in said
    assert "drift: SQNR" in said
    odd = exporting.verify(
        model, path, dataset=dataset, verbose=0, metric=lambda y, outputs: outputs[..., 0] * 0 + 0.5
    )
    assert odd.accuracy == {"keras": 0.5, "file": 0.5}


def test_drift_is_seen(step_file, monkeypatch):
    """A file whose noise grows with its age has a lower SQNR at the end."""
    model, path, _ = step_file
    exact, age = tflite_runner(path), iter(range(10**6))

    def noisy(signature, given):
        found = exact(signature, given)
        if signature == "step":
            found["y"] = found["y"] * (1 + 1e-6 * next(age))
        return found

    monkeypatch.setattr(file_runners, "tflite_runner", lambda _: noisy)
    drift = exporting.verify(model, path, drift_steps=400, verbose=0).drift
    assert drift["last"] < drift["first"] - 6


def test_differences_and_sqnr_are_what_they_say(rng):
    y = rng.standard_normal((3, 4, 5))
    noise = 0.01 * rng.standard_normal(y.shape)
    pairs = [({"y": y}, {"y": y + noise})]
    assert checks.sqnr(pairs) == pytest.approx(10 * np.log10((y**2).sum() / (noise**2).sum()))
    assert checks.largest_difference(pairs) == pytest.approx(abs(noise).max() / abs(y).max())
    assert checks.sqnr([({"y": y}, {"y": y})]) == checks.BEST_SQNR
    broken = np.where(y > 1, np.nan, y)
    assert np.isnan(checks.sqnr([({"y": y}, {"y": broken})]))
    assert np.isnan(checks.largest_difference([({"y": y}, {"y": broken})]))
    assert checks.largest_difference([({"y": broken}, {"y": broken})]) == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "toaster"}, r"`target` must be one of .*'litert'.* Received: 'toaster'"),
        ({"quantize": "int4"}, r"`quantize` must be one of .*'int8'.* Received: 'int4'"),
        ({"quantize": "int8"}, r"Give `representative_data`"),
        (
            {"target": "micro", "quantize": "float16"},
            r"for the target 'micro'. Received: 'float16'",
        ),
        ({"target": "micro", "signatures": ["step", "prefill"]}, r"knows one signature a file"),
        ({"target": "gpu"}, r"needs fixed shapes. Give `length`. Received: batch_size=1"),
        ({"target": "tflite-runtime", "quantize": "float16"}, r"float16 files wrongly once"),
        ({"state": "disk"}, r"`state` must be one of .* Received: 'disk'"),
        ({"state": "variables", "batch_size": None}, r"give `batch_size`. Received: None"),
        (
            {"prefill_chunk": 0},
            r"`prefill_chunk` must be an integer of at least 1.* Received: 0",
        ),
        (
            {"length": "long"},
            r"`length` must be an integer of at least 1.* Received: 'long'",
        ),
        ({"representative_data": []}, r"representative data are empty"),
        ({"representative_data": [np.ones((4, 6))]}, r"hold batches. .* Received: \(1, 6\)"),
    ],
)
def test_what_a_target_does_not_run_is_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        exporting.to_tflite(causal(), tmp_path / "m.tflite", **options)
    assert not list(tmp_path.iterdir())


def test_ranges_inside_a_loop_cannot_be_seen(tmp_path):
    x = keras.Input((None, CHANNELS))
    attention = CompressiveMemoryAttention(2, 4, segment_length=3, delta_rule=True)
    model = keras.Model(x, TransformerDecoder(16, attention=attention)(x))
    with pytest.raises(ValueError, match=r"has one \(WHILE\). Use 'weight_int8' or"):
        exporting.to_tflite(
            model, tmp_path / "m.tflite", signatures=["prefill"], prefill_chunk=6,
            quantize="int8", representative_data=[np.ones((1, 9, CHANNELS), "float32")],
        )  # fmt: skip


def test_a_sequential_model_without_a_state_is_exported(tmp_path, rng):
    model = keras.Sequential([keras.Input((None, CHANNELS)), keras.layers.Dense(3)])
    report = exporting.to_tflite(model, tmp_path / "m.tflite")
    assert set(report.signatures) == {"serve", "prefill", "step"}
    x = inputs(rng, 1, 1, CHANNELS)
    assert_close(tflite_runner(tmp_path / "m.tflite")("step", {"x": x})["y"], model(x), 1e-6)


def test_a_length_that_the_model_cannot_have_is_refused(tmp_path):
    x = keras.Input((30, CHANNELS))
    model = keras.Model(x, keras.layers.Dense(2)(x), name="short")
    with pytest.raises(ValueError, match=r"'short' takes inputs of 30 steps, not `length`=40"):
        exporting.to_tflite(model, tmp_path / "m.tflite", length=40)


def test_an_op_later_than_the_runtime_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting.DynamicInt8, "configure", per_channel)
    with pytest.raises(ValueError, match=r"FULLY_CONNECTED version 12 \(it has 10\)"):
        exporting.to_tflite(
            causal(units=64), tmp_path / "m.tflite", target="tflite-runtime",
            quantize="dynamic_int8", signatures=["step"],
        )  # fmt: skip


def per_channel(self, converter, target):
    converter.optimizations = [tf.lite.Optimize.DEFAULT]


def test_every_example_of_the_sample_is_compared(tmp_path, rng):
    model, seen = classifier(blocks=1), []
    sample = inputs(rng, 5, 20, CHANNELS)
    exporting.to_tflite(model, tmp_path / "m.tflite", length=20, batch_size=2, sample=sample)
    plan = make_plan(model, sample, ExportOptions(batch_size=2, length=20))
    exact = tflite_runner(tmp_path / "m.tflite")
    checks.compare(plan, lambda name, given: seen.append(given["x"]) or exact(name, given))
    assert_close(np.concatenate(seen)[:5], sample, 0)
