"""Random features estimate what they should, and a projection is a weight like any other."""

import functools

import keras
import numpy as np
import pytest
import references
from references import How
from support import assert_close, compiled, gradients, layer_weights
from variants import WIDTH, inputs

from keras_cosattn import (
    PerformerAttention,
    PositiveFeatures,
    Rotary,
    Streaming,
    TrigonometricFeatures,
    XPos,
)
from keras_cosattn.ops import linear_attention, random_features

D, SEEDS = 8, 200
to_numpy = keras.ops.convert_to_numpy


def vectors(rng, *shape):
    """Short ones: the relative variance of a weight is `(exp(|q + k|^2 / sqrt(D)) - 1) / m`.

    Where that is 100, as for vectors twice as long, 200 draws do not tell their mean.
    """
    return 0.4 * inputs(rng, *shape, D)


def draws(features, seeds=SEEDS, independent=False):
    """Projections `(d, features)`: orthogonal in blocks, or each direction by itself."""
    for seed in range(seeds):
        if independent:
            yield np.random.default_rng(seed).normal(size=(D, features))
        else:
            yield random_features.orthogonal_projection(D, features, seed)


def positive_estimate(q, k, projection):
    """The mean of the products of features, with the factor of each row put back: `(h, t, s)`."""
    phi_q = to_numpy(random_features.positive_query_features(q, projection)).astype("float64")
    phi_k = to_numpy(random_features.positive_key_features(k, projection)).astype("float64")
    y = q / D**0.25
    logarithm = np.max(y @ projection, axis=-1) - np.sum(y**2, axis=-1) / 2 - 20
    phi_q = phi_q * np.exp(logarithm)[..., None] / projection.shape[1]
    return references.inner(phi_q, phi_k)[0]


def trigonometric_estimate(q, k, projection, sigma=0.8):
    phi = [to_numpy(random_features.trigonometric_features(x, projection, sigma)) for x in (q, k)]
    return references.inner(*phi)[0]


def gaussian_kernel(q, k, sigma=0.8):
    q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    return np.exp((references.inner(q, k)[0] - 1) / sigma**2)


def exponential_kernel(q, k):
    return np.exp(references.inner(q, k)[0] / np.sqrt(D))


KERNELS = {
    "positive": (positive_estimate, exponential_kernel),
    "trigonometric": (trigonometric_estimate, gaussian_kernel),
}
every_kernel = pytest.mark.parametrize("kind", KERNELS)


def assert_mean(estimates, exact):
    """The mean is within 4 of its standard errors: of 100 entries one fails in 160 trials."""
    error = np.abs(np.mean(estimates, axis=0) - exact)
    standard = np.std(estimates, axis=0) / np.sqrt(len(estimates))
    assert np.all(error < 4 * standard), np.max(error / standard)
    assert np.all(standard < 0.05 * np.max(np.abs(exact)))  # or the bound would say little


@every_kernel
def test_the_mean_over_draws_is_the_kernel(kind, rng):
    estimate, kernel = KERNELS[kind]
    q, k, v = vectors(rng, 1, 3, 2), vectors(rng, 1, 5, 2), inputs(rng, 5, 4)
    weights = np.stack([estimate(q, k, projection) for projection in draws(64)])
    exact = kernel(q, k)
    assert_mean(weights, exact)
    assert_mean(weights.sum(axis=-1), exact.sum(axis=-1))  # the denominators
    assert_mean(weights @ v, exact @ v)  # the numerators


def attention_errors(q, k, v, features, seeds, estimate=positive_estimate, **options):
    exact = references.normalise(exponential_kernel(q, k)) @ v
    return [
        references.normalise(estimate(q, k, projection)) @ v - exact
        for projection in draws(features, seeds, **options)
    ]


def test_the_mean_output_approaches_softmax_attention(rng):
    q, k, v = vectors(rng, 1, 3, 2), vectors(rng, 1, 5, 2), inputs(rng, 5, 4)
    errors = attention_errors(q, k, v, 256, SEEDS)
    single = np.sqrt(np.mean(np.square(errors)))
    # A mean of 200 has 1/14 of the error of one. A ratio of means is biased by its square.
    assert np.abs(np.mean(errors, axis=0)).max() < 4 / 14 * single + 4 * single**2
    assert single < 0.2


def test_the_layer_approaches_softmax_attention(rng):
    x = 0.4 * inputs(rng, 2, 13, WIDTH)
    softmax = keras.layers.MultiHeadAttention(2, D)
    exact = to_numpy(softmax(x, x, use_causal_mask=True))
    errors = []
    for features in (64, 4096):
        layer = PerformerAttention(2, D, num_random_features=features, seed=1)
        layer.build(x.shape, x.shape)
        for mine, given in zip(layer.trainable_variables, softmax.weights, strict=True):
            mine.assign(given)
        errors.append(np.abs(to_numpy(layer(x, x, use_causal_mask=True)) - exact).max())
    assert errors[1] < errors[0] / 3 < 0.1 * np.abs(exact).max()


def fall(errors_at):
    """The slope of the logarithm of the root mean square error over that of the features."""
    sizes = [16, 64, 256, 1024]
    errors = [np.sqrt(np.mean(np.square(errors_at(n)))) for n in sizes]
    return np.polyfit(np.log(sizes), np.log(errors), 1)[0]


@every_kernel
def test_the_error_of_weights_falls_as_the_root_of_the_features(kind, rng):
    estimate, kernel = KERNELS[kind]
    q, k = vectors(rng, 1, 7, 2), vectors(rng, 1, 9, 2)

    def errors(features):
        return [estimate(q, k, p) - kernel(q, k) for p in draws(features, 40)]

    assert -0.6 < fall(errors) < -0.4  # 40 draws tell the slope to about 0.05


def test_the_error_of_outputs_falls_as_the_root_of_the_features(rng):
    q, k = vectors(rng, 1, 7, 2), vectors(rng, 1, 9, 2)
    v = inputs(rng, 9, 4)
    assert -0.6 < fall(lambda n: attention_errors(q, k, v, n, 40)) < -0.4


@every_kernel
def test_orthogonal_features_err_less_than_independent_ones(kind, rng):
    estimate, kernel = KERNELS[kind]
    q, k = vectors(rng, 1, 7, 2), vectors(rng, 1, 9, 2)

    def error(independent):
        found = [estimate(q, k, p) - kernel(q, k) for p in draws(D, SEEDS, independent)]
        return np.mean(np.square(found))

    assert error(independent=False) < 0.95 * error(independent=True)


def test_directions_are_orthogonal_in_blocks_and_as_long_as_normal_ones():
    projections = np.stack(list(draws(20, 500)))
    for block in np.split(projections, [8, 16], axis=2):
        inner = np.einsum("ndf,ndg->nfg", block, block)
        diagonal = np.einsum("nff->nf", inner)
        assert_close(inner, diagonal[:, :, None] * np.eye(block.shape[2]), 1e-12)
        # The squared length of a normal vector has mean d and variance 2 d; 500 draws or more.
        assert abs(diagonal.mean() - D) < 4 * np.sqrt(2 * D / diagonal.size)
        assert abs(diagonal.var() / (2 * D) - 1) < 0.3
    entries = np.moveaxis(projections, 2, 0).reshape(20, 500, D)
    assert np.all(np.abs(entries.mean(axis=1)) < 5 / np.sqrt(500))  # 160 entries


def built(size=24, **arguments):
    layer = PerformerAttention(
        6, 5, num_key_value_heads=3, value_dim=7, num_random_features=size, **arguments
    )
    layer.build((None, None, WIDTH), (None, None, WIDTH))
    return layer


def model_of(layer):
    x = keras.Input((None, WIDTH))
    return keras.Model(x, layer(x, x, use_causal_mask=True))


@pytest.mark.parametrize("features", [PositiveFeatures(), TrigonometricFeatures(2.0)])
def test_it_is_linear_attention_of_its_features(features, rng):
    layer, x = built(features=features, seed=2), inputs(rng, 2, 70, WIDTH)
    q, k = features(layer.query_dense(x), layer.key_dense(x), layer.projection)
    mixed, _ = linear_attention(q, k, layer.value_dense(x), causal=True)
    assert_close(layer(x, x, use_causal_mask=True), layer.output_dense(mixed), 1e-6)


@pytest.mark.parametrize(
    ("features", "size"), [(None, 24), (TrigonometricFeatures(2.0), 48)], ids=str
)
def test_the_state_is_as_large_as_its_features_however_long_the_stream(features, size, rng):
    model = model_of(built(features=features, seed=2))
    stream = Streaming(model)
    sums = {"performer_attention_0_sums": ((3, size, 8), "float32")}
    assert stream.state_spec == sums
    x = inputs(rng, 1, 257, WIDTH)
    state, outputs = stream.initial_state(1), []
    for piece in np.split(x, [1, 2, 66, 130], axis=1):
        y, state = stream(piece, state)
        outputs.append(y)
    assert_close(np.concatenate(outputs, axis=1), model(x), 3e-6)
    assert {name: tuple(s.shape[1:]) for name, s in state.items()} == {
        name: shape for name, (shape, _) in sums.items()
    }


def placed(layer, x, positions):
    """Q and k of the layer's projections, each step rotated by its position, float64."""
    rotations = np.stack([references._rotation(p, 5) for p in positions])
    weights = layer_weights(layer)
    return [
        np.einsum("btm,mhd,tcd->bthc", np.float64(x), weights[name][0], rotations)
        for name in ("query", "key")
    ]


@pytest.mark.parametrize("causal", [False, True])
def test_rotary_positions_rotate_queries_and_keys_before_the_features(causal, rng):
    layer, x = built(position=Rotary(), seed=2), inputs(rng, 1, 13, WIDTH)
    mask = np.array([[False, True] + [True, False, True, True] * 2 + [True] * 3])
    _, found = layer(
        x, x, query_mask=mask, value_mask=mask, use_causal_mask=causal,
        return_attention_scores=True,
    )  # fmt: skip
    q, k = placed(layer, x, references.positions(13, mask)[0])
    more = layer_weights(layer)["more"]
    expected = references.performer_weights(q, k, How(mask, mask, causal=causal), more=more)
    assert_close(found, references.normalise(expected), 1e-5)
    other = built(seed=2)
    other.set_weights(layer.get_weights())
    difference = other(x, x, use_causal_mask=causal) - layer(x, x, use_causal_mask=causal)
    assert np.abs(to_numpy(difference)).max() > 1e-3


def test_rotary_positions_go_on_in_a_stream_and_start_afresh_in_a_segment(rng):
    layer, x = built(position=Rotary(), seed=2), inputs(rng, 2, 13, WIDTH)
    model = model_of(layer)
    stream, mask = Streaming(model), rng.random((2, 13)) < 0.7
    state, outputs = stream.initial_state(2), []
    for piece, real in zip(*(np.split(z, [1, 2, 9], axis=1) for z in (x, mask)), strict=True):
        y, state = stream(piece, state, mask=real)
        outputs.append(y)
    expected = to_numpy(layer(x, x, value_mask=mask, use_causal_mask=True))
    assert_close(np.concatenate(outputs, axis=1)[mask], expected[mask], 1e-6)
    assert to_numpy(state["performer_attention_0_position"]).tolist() == mask.sum(axis=1).tolist()
    ids = np.repeat([[3, 1]], [4, 9], axis=1).repeat(2, axis=0)
    packed = layer(x, x, segment_ids=ids, use_causal_mask=True)
    alone = [model(part) for part in np.split(x, [4], axis=1)]
    assert_close(packed, np.concatenate(alone, axis=1), 1e-6)


def test_a_redraw_changes_the_outputs_and_is_that_of_its_seed(rng):
    layer, x = built(seed=2), inputs(rng, 2, 13, WIDTH)
    first = to_numpy(layer(x, x))
    layer.redraw(7)
    second = to_numpy(layer(x, x))
    assert np.abs(second - first).max() > 1e-3
    layer.redraw()
    assert np.abs(to_numpy(layer(x, x)) - second).max() > 1e-3
    layer.redraw(2)
    assert_close(layer(x, x), first, 0)
    layer.redraw(7)
    assert_close(layer.projection, built(seed=7).projection, 0)


def test_without_a_seed_every_layer_draws_its_own_and_keras_decides_which():
    keras.utils.set_random_seed(5)
    first, second = (to_numpy(built().projection) for _ in range(2))
    assert np.abs(first - second).max() > 1e-3
    keras.utils.set_random_seed(5)
    assert_close(built().projection, first, 0)


def test_a_redraw_between_epochs_is_trained_on_and_saved(rng, tmp_path):
    layer, x = built(seed=2), inputs(rng, 4, 13, WIDTH)
    model = model_of(layer)
    model.compile("sgd", "mse")
    drawn = to_numpy(layer.projection)
    model.fit(x, x, verbose=0)
    assert_close(layer.projection, drawn, 0)  # it is not trained
    before = model.predict(x, verbose=0)
    layer.redraw(7)
    assert np.abs(model.predict(x, verbose=0) - before).max() > 1e-3
    model.fit(x, x, verbose=0)
    drawn = random_features.orthogonal_projection(5, 24, 7)
    assert_close(layer.projection, drawn.astype("float32"), 0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_close(loaded.layers[-1].projection, layer.projection, 0)
    assert_close(loaded(x), model(x), 0)


@pytest.mark.parametrize("features", [None, TrigonometricFeatures()], ids=str)
@pytest.mark.parametrize("size", [1e-20, 1e2, 1e4, 1e15])
def test_large_inputs_give_finite_values_and_gradients(features, size, rng):
    layer, x = built(features=features, seed=2), inputs(rng, 2, 13, WIDTH)
    v = inputs(rng, 2, 13, WIDTH)

    def total(x):
        return keras.ops.sum(layer(size * x, v, key=size * x, use_causal_mask=True))

    assert np.all(np.isfinite(gradients(total, x)[0]))
    outputs = to_numpy(layer(size * x, v, key=size * x, use_causal_mask=True))
    assert np.all(np.isfinite(outputs))
    assert np.all(np.abs(outputs).max(axis=-1) > 1e-3)  # a step that is there is not nothing


def test_a_key_that_fits_a_direction_does_not_overflow(rng):
    """The largest feature a key can have is `exp(|w|^2 / 2)`, where y is w."""
    w = 12 * np.ones((4, 1), "float32")
    k = np.broadcast_to(w[:, 0] * 4**0.25, (1, 257, 1, 4)).astype("float32")
    features = PositiveFeatures()(k, k, w)
    v = 1e3 * inputs(rng, 1, 257, 1, 3)
    out, _ = linear_attention(*features, v, causal=True)
    assert_close(out, np.cumsum(v, axis=1) / np.arange(1, 258)[:, None, None], 1e-5)


def test_it_compiles_and_keeps_its_projection_in_half_precision(rng):
    layer, x = built(seed=2, dtype="mixed_float16"), inputs(rng, 2, 13, WIDTH)
    assert layer.projection.dtype == "float32"
    run = compiled(functools.partial(layer, use_causal_mask=True))
    assert_close(run(x, x), layer(x, x, use_causal_mask=True), 5e-3)  # float16 keeps 11 bits


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_random_features": 0}, "`num_random_features` must be .* num_random_features=0"),
        ({"features": "positive"}, r"must be `PositiveFeatures\(\)` or .* features='positive'"),
        ({"position": XPos()}, r"of kind \('rotation',\). Received: .*XPos"),
        ({"seed": "x"}, "`seed` must be an integer .*seed='x'"),
        ({"seed": -1}, "`seed` must be an integer of at least 0.*seed=-1"),
    ],
)
def test_a_bad_argument_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PerformerAttention(2, 3, **arguments)
    with pytest.raises(ValueError, match=r"`sigma` must be positive. Received: sigma=0"):
        TrigonometricFeatures(0)


def test_a_seed_of_numpy_is_that_integer():
    layers = [built(seed=seed) for seed in (np.int64(3), 3)]
    assert_close(layers[0].projection, layers[1].projection, 0)
    assert type(layers[0].get_config()["seed"]) is int


def test_the_features_are_in_the_configuration_and_do_not_change():
    layer = built(features=TrigonometricFeatures(2.0), seed=2)
    copy = PerformerAttention.from_config(layer.get_config())
    assert copy.features == layer.features == TrigonometricFeatures(2.0)
    assert copy.features != TrigonometricFeatures(3.0)
    assert built().features == PositiveFeatures() != TrigonometricFeatures()
    with pytest.raises(AttributeError):  # layers may share the object
        layer.features.sigma = 3.0
