"""Feature maps beyond one function of each entry: second order, products, learned."""

import keras
import numpy as np
import pytest
import references
from references import How, projected
from support import (
    BACKEND,
    assert_close,
    compiled,
    gradients,
    layer_weights,
    random_mask,
    value_and_gradients,
)
from variants import WIDTH, inputs

from keras_cosattn import (
    DPFPFeatures,
    FeatureMap,
    HedgehogFeatures,
    LinearAttention,
    PositiveFeatures,
    Streaming,
    TrigonometricFeatures,
)
from keras_cosattn.ops import pointwise_features, random_features

to_numpy = keras.ops.convert_to_numpy

MAPS = {
    "taylor": "taylor",
    "dpfp": DPFPFeatures(),
    "dpfp_3": DPFPFeatures(3),
    "hedgehog": HedgehogFeatures(),
    "hedgehog_normalized": HedgehogFeatures(normalized=True),
}
SIZES = {"taylor": 21, "dpfp": 10, "dpfp_3": 30, "hedgehog": 10, "hedgehog_normalized": 10}
every_map = pytest.mark.parametrize("name", MAPS)


def built(name, rng=None, **arguments):
    """A layer whose weights are all random, if there is an rng; the same ones in every run.

    With one in ten draws a query shares nearly no DPFP feature with the keys before it. It divides
    by a number near zero then, and half-precision projections give another output in any map.
    """
    layer = LinearAttention(
        6, 5, num_key_value_heads=3, value_dim=7, feature_map=MAPS[name], **arguments
    )
    layer.build((None, None, WIDTH), (None, None, WIDTH))
    for weight in layer.trainable_variables if rng is not None else ():
        weight.assign(rng.normal(size=weight.shape, scale=0.4))
    return layer


def expected(name, layer, x, how, trainable=None):
    weights = layer_weights(layer, trainable)
    return projected("LinearAttention", weights, x, x, how=how, feature_map=MAPS[name])


@pytest.mark.parametrize("causal", [False, True])
@every_map
def test_layer_equals_the_sum_of_its_features(name, causal, rng):
    layer, x = built(name, rng), inputs(rng, 2, 13, WIDTH)
    mask = random_mask(rng, "holes", 2, 13)
    how = How(mask, mask, causal=causal)
    starts = [to_numpy(w) for w in layer.trainable_variables]

    def outputs(x, *weights):
        return layer.stateless_call(
            weights, [], x, x, query_mask=mask, value_mask=mask, use_causal_mask=causal
        )[0]

    exact = expected(name, layer, x, how)
    g = rng.normal(size=exact.shape).astype("float32")
    actual, derivatives = value_and_gradients(outputs, g, x, *starts)
    assert_close(actual, exact)
    # Along one direction of everything together: central differences of step 1e-6.
    arrays = [np.float64(z) for z in (x, *starts)]
    directions = [rng.normal(size=z.shape) for z in arrays]

    def loss(step):
        x, *weights = (z + step * along for z, along in zip(arrays, directions, strict=True))
        return np.sum(expected(name, layer, x, how, weights) * g)

    slopes = [np.sum(d * along) for d, along in zip(derivatives, directions, strict=True)]
    difference = (loss(1e-6) - loss(-1e-6)) / 2e-6
    assert abs(sum(slopes) - difference) < 1e-4 * np.linalg.norm(slopes)


@every_map
@pytest.mark.sample(3)
def test_whole_equals_pieces_and_the_state_has_the_size_of_the_map(name, rng):
    layer, data = built(name, rng), inputs(rng, 2, 13, WIDTH)
    x = keras.Input((None, WIDTH))
    model = keras.Model(x, layer(x, x, use_causal_mask=True))
    stream = Streaming(model)
    spec = {"linear_attention_0_sums": ((3, SIZES[name], 8), "float32")}
    assert stream.state_spec == spec
    state, outputs = stream.initial_state(2), []
    for piece in np.split(data, [1, 2, 9], axis=1):
        y, state = stream(piece, state)
        outputs.append(y)
    assert_close(np.concatenate(outputs, axis=1), model(data), 1e-6)


@every_map
def test_a_layer_with_the_map_is_saved_and_loaded(name, rng, tmp_path):
    layer, data = built(name, rng), inputs(rng, 2, 13, WIDTH)
    x = keras.Input((None, WIDTH))
    model = keras.Model(x, layer(x, x))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_close(loaded(data), model(data), 0)
    assert loaded.layers[-1].get_config() == layer.get_config()
    assert len(loaded.weights) == len(model.weights)


@pytest.mark.parametrize(
    "name",
    [name if name == "hedgehog" else pytest.param(name, marks=pytest.mark.slow) for name in MAPS],
)
def test_the_map_trains_in_a_compiled_model(name, rng):
    x = keras.Input((None, WIDTH))
    model = keras.Model(x, keras.layers.Dense(1)(built(name)(x, x, use_causal_mask=True)))
    model.compile(keras.optimizers.Adam(0.03), "mse", jit_compile=True)
    data = inputs(rng, 8, 13, WIDTH)
    losses = model.fit(data, data[..., :1], epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("d", [1, 2, 5, 16])
def test_taylor_features_are_the_second_order_of_the_exponential(d, rng):
    q, k = inputs(rng, 2, 13, 3, d), inputs(rng, 2, 9, 3, d)
    phi_q, phi_k = pointwise_features.taylor(q), pointwise_features.taylor(k)
    assert phi_q.shape[-1] == (d + 1) * (d + 2) // 2
    z = references.inner(np.float64(q), np.float64(k)) / np.sqrt(d)
    found = references.inner(to_numpy(phi_q), to_numpy(phi_k))
    assert_close(found, 1 + z + z**2 / 2, 1e-6)
    assert np.all(found > 0.4)  # the parabola's least value is 1/2


@pytest.mark.parametrize("nu", [1, 2, 5])
def test_dpfp_features_are_products_of_neighbours(nu, rng):
    x = inputs(rng, 2, 13, 3, 4)
    found = to_numpy(DPFPFeatures(nu)(x))
    assert_close(found, references.dpfp(np.float64(x), nu), 1e-6)
    by_hand = to_numpy(pointwise_features.dpfp(np.array([[[[2.0, 3.0, -5.0]]]])))  # r = 2 3 0 0 0 5
    assert by_hand.ravel().tolist() == [6, 0, 0, 0, 0, 10]


def test_hedgehog_starts_as_the_exponentials_of_both_signs(rng):
    layer = built("hedgehog")
    q, k = 0.5 * inputs(rng, 2, 13, 6, 5), 0.5 * inputs(rng, 2, 9, 3, 5)
    phi_q, phi_k = (to_numpy(x) for x in layer.feature_map(q, k))
    assert_close(phi_k, np.exp(np.concatenate([k, -k], axis=-1)), 1e-6)
    exact = np.exp(np.concatenate([q, -q], axis=-1))
    largest = exact.max(axis=-1, keepdims=True)
    assert_close(phi_q, exact / largest * np.exp(20), 1e-5)  # e^20 keeps 19 of 24 bits


def test_hedgehog_learns_queries_and_keys_and_heads_apart():
    layer = built("hedgehog")
    shapes = {w.name: tuple(w.shape) for w in layer.feature_map.weights}
    assert shapes == {
        "query_feature_kernel": (6, 5, 5),
        "query_feature_bias": (6, 5),
        "key_feature_kernel": (3, 5, 5),
        "key_feature_bias": (3, 5),
    }
    assert {w.dtype for w in built("hedgehog", dtype="mixed_float16").feature_map.weights} == {
        "float32"
    }


def test_layers_given_one_map_have_weights_of_their_own():
    given = HedgehogFeatures()
    first, second = (LinearAttention(h, 5, feature_map=given) for h in (2, 3))
    for layer in (first, second):
        layer.build((None, None, WIDTH), (None, None, WIDTH))
    assert first.feature_map.weights[0].shape != second.feature_map.weights[0].shape
    assert not given.built


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@every_map
def test_half_precision_is_float32_to_its_precision(name, policy, rng):
    precision = {"mixed_float16": 2e-3, "mixed_bfloat16": 2e-2}[policy]  # 11 and 8 bits
    positive = keras.initializers.Constant(1)  # far from where a relu opens
    layer, half = (
        built(name, bias_initializer=positive, dtype=dtype) for dtype in ("float32", policy)
    )
    half.set_weights(layer.get_weights())
    x = inputs(rng, 2, 70, WIDTH)
    outputs = keras.ops.cast(half(x, x, use_causal_mask=True), "float32")
    assert_close(outputs, layer(x, x, use_causal_mask=True), 4 * precision)


@pytest.mark.parametrize("size", [1e2, 1e4, 1e15])
@pytest.mark.parametrize("name", ["hedgehog", "hedgehog_normalized"])
@pytest.mark.sample(3)
def test_large_inputs_give_finite_values_and_gradients(name, size, rng):
    layer, x, v = built(name), inputs(rng, 2, 13, WIDTH), inputs(rng, 2, 13, WIDTH)

    def total(x):
        return keras.ops.sum(layer(size * x, v, key=size * x, use_causal_mask=True))

    assert np.all(np.isfinite(gradients(total, x)[0]))
    outputs = to_numpy(compiled(lambda x: layer(size * x, v, key=size * x))(x))
    assert np.all(np.isfinite(outputs))


@keras.saving.register_keras_serializable("test")
class Doubled(FeatureMap):
    def build(self, queries_shape, keys_shape):
        self.factor = self.add_weight(name="factor", shape=(), initializer="ones")

    def call(self, queries, keys):
        return tuple(keras.ops.exp(self.factor * x) for x in (queries, keys))

    def size(self, key_dim):
        return key_dim


def test_a_map_of_ones_own_is_saved_with_its_weights(rng, tmp_path):
    x = keras.Input((None, WIDTH))
    layer = LinearAttention(2, 3, feature_map=Doubled())
    model = keras.Model(x, layer(x, x, use_causal_mask=True))
    layer.feature_map.factor.assign(1.5)
    model.save(tmp_path / "model.keras")
    loaded, data = keras.models.load_model(tmp_path / "model.keras"), inputs(rng, 2, 13, WIDTH)
    assert float(loaded.layers[-1].feature_map.factor.value) == 1.5
    assert_close(loaded(data), model(data), 0)
    assert Streaming(model).state_spec == {"linear_attention_0_sums": ((2, 3, 4), "float32")}


def test_a_bad_nu_is_refused():
    with pytest.raises(ValueError, match=r"`nu` must be an integer of at least 1. Received: nu=0"):
        DPFPFeatures(0)
    assert DPFPFeatures(2) == DPFPFeatures(2) != DPFPFeatures(3)


def test_a_regularizer_of_the_features_is_refused():
    with pytest.raises(ValueError, match=r"`activity_regularizer` must be None.*Received:.*L2"):
        HedgehogFeatures(activity_regularizer="l2")


def test_sizes_of_numpy_are_integers_and_truth_values_are_not():
    assert DPFPFeatures(np.int64(2)) == DPFPFeatures(2)
    assert type(DPFPFeatures(np.int64(2)).nu) is int
    with pytest.raises(ValueError, match=r"`nu` must be an integer .* Received: nu=True"):
        DPFPFeatures(True)


def _hedgehog(x, normalized=False):
    layer = HedgehogFeatures(normalized=normalized)
    layer.build(x.shape, x.shape)
    return layer(x, x)


PROJECTION = random_features.orthogonal_projection(5, 8, 0)
FUNCTIONS = {
    **pointwise_features.FEATURE_MAPS,
    "dpfp": DPFPFeatures(2),
    "hedgehog": _hedgehog,
    "hedgehog_normalized": lambda x: _hedgehog(x, normalized=True),
    "positive": lambda x: PositiveFeatures()(x, x, PROJECTION),
    "trigonometric": lambda x: TrigonometricFeatures()(x, x, PROJECTION),
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


def features_of(name, x):
    """The features of one tensor, as queries and as keys where a map tells them apart."""
    return keras.tree.flatten(FUNCTIONS[name](x))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@every_function
def test_features_of_half_precision_inputs_are_computed_in_float32(name, dtype, rng):
    x = keras.ops.cast(inputs(rng, 2, 7, 3, 5), dtype)
    found, expected = features_of(name, x), features_of(name, keras.ops.cast(x, "float32"))
    for half, single in zip(found, expected, strict=True):
        assert keras.backend.standardize_dtype(half.dtype) == "float32"
        assert_close(half, single, 0)


@pytest.mark.skipif(
    BACKEND != "tensorflow",
    reason="Keras computes exponentials of float64 in float32 on other backends",
)
@every_function
def test_features_of_float64_inputs_stay_float64(name, rng):
    x = rng.normal(size=(2, 7, 3, 5))
    exact = features_of(name, x)
    single = features_of(name, x.astype("float32"))
    for double, expected in zip(exact, single, strict=True):
        assert keras.backend.standardize_dtype(double.dtype) == "float64"
        assert_close(to_numpy(double).astype("float32"), expected, 1e-5)
        assert np.any(to_numpy(double) != to_numpy(double).astype("float32")) or name == "relu"


@pytest.mark.parametrize("floatx", ["float16", "float64"])
@every_function
def test_the_default_float_type_does_not_reach_the_features(name, floatx, rng):
    x, before = inputs(rng, 2, 7, 3, 5), keras.config.floatx()
    expected = features_of(name, x)
    keras.config.set_floatx(floatx)
    try:
        found = features_of(name, x)
    finally:
        keras.config.set_floatx(before)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, 0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_elu_plus_one_is_positive_for_all_negative_numbers(dtype):
    x = keras.ops.cast(np.linspace(-80, -2, 1000), dtype)
    found = to_numpy(pointwise_features.elu_plus_one(x)).astype("float64")
    assert np.all(found > 0)
    exact = np.exp(to_numpy(keras.ops.cast(x, "float32")).astype("float64"))
    np.testing.assert_allclose(found, exact, rtol=1e-5)  # 80 has an error of 4e-6 in float32


def test_elu_plus_one_has_the_slope_of_its_formula():
    x = np.array([-3.0, -0.5, 0.0, 0.5, 90.0], "float32")
    (slope,) = gradients(lambda x: keras.ops.sum(pointwise_features.elu_plus_one(x)), x)
    assert_close(slope, np.exp(np.minimum(x, 0)), 1e-6)


def test_a_square_beyond_float16_is_not_infinite():
    x = keras.ops.cast([300.0], "float16")
    assert float(pointwise_features.squared_relu(x)[0]) == 90_000


@pytest.mark.parametrize("shape", [(0, 7, 3, 5), (2, 0, 3, 5)])
@every_function
def test_no_examples_and_no_steps_have_no_features(name, shape):
    for features in features_of(name, np.zeros(shape, "float32")):
        assert tuple(features.shape[:3]) == shape[:3]


@pytest.mark.parametrize(
    "given",
    [
        HedgehogFeatures(normalized=True),
        DPFPFeatures(3),
        PositiveFeatures(),
        TrigonometricFeatures(2.0),
    ],
    ids=lambda given: type(given).__name__,
)
def test_a_clone_has_the_same_arguments(given):
    clone = given.clone()
    assert clone is not given
    assert type(clone) is type(given)
    assert clone.get_config() == given.get_config()


def test_weights_follow_a_float64_policy_only():
    shape = (None, None, 2, 5)
    for policy, dtype in {
        "float64": "float64",
        "mixed_float16": "float32",
        "float16": "float32",
    }.items():
        layer = HedgehogFeatures().clone(dtype=policy)
        layer.build(shape, shape)
        assert {weight.dtype for weight in layer.weights} == {dtype}
