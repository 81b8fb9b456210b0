"""Files read for a long time: still at the float64 sum, and still as exact as at first."""

import keras
import numpy as np
import pytest
from references import How, projected
from support import BACKEND, layer_weights
from variants import CASES, build, inputs

from keras_cosattn import CausalConv1D, CosFormerAttention, TransformerDecoder, export
from keras_cosattn.export.file_runners import tflite_runner

WIDTH, LAST = 11, 8

pytestmark = pytest.mark.skipif(BACKEND != "tensorflow", reason="exports need TensorFlow")


def errors(case, ends, tmp_path, rng):
    """Step a file: its last outputs before each end, less the paper's sum over the whole past."""
    layer = build(case)
    x = keras.Input((None, WIDTH))
    model = keras.Model(x, layer(x, x, use_causal_mask=True))
    export.to_tflite(model, tmp_path / "m.tflite", signatures=["step"])
    run, data = tflite_runner(tmp_path / "m.tflite"), inputs(rng, 1, max(ends), WIDTH)
    state, sizes, last, found = run("init", {}), set(), [], []
    for i in range(max(ends)):
        state = run("step", {"x": data[:, i : i + 1], **state})
        last = [*last[1 - LAST :], state.pop("y")]
        sizes.add(sum(tensor.nbytes for tensor in state.values()))
        if i + 1 in ends:
            how, past = How(causal=True, first_query=i + 1 - LAST), data[:, : i + 1]
            name, arguments = type(layer).__name__, CASES[case][1]
            weights = layer_weights(layer)
            expected = projected(name, weights, past[:, -LAST:], past, how=how, **arguments)
            found.append(np.abs(np.concatenate(last, axis=1) - expected).max())
    assert len(sizes) == 1
    return found


@pytest.mark.parametrize("case", ["LinearAttention-elu", "CosFormerAttention-endless"])
@pytest.mark.parametrize(
    "steps", [3_000, *(pytest.param(n, marks=pytest.mark.slow) for n in (100_000, 1_000_000))]
)
def test_a_stream_stays_at_the_float64_sum(case, steps, tmp_path, rng):
    half, whole = errors(case, (steps // 2, steps), tmp_path, rng)
    assert whole < 1e-4
    assert whole < 2 * half + 1e-6  # no growth beyond what eight steps differ by chance


@pytest.mark.parametrize(
    "quantize",
    ["dynamic_int8", *(pytest.param(q, marks=pytest.mark.slow) for q in
                       ("float16", "weight_int8", "int8"))],
)  # fmt: skip
def test_a_stream_of_small_numbers_does_not_drift(quantize, tmp_path, rng):
    keras.utils.set_random_seed(1)
    x = keras.Input((None, 6))
    y = CausalConv1D(32, 9, activation="relu")(x)
    attention = CosFormerAttention(2, 16, horizon=256)
    y = TransformerDecoder(64, attention=attention, normalize_first=True)(y)
    model = keras.Model(x, keras.layers.Dense(7)(y))
    data = [inputs(rng, 1, 256, 6) for _ in range(4)]
    path = tmp_path / "m.tflite"
    export.to_tflite(model, path, quantize=quantize, signatures=["step"], representative_data=data)
    drift = export.verify(model, path, sample=data[0], drift_steps=10_000, verbose=0).drift
    assert drift["last"] > drift["first"] - 1
    assert drift["last"] < 100  # it is quantised
