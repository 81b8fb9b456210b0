"""Float types: every layer computes in the dtype that it is given, and sums in float32 at least."""

import keras
import numpy as np
import pytest
from support import assert_close, float64, streamed
from variants import CAUSAL, DIRECTIONS, ONE_BUCKET, STREAMING, WIDTH, build, inputs

from keras_cosattn import LSHAttention, Rotary, SegmentedAttention, SoftmaxAttention, Streaming

every_direction = pytest.mark.parametrize(("case", "causal"), DIRECTIONS)


@pytest.fixture(params=["float64", "float16"])
def floatx(request):
    """A default float type other than float32."""
    before = keras.config.floatx()
    keras.config.set_floatx(request.param)
    yield request.param
    keras.config.set_floatx(before)


@every_direction
@pytest.mark.sample(3)
def test_a_float64_layer_computes_in_float64(case, causal, rng):
    with float64():
        layer = build(case, dtype="float64")
        x = rng.standard_normal((2, 9, WIDTH))
        mask = rng.random((2, 9)) < 0.7
        call = {"query_mask": mask, "value_mask": mask, "use_causal_mask": causal}
        y = layer(x, x, **call)
        assert keras.backend.standardize_dtype(y.dtype) == "float64"
        small = build(case)
        small.set_weights(layer.get_weights())
        expected = small(x.astype("float32"), x.astype("float32"), **call)
        assert_close(expected, y, 1e-4)  # float32 beside it
        _, weights = layer(x, x, return_attention_scores=True, **call)
        assert keras.backend.standardize_dtype(weights.dtype) == "float64"


@pytest.mark.parametrize("case", STREAMING)
@pytest.mark.sample(3)
def test_a_float64_stream_keeps_float64(case, rng):
    with float64():
        one = keras.Input((None, WIDTH), dtype="float64")
        layer = build(case, dtype="float64")
        model = keras.Model(one, layer(one, one, use_causal_mask=True))
        stream = Streaming(model)
        dtypes = {dtype for _, dtype in stream.state_spec.values()}
        assert dtypes <= {"float64", "int32"}
        x = rng.standard_normal((2, 9, WIDTH))
        y, state = stream(x[:, :5], stream.initial_state(2))
        z, _ = stream(x[:, 5:], state)
        whole = model(x)
        assert_close(np.concatenate([y, z], axis=1), whole, 1e-10)


@pytest.mark.parametrize("case", sorted({case for case, _ in DIRECTIONS}))
@pytest.mark.sample(10)
def test_the_default_float_type_may_be_any(case, floatx, rng):
    with float64():
        one = keras.Input((9, WIDTH))
        y = build(case)(one, one, use_causal_mask=case in CAUSAL)
        model = keras.Model(one, y)
        model.compile("sgd", "mse", jit_compile=False)
        x = rng.standard_normal((2, 9, WIDTH)).astype(floatx)
        model.fit(x, x, verbose=0)
        assert np.all(np.isfinite(model.predict(x, verbose=0)))


@pytest.mark.parametrize("floatx", ["float16", "bfloat16"], indirect=True)
@pytest.mark.parametrize(
    "make",
    [
        lambda: LSHAttention(1, 4, num_hashes=1, bucket_size=2, max_length=8, dtype="float32"),
        lambda: SegmentedAttention(
            1, 4, segment_length=3, summaries="mean", max_length=8, dtype="float32"
        ),
    ],
)
def test_the_default_float_type_does_not_reach_a_bias(make, floatx, rng):
    layer, x = make(), inputs(rng, 1, 8, WIDTH)
    one = keras.Input((None, WIDTH), dtype="float32")
    model = keras.Model(one, layer(one, one, use_causal_mask=True))
    found, steps = model(x), streamed(model, x, range(1, 8))
    keras.config.set_floatx("float32")
    assert_close(found, model(x), 1e-6)
    assert_close(steps, model(x), 1e-6)


def test_dropout_keeps_the_precision_of_the_weights():
    layer = SoftmaxAttention(2, 4, dropout=0.5, dtype="mixed_float16", seed=1)
    layer.build((1, 300, WIDTH), (1, 300, WIDTH))
    weights = keras.ops.convert_to_tensor(np.full((1, 2, 30, 30), 1 / 3, "float32"))
    seen = layer._drop(True)(weights)
    assert keras.backend.standardize_dtype(seen.dtype) == "float32"
    seen = keras.ops.convert_to_numpy(seen)
    assert 0 < np.mean(seen == 0) < 1
    assert_close(seen[seen != 0], np.full_like(seen[seen != 0], 2 / 3), 1e-7)


def test_nothing_is_dropped_without_a_rate_or_in_inference():
    assert SoftmaxAttention(2, 4)._drop(True) is None
    assert SoftmaxAttention(2, 4, dropout=0.5)._drop(False) is None
    assert SoftmaxAttention(2, 4, dropout=0.5)._drop(None) is None


@pytest.mark.parametrize(("policy", "bound"), [("mixed_float16", 3e-3), ("mixed_bfloat16", 2e-2)])
@pytest.mark.parametrize("case", ["SoftmaxAttention-cache", "LSHAttention-buckets"])
def test_a_cache_has_the_dtype_of_the_computation(case, policy, bound, rng, tmp_path):
    one, more = keras.Input((None, WIDTH)), ONE_BUCKET.get(case.split("-")[0], {})
    layer = build(case, dtype=policy, position=Rotary(), **more)
    model = keras.Model(one, layer(one, one, use_causal_mask=True))
    stream, half = Streaming(model), policy.removeprefix("mixed_")
    dtypes = {name.split("_")[-1]: dtype for name, (_, dtype) in stream.state_spec.items()}
    assert dtypes["key"] == dtypes["value"] == half
    assert {dtypes.get(name, "float32") for name in ("bucket", "chunk")} == {"float32"}
    x = inputs(rng, 2, 40, WIDTH)
    y, state = stream(x[:, :25], stream.initial_state(2))
    stream.save(state, tmp_path / "state.npz")
    loaded = stream.load(tmp_path / "state.npz")
    for name, value in state.items():
        assert keras.backend.standardize_dtype(loaded[name].dtype) == stream.state_spec[name][1]
        assert keras.ops.all(keras.ops.equal(loaded[name], value))
    z, _ = stream(x[:, 25:], loaded)
    found = keras.ops.cast(keras.ops.concatenate([y, z], axis=1), "float32")
    assert_close(found, keras.ops.cast(model(x), "float32"), bound)
