"""Relative positions: each equals its paper's formula, streams, and fits where it says."""

import keras
import numpy as np
import pytest
import references
from references import How
from support import (
    assert_close,
    compiled,
    compiled_on_jax,
    gradients,
    layer_weights,
    pure,
    random_mask,
    random_segments,
    streamed,
)
from variants import CASES, WIDTH, inputs, make

from keras_cosattn import (
    ALiBi,
    LinearAttention,
    Rotary,
    Shaw,
    Sinusoidal,
    SoftmaxAttention,
    Streaming,
    T5Bias,
    TransformerXL,
    XPos,
    positions,
)

B, HEADS, SHARED, D = 2, 6, 3, 5

OBJECTS = {
    "Rotary": (Rotary, {"base": 100.0}),
    "XPos": (XPos, {"scale_base": 8.0}),
    "Sinusoidal": (Sinusoidal, {}),
    "ALiBi": (ALiBi, {}),
    "T5Bias": (T5Bias, {"num_buckets": 8, "max_distance": 11}),
    "T5Bias-causal": (T5Bias, {"num_buckets": 6, "max_distance": 9, "bidirectional": False}),
    "Shaw": (Shaw, {"max_distance": 4}),
    "TransformerXL": (TransformerXL, {}),
}
every_object = pytest.mark.parametrize("name", OBJECTS)


def build(name, rng, heads=HEADS, d=D, **arguments):
    cls, own = OBJECTS[name]
    layer = SoftmaxAttention(
        heads, d, num_key_value_heads=heads // 2, position=cls(**own), **arguments
    )
    layer.build((None, None, WIDTH), (None, None, WIDTH))
    for variable in layer.trainable_variables:
        variable.assign(rng.normal(size=variable.shape, scale=0.5))
    return layer, cls.__name__, own


def expected(layer, name, own, x, how):
    weights = layer_weights(layer)
    q, k, v = (
        np.einsum("btm,mhd->bthd", np.float64(x), weights[part][0]) + weights[part][1]
        for part in ("query", "key", "value")
    )
    more = weights.get("more")
    placed = references.placed_softmax_weights(name, q, k, how, more, **own)
    kernel, bias = weights["attention_output"]
    mixed = references.mix(references.normalise(placed), v)
    return np.einsum("bthe,hem->btm", mixed, kernel) + bias


@every_object
@pytest.mark.parametrize(("causal", "kind"), [(False, None), (True, "holes"), (True, "packed")])
def test_softmax_with_a_position_equals_its_formula(name, causal, kind, rng):
    layer, formula, own = build(name, rng)
    x = inputs(rng, B, 17, WIDTH)
    mask = random_mask(rng, "left" if kind == "packed" else kind, B, 17)
    ids = random_segments(rng, B, 17) if kind == "packed" else None
    options = {"segment_ids": ids, "use_causal_mask": causal}
    run = compiled_on_jax(lambda x: pure(layer, x, x, query_mask=mask, value_mask=mask, **options))
    how = How(mask, mask, ids, causal=causal)
    assert_close(run(x), expected(layer, formula, own, x, how))


@every_object
def test_a_position_reaches_the_input_and_its_own_weights(name, rng):
    layer, formula, own = build(name, rng)
    x, along = inputs(rng, 1, 9, WIDTH), rng.normal(size=(1, 9, WIDTH))
    (slope,) = gradients(lambda x: keras.ops.sum(layer(x, x) ** 2), x)
    how, step = How(), 1e-5

    def loss(x):
        return np.sum(expected(layer, formula, own, x, how) ** 2)

    numeric = (loss(x + step * along) - loss(x - step * along)) / (2 * step)
    assert np.sum(slope * along) == pytest.approx(numeric, rel=1e-3)
    for variable in layer.position.trainable_variables:
        before = np.asarray(layer(x, x))
        variable.assign_add(rng.normal(size=variable.shape))
        assert np.abs(np.asarray(layer(x, x)) - before).max() > 1e-2
        assert_close(layer(x, x), expected(layer, formula, own, x, how))


@every_object
def test_a_position_streams_saves_and_compiles(name, rng, tmp_path):
    layer, *_ = build(name, rng, max_length=40)
    x = keras.Input((None, WIDTH))
    model = keras.Model(x, layer(x, x, use_causal_mask=True))
    data = inputs(rng, 2, 13, WIDTH)
    assert_close(streamed(model, data, [5, 6, 12]), model(data))
    assert_close(compiled(lambda x: pure(layer, x, x, use_causal_mask=True))(data), model(data))
    model.save(tmp_path / "model.keras")
    assert_close(keras.models.load_model(tmp_path / "model.keras")(data), model(data), 0)


@pytest.mark.parametrize("heads", [1, 2, 6, 8, 12])
def test_slopes_of_alibi_are_the_papers(heads):
    from keras_cosattn.positions.alibi import slopes

    assert_close(slopes(heads), references.alibi_slopes(heads), 1e-12)
    assert slopes(8)[0] == 0.5


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 11), (16, 100)])
def test_buckets_of_t5_are_the_papers(num_buckets, max_distance, bidirectional):
    from keras_cosattn.positions.t5 import buckets

    found = buckets(num_buckets, max_distance, bidirectional)
    each = range(-max_distance, max_distance + 1)
    formula = [references.t5_bucket(n, num_buckets, max_distance, bidirectional) for n in each]
    np.testing.assert_array_equal(found, formula)
    beyond = references.t5_bucket(-5 * max_distance, num_buckets, max_distance, bidirectional)
    assert found[0] == beyond


def test_sinusoidal_is_added_to_the_input_and_streams(rng):
    x, mask = inputs(rng, 2, 13, 7), random_mask(rng, "left", 2, 13)
    layer = Sinusoidal()
    place = references.positions(13, mask)
    table = np.array([[references._sinusoid(p, 7) for p in row] for row in place])
    assert_close(np.asarray(layer(x, mask=mask))[mask], (x + table)[mask])
    features = keras.Input((None, 7))
    stream = Streaming(keras.Model(features, layer(features)))
    y, state = stream(x[:, :9], stream.initial_state(2))
    z, _ = stream(x[:, 9:], state)
    assert_close(np.concatenate([y, z], axis=1), layer(x))


def test_angles_stay_exact_at_position_a_million():
    from keras_cosattn.ops.angles import angles, frequencies

    place = np.array([[0, 7, 1_000_000, 999_999, -3]], "int32")
    rates = frequencies(64)
    exact = place[..., None].astype("float64") * rates
    found = np.asarray(angles(place, rates), "float64")
    assert np.abs(np.exp(1j * found) - np.exp(1j * exact)).max() < 5e-4


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", [None, "holes"])
def test_linear_attention_turns_its_features_above_the_line(causal, kind, rng):
    layer = LinearAttention(4, 6, num_key_value_heads=2, position=Rotary())
    layer.build((None, None, WIDTH), (None, None, WIDTH))
    x, mask = inputs(rng, B, 17, WIDTH), random_mask(rng, kind, B, 17)
    weights = layer_weights(layer)
    q, k, v = (
        np.einsum("btm,mhd->bthd", np.float64(x), weights[part][0]) + weights[part][1]
        for part in ("query", "key", "value")
    )
    final = references.rotated_linear_weights(q, k, How(mask, mask, causal=causal))
    options = {"query_mask": mask, "value_mask": mask, "use_causal_mask": causal}
    out, found = layer(x, x, return_attention_scores=True, **options)
    assert_close(found, final)
    kernel, bias = weights["attention_output"]
    assert_close(out, np.einsum("bthe,hem->btm", references.mix(final, v), kernel) + bias)


def test_linear_attention_with_rotary_streams(rng):
    x = keras.Input((None, WIDTH))
    model = keras.Model(
        x, LinearAttention(2, 6, position=Rotary(), chunk_size=4)(x, x, use_causal_mask=True)
    )
    data = inputs(rng, 2, 21, WIDTH)
    assert_close(streamed(model, data, [9, 10, 11]), model(data))


def parts(layer):
    """The layers that compute: those of a layer that routes, or the layer."""
    return getattr(layer, "paths", [layer])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", OBJECTS)
def test_a_layer_takes_the_kinds_it_names_and_refuses_the_others(case, name):
    cls, own = OBJECTS[name]
    if all(cls.kind in part.accepts_positions for part in parts(make(case))):
        assert all(part.position is not None for part in parts(make(case, position=cls(**own))))
    else:
        with pytest.raises(
            ValueError, match=rf"`position` must be .* Received: position=<{cls.__name__}"
        ):
            make(case, position=cls(**own))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Shaw(0), "max_distance=0"),
        (lambda: T5Bias(num_buckets=1), "num_buckets=1"),
        (lambda: T5Bias(max_distance=8), "max_distance=8"),
        (lambda: SoftmaxAttention(2, 3, position="rotary"), "position='rotary'"),
    ],
)
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_every_object_is_tested():
    found = {n for n in positions.__all__ if n not in ("Position", "PositionEmbedding")}
    assert found == {cls.__name__ for cls, _ in OBJECTS.values()}
