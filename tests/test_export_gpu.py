"""Files for GPU delegates: what is written for them, what is refused, and what float16 keeps."""

import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops
from support import BACKEND, assert_close
from variants import CASES, inputs, layer_of

from keras_cosattn import (
    CosFormerAttention,
    LinearAttention,
    RunningMean,
    Streaming,
    TransformerEncoder,
)
from keras_cosattn import export as exporting
from keras_cosattn.export import checks
from keras_cosattn.export.float16 import LARGEST, SMALLEST
from keras_cosattn.export.gpu_rules import gpu_problems
from keras_cosattn.export.tflite_graph import TFLiteGraph

ON_A_GPU = pathlib.Path(__file__).parent / "programs" / "serve_on_gpu.py"
CHANNELS = 6
MEANS_KEEP = 12.0  # dB; 14.3 were measured, and sums are infinite
HALF = 1e-2  # float16 keeps 11 bits, through some products

pytestmark = pytest.mark.skipif(BACKEND != "tensorflow", reason="exports need TensorFlow")


def of(layer):
    x = keras.Input((None, CHANNELS))
    return keras.Model(x, RunningMean()(layer(x, x, use_causal_mask=True)), name="gpu_model")


def layer(case):
    # With some weights a normaliser is below what float16 holds, and the export is refused.
    keras.utils.set_random_seed(0)
    cls, arguments = CASES[case]
    return layer_of(cls, 4, 5, num_key_value_heads=2, **arguments)


def to_gpu(model, folder, **options):
    sizes = {"length": 16, "prefill_chunk": 16}
    return exporting.to_tflite(model, folder / "m.tflite", target="gpu", **{**sizes, **options})


def masked_softmax(masked):
    """`softmax(masked(x x^T)) x`."""
    x = keras.Input((16, CHANNELS))
    scores = ops.matmul(x, ops.transpose(x, (0, 2, 1)))
    return keras.Model(x, ops.matmul(ops.softmax(masked(scores)), x))


def past(scores):
    steps = np.arange(16)
    return steps[:, None] >= steps


def test_a_file_for_gpus_has_what_they_run_and_numbers_that_float16_holds(tmp_path):
    report = to_gpu(of(layer("CosFormerAttention-endless")), tmp_path)
    assert report.largest_difference < 1e-5
    graph = TFLiteGraph((tmp_path / "m.tflite").read_bytes())
    assert not gpu_problems(graph)
    for name, _, operator, subgraph in graph.operators():
        assert max(len(subgraph.tensors[i].shape) for i in operator.outputs) <= 4
        for values in (graph.values(subgraph, i) for i in operator.inputs):
            if values is not None and values.dtype == np.float32 and not np.isnan(values).any():
                assert np.abs(values).max() <= LARGEST
                assert name != "MAXIMUM" or values >= SMALLEST


def test_a_stream_without_end_is_kept_as_means(tmp_path):
    model = of(LinearAttention(2, 4, num_key_value_heads=1))
    report = to_gpu(model, tmp_path, signatures=["step"])
    assert "linear_attention_0_count" in report.state
    assert exporting.verify(model, tmp_path / "m.tflite", verbose=0).state == report.state


@pytest.mark.parametrize(
    "case",
    [
        "LinearAttention-elu",
        "PerformerAttention-trigonometric",
        "CompressiveMemoryAttention-sums",
        "CompressiveMemoryAttention-delta_rule",
    ],
)
def test_means_give_the_outputs_of_sums(case, rng):
    model = of(layer(case))
    x, mask = inputs(rng, 3, 37, CHANNELS), rng.random((3, 37)) < 0.8
    found = []
    for means in (False, True):
        stream = Streaming(model, means=means)
        state, outputs = stream.initial_state(3), []
        for piece, real in zip(
            *(np.split(a, [9, 10, 11, 25], axis=1) for a in (x, mask)), strict=True
        ):
            y, state = stream(piece, state, real)
            outputs.append(np.where(real[..., None], y, 0))
        found.append((np.concatenate(outputs, axis=1), state))
    assert_close(found[1][0], found[0][0], 1e-6)
    largest = [
        max(np.abs(x).max() for name, x in state.items() if name.endswith(("sums", "means")))
        for _, state in found
    ]
    assert largest[1] < largest[0] / 4


def test_a_mask_added_to_a_product_is_refused_and_one_to_choose_by_is_not(tmp_path):
    added = masked_softmax(lambda s: s + np.where(past(s), 0, -1e9).astype("float32"))
    with pytest.raises(ValueError, match=r"ADD of a mask to BATCH_MATMUL"):
        to_gpu(added, tmp_path)
    assert not list(tmp_path.iterdir())
    to_gpu(masked_softmax(lambda s: ops.where(past(s), s, -1e9)), tmp_path)
    to_gpu(masked_softmax(lambda s: s + np.where(past(s), 0, -3).astype("float32")), tmp_path)


def test_what_gpus_lack_is_refused_by_name(tmp_path):
    x = keras.Input((None, CHANNELS))
    sorted_ = keras.Model(x, ops.top_k(x, 3)[0])
    with pytest.raises(ValueError, match=r"run the model whole: TOPK_V2"):
        to_gpu(sorted_, tmp_path)
    five = ops.transpose(ops.reshape(x, (1, -1, 1, 2, 3)), (0, 1, 2, 4, 3))
    with pytest.raises(ValueError, match=r"with 5 axes"):
        to_gpu(keras.Model(x, ops.reshape(five, (1, -1, CHANNELS))), tmp_path)


@pytest.mark.parametrize("length", [64, 2049])
def test_padded_texts_are_counted_as_far_as_float16_counts(length, tmp_path, rng):
    ids = rng.integers(1, 20, (1, length)).astype("int32")
    ids[:, 50:] = 0
    x = keras.Input((None,), dtype="int32")
    y = keras.layers.Embedding(20, 8, mask_zero=True)(x)
    y = TransformerEncoder(16, attention=CosFormerAttention(2, 4, max_length=length))(y)
    padded = keras.Model(x, keras.layers.GlobalAveragePooling1D()(y))
    if length > 2048:
        with pytest.raises(ValueError, match=r"model whole: CUMSUM of INT32"):
            to_gpu(padded, tmp_path, length=length, sample=ids)
    else:
        assert to_gpu(padded, tmp_path, length=length, sample=ids).largest_difference < 1e-5


def test_constants_come_last_and_are_the_same_for_every_example(tmp_path):
    x = keras.Input((16, CHANNELS))
    table = np.arange(16 * CHANNELS, dtype="float32").reshape(1, 16, CHANNELS)
    to_gpu(keras.Model(x, ops.subtract(table, x)), tmp_path)
    graph = TFLiteGraph((tmp_path / "m.tflite").read_bytes())
    assert [name for name, *_ in graph.operators()] == ["NEG", "ADD"]
    with pytest.raises(ValueError, match=r"ADD of a constant with other numbers for each example"):
        to_gpu(keras.Model(x, ops.add(x, np.concatenate([table, -table]))), tmp_path, batch_size=2)


def test_numbers_beyond_float16_are_refused_also_those_still_to_come(tmp_path):
    x = keras.Input((None, CHANNELS))
    with pytest.raises(ValueError, match=r"leaves it: .* up to"):
        to_gpu(
            keras.Model(x, keras.layers.Dense(3)(ops.square(300.0 * x))),
            tmp_path,
            signatures=["serve"],
        )

    def export(max_length):
        keras.utils.set_random_seed(0)
        attention = CosFormerAttention(2, 4, max_length=max_length)
        return to_gpu(keras.Model(x, attention(x, x, use_causal_mask=True)), tmp_path,
                      signatures=["step"])  # fmt: skip

    export(1_000)
    with pytest.raises(ValueError, match=r"cos_former_attention_0_sums up to"):
        export(10_000_000)


def stream_in_halves(model, x, means):
    """The last outputs of a stream whose state is rounded to float16 after every step."""
    import tensorflow as tf

    stream = Streaming(model, means=means)

    @tf.function
    def step(x, state):
        y, state = stream(x, state)
        half = {name: tf.cast(value, "float16") for name, value in state.items()
                if value.dtype.is_floating}  # fmt: skip
        return y, state | {name: tf.cast(value, "float32") for name, value in half.items()}

    state, outputs = stream.initial_state(len(x)), []
    for i in range(x.shape[1]):
        y, state = step(x[:, i : i + 1], state)
        outputs.append(y)
    return np.concatenate(outputs[-1000:], axis=1), state


@pytest.mark.slow
def test_over_12_000_steps_means_in_float16_keep_what_sums_lose(rng):
    x = keras.Input((None, CHANNELS))
    model = keras.Model(x, LinearAttention(2, 8)(x, x, use_causal_mask=True))
    data = 8 * inputs(rng, 1, 12_000, CHANNELS) + 4
    expected = np.asarray(model(data))[:, -1000:]
    sums, _ = stream_in_halves(model, data, means=False)
    means, state = stream_in_halves(model, data, means=True)
    assert not np.isfinite(sums).all()
    assert np.abs(state["linear_attention_0_sums"]).max() < LARGEST / 10
    assert checks.sqnr([({"y": expected}, {"y": means})]) > MEANS_KEEP


@pytest.mark.slow
@pytest.mark.parametrize("case", ["LinearAttention-elu", "CosFormerAttention-endless"])
def test_litert_runs_the_file_whole_on_a_gpu(case, tmp_path):
    to_gpu(of(layer(case)), tmp_path, signatures=["serve"])
    program = [sys.executable, ON_A_GPU, tmp_path / "m.tflite"]
    found = subprocess.run(program, capture_output=True, text=True)
    if "No adapters found" in found.stderr + found.stdout:
        pytest.skip("this machine has no GPU that LiteRT finds")
    assert found.returncode == 0, found.stderr[-2000:]
    assert float(found.stdout.split()[-1]) < HALF
