"""A state in integers: the error of a rounding, its bound over many steps, and what stays exact."""

import keras
import numpy as np
import pytest
from support import BACKEND, compiled
from variants import CASES, STREAMING, inputs, layer_of

from keras_cosattn import (
    CosFormerAttention,
    LinearAttention,
    RetentionAttention,
    Streaming,
    TransformerDecoder,
)
from keras_cosattn.compact_state import CompactState

LEVELS = {"int8": 127, "int16": 32767}
LEAST_SQNR = {"int8": 20, "int16": 40}
CHANNELS = 16
STEPS = 100_000
QUICK = ("RetentionAttention-retnet", "DeltaRuleAttention-gated", "SoftmaxAttention-cache")


def attending(layer):
    x = keras.Input((None, CHANNELS))
    return keras.Model(x, layer(x, x, use_causal_mask=True))


def read(stream, x, state, lengths):
    outputs = []
    for piece in np.split(x, np.cumsum(lengths)[:-1], axis=1):
        y, state = stream(piece, state)
        outputs.append(keras.ops.convert_to_numpy(y))
    return np.concatenate(outputs, axis=1), state


def arrays(state):
    return {name: keras.ops.convert_to_numpy(x) for name, x in state.items()}


def sqnr(expected, found):
    return 10 * np.log10(np.square(expected).sum() / np.square(expected - found).sum())


@pytest.mark.parametrize("dtype", LEVELS)
def test_an_entry_is_off_by_half_a_scale_at_most(dtype, rng):
    x = inputs(rng, 5, 3, 11) * np.array([1e-20, 1e-3, 1, 1e5, 0], "float32")[:, None, None]
    compact = CompactState({"x": ((3, 11), "float32")}, dtype)
    packed = compact.pack({"x": keras.ops.convert_to_tensor(x)})
    assert {name: keras.backend.standardize_dtype(a.dtype) for name, a in packed.items()} == {
        "x": dtype,
        "x_scale": "float32",
    }
    found = arrays(compact.unpack(packed))["x"]
    half = np.abs(x).max(axis=-1, keepdims=True) / LEVELS[dtype] / 2
    assert (np.abs(found - x) <= half * 1.001 + 1e-6 * np.abs(x)).all()
    assert np.abs(found - x).max() > 0


def test_short_rows_and_integers_stay_as_they_are_and_dtypes_come_back():
    spec = {
        "sums": ((2, 8), "bfloat16"), "short": ((2, 7), "float32"),
        "count": ((), "float32"), "ids": ((9,), "int32"),
    }  # fmt: skip
    compact = CompactState(spec, "int8")
    assert compact.spec == {
        "sums": ((2, 8), "int8"), "sums_scale": ((2, 1), "float32"), "short": ((2, 7), "float32"),
        "count": ((), "float32"), "ids": ((9,), "int32"),
    }  # fmt: skip
    state = {name: keras.ops.ones((1, *shape), dtype) for name, (shape, dtype) in spec.items()}
    again = compact.unpack(compact.pack(state))
    assert {n: keras.backend.standardize_dtype(x.dtype) for n, x in again.items()} == {
        name: dtype for name, (_, dtype) in spec.items()
    }
    for x in arrays(again).values():
        np.testing.assert_array_equal(x.astype("float32"), 1)


@pytest.mark.parametrize(
    "case", [c if c in QUICK else pytest.param(c, marks=pytest.mark.slow) for c in STREAMING]
)
def test_every_stream_keeps_its_outputs(case, rng):
    cls, arguments = CASES[case]
    model = attending(layer_of(cls, 4, 8, num_key_value_heads=2, **arguments))
    x, sizes = inputs(rng, 2, 40, CHANNELS), []
    expected = keras.ops.convert_to_numpy(model(x))
    for dtype, least in LEAST_SQNR.items():
        stream = Streaming(model, state_dtype=dtype)
        found, _ = read(stream, x, stream.initial_state(2), [7, *[1] * 20, 13])
        assert least < sqnr(expected, found) < 120  # exact streams have some 130 dB
        sizes.append(stream.state_bytes)
    assert sizes[0] < sizes[1] < Streaming(model).state_bytes


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch has no graph: the loop takes minutes there")
@pytest.mark.parametrize("dtype", LEVELS)
def test_over_100_000_steps_the_error_stays_below_its_bound(dtype, rng):
    """`M / (2 L (1 - decay))` with M the largest entry of a row: docs/compact_state.md."""
    decay = np.array([0.9, 0.99])
    layer = RetentionAttention(2, 8, decay=decay.tolist(), position=None)
    x = inputs(rng, 1, STEPS, CHANNELS)
    exact, rounded = (Streaming(attending(layer), state_dtype=d) for d in (None, dtype))
    unpack = rounded._compact.unpack
    (sums,) = (name for name, (shape, _) in exact.state_spec.items() if shape == (2, 8, 8))

    @compiled
    def run(x):
        def step(i, carry):
            (one, two), errors, largest = carry
            piece = keras.ops.take(x, keras.ops.reshape(i, (1,)), axis=1)
            (_, one), (_, two) = exact(piece, one), rounded(piece, two)
            found = unpack(two)[sums]
            tenth = keras.ops.arange(10) == i // (STEPS // 10)
            error = keras.ops.max(keras.ops.abs(found - one[sums]), axis=(0, 3))
            errors = keras.ops.maximum(errors, keras.ops.where(tenth[:, None, None], error, 0.0))
            top = keras.ops.max(keras.ops.abs(found), axis=(0, 3))
            return (one, two), errors, keras.ops.maximum(largest, top)

        start = exact.initial_state(1), rounded.initial_state(1)
        start = start, keras.ops.zeros((10, 2, 8)), keras.ops.zeros((2, 8))
        return keras.ops.fori_loop(0, STEPS, step, start)[1:]

    errors, largest = map(keras.ops.convert_to_numpy, run(x))
    assert (errors < largest / (2 * LEVELS[dtype] * (1 - decay[:, None]))).all()
    # The error does not grow with the steps: it is no larger in the last tenth than in the first.
    assert (errors[-1] < 2 * errors[0]).all()


def test_masked_steps_change_nothing(rng):
    stream = Streaming(attending(CosFormerAttention(2, 8, horizon=8)), state_dtype="int8")
    _, state = stream(inputs(rng, 2, 5, CHANNELS), stream.initial_state(2))
    before, mask = arrays(state), np.array([[False], [True]])
    for _ in range(50):
        _, state = stream(np.full((2, 1, CHANNELS), np.nan, "float32"), state, mask=mask & False)
    for name, x in arrays(state).items():
        np.testing.assert_array_equal(x, before[name])
    _, state = stream(inputs(rng, 2, 1, CHANNELS), state, mask=mask)
    after = arrays(state)
    for name, x in after.items():
        np.testing.assert_array_equal(x[0], before[name][0])
    assert any((x[1] != before[name][1]).any() for name, x in after.items() if x.dtype == "int8")


def test_reset_save_and_load(rng, tmp_path):
    model = attending(CosFormerAttention(2, 8, horizon=8))
    stream = Streaming(model, state_dtype="int16")
    _, state = stream(inputs(rng, 2, 5, CHANNELS), stream.initial_state(2))
    for name, x in arrays(stream.reset(state, [True, False])).items():
        assert not x[0].any()
        np.testing.assert_array_equal(x[1], arrays(state)[name][1])
    stream.save(state, tmp_path / "state.npz")
    for name, x in arrays(stream.load(tmp_path / "state.npz")).items():
        np.testing.assert_array_equal(x, arrays(state)[name])
    with pytest.raises(ValueError, match=r"not a state of.*expected.*float32.*received.*int16"):
        Streaming(model).load(tmp_path / "state.npz")


def test_constant_inputs_are_rounded_too(rng):
    x, context = keras.Input((None, 16)), keras.Input((None, 16), name="context")
    decoder = TransformerDecoder(
        32, attention=CosFormerAttention(2, 8, horizon=8), cross_attention=LinearAttention(2, 8)
    )
    model = keras.Model([x, context], decoder(x, context))
    sample = [inputs(rng, 2, 12, 16), inputs(rng, 2, 9, 16)]
    stream = Streaming(model, sample, constants=["context"], state_dtype="int8")
    state = stream.initial_state(2, {"context": sample[1]})
    found, state = read(stream, sample[0], state, [4, *[1] * 8])
    assert sqnr(keras.ops.convert_to_numpy(model(sample)), found) > LEAST_SQNR["int8"]
    kept = arrays(stream.reset(state))
    constant = [name for name in kept if name in stream._constant_names]
    assert {kept[name].dtype.name for name in constant} >= {"int8", "float32"}
    for name in constant:
        np.testing.assert_array_equal(kept[name], arrays(state)[name])


def test_another_dtype_is_refused():
    with pytest.raises(ValueError, match=r"`state_dtype` must be one of.*Received: 'int4'"):
        Streaming(attending(CosFormerAttention(2, 8, horizon=8)), state_dtype="int4")
