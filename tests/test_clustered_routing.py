"""Clustered routing attention: who meets whom, what the centroids learn, who sees the future."""

import keras
import numpy as np
import pytest
from references import How, clustered_routing_weights, normalise
from support import assert_close, compiled, gradients, layer_weights, pure, streamed

from keras_cosattn import ClusteredRoutingAttention, Rotary, Streaming, scope

EXACT = 1e-6  # the same sums, at most in another order
WIDTH, D = 11, 5


def build(**arguments):
    layer = ClusteredRoutingAttention(2, D, value_dim=7, **{"seed": 1, **arguments})
    layer.build((None, None, WIDTH), (None, None, WIDTH))
    return layer


def steps(rng, t, b=2):
    return rng.normal(size=(b, t, WIDTH)).astype("float32")


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def projections(layer, x):
    """The unit q, and v, `(b, t, h, .)`, in float64."""
    weights = layer_weights(layer)
    q, v = (
        np.einsum("btm,mhd->bthd", np.float64(x), weights[name][0]) + weights[name][1]
        for name in ("query", "value")
    )
    return unit(q), v


def numbers(layer):
    return keras.ops.convert_to_numpy(layer.centroids)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("t", [1, 13, 64, 257])
def test_one_cluster_with_all_steps_is_dense_attention(t, strict, causal, rng):
    layer, x = build(num_clusters=1, cluster_size=300, strict=strict), steps(rng, t)
    unit_q, v = projections(layer, x)
    sees = np.tri(t, dtype=bool) if causal else True
    weights = normalise(np.exp(np.einsum("bthd,bshd->bhts", unit_q, unit_q) * np.sqrt(D)) * sees)
    kernel, bias = layer_weights(layer)["attention_output"]
    expected = np.einsum("bhts,bshe,hem->btm", weights, v, kernel) + bias
    assert_close(layer(x, x, use_causal_mask=causal), expected)


@pytest.mark.parametrize(("causal", "strict"), [(False, True), (True, True), (True, False)])
@pytest.mark.parametrize("t", [1, 13, 64, 257])
def test_any_length_with_padding_and_packing_equals_the_reference(t, causal, strict, rng):
    options = {"num_clusters": 4, "cluster_size": 3, "strict": strict}
    layer, x = build(**options), steps(rng, t)
    mask = rng.random((2, t)) < 0.7
    for ids in (None, np.cumsum(rng.random((2, t)) < 0.1, axis=1)):
        _, found = layer(
            x, x, query_mask=mask, value_mask=mask, segment_ids=ids, use_causal_mask=causal,
            return_attention_scores=True,
        )  # fmt: skip
        q, _ = projections(layer, x)
        how = How(mask, mask, ids, causal=causal)
        expected = clustered_routing_weights(q, q, how, layer_weights(layer)["more"], **options)
        assert_close(found, expected)


def test_a_step_in_no_cluster_gives_zero_and_one_in_several_the_mean(rng):
    layer = build(num_clusters=2, cluster_size=2, use_bias=False)
    layer.centroids.assign(np.repeat(np.eye(D)[None, :2], 2, axis=0))
    directions = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], "float32")
    layer.query_dense.kernel.assign(np.repeat(np.eye(WIDTH, D)[:, None], 2, axis=1))
    x = np.zeros((1, 4, WIDTH), "float32")
    x[0, :, :3] = directions
    outputs, weights = layer(x, x, return_attention_scores=True)
    weights = np.asarray(weights)[0, 0]
    assert not np.any(np.asarray(outputs)[0, 3])
    assert np.array_equal(weights > 0, [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0] * 4])
    assert_close(np.sum(weights, axis=-1), [1, 1, 1, 0], EXACT)


def test_padding_is_in_no_cluster(rng):
    layer, x = build(num_clusters=3, cluster_size=4), steps(rng, 13)
    mask = np.arange(13) < np.array([[3], [9]])
    junk = np.where(mask[..., None], x, np.float32(np.nan))
    found = np.asarray(layer(junk, junk, query_mask=mask, value_mask=mask))
    for i, n in enumerate((3, 9)):
        alone = x[i : i + 1, :n]
        expected = layer(alone, alone)
        assert_close(found[i : i + 1, :n], expected, EXACT)


@pytest.mark.parametrize("jit", [False, True])
def test_the_strict_form_never_sees_the_future_and_the_papers_does(jit, rng):
    x = steps(rng, 29)
    changed = x.copy()
    changed[:, 17:] = 9 * steps(rng, 12)
    differences = {}
    for strict in (True, False):
        layer = build(num_clusters=3, cluster_size=4, strict=strict)

        def run(x, layer=layer):
            return pure(layer, x, x, use_causal_mask=True, training=True)

        run = compiled(run) if jit else run
        before, after = (np.asarray(run(each))[:, :17] for each in (x, changed))
        differences[strict] = np.max(np.abs(after - before)) / np.max(np.abs(before))
    assert differences[True] < EXACT
    assert differences[False] > 0.1  # a later step takes an earlier one's place


def test_no_later_step_gives_a_gradient_in_either_form(rng):
    """The future comes in through who is chosen, which has no gradient."""
    x = steps(rng, 13, 1)
    for strict in (True, False):
        layer = build(num_clusters=2, cluster_size=8, strict=strict)

        def energy(x, layer=layer):
            return keras.ops.sum(layer(x, x, use_causal_mask=True)[:, 6] ** 2)

        (slope,) = gradients(energy, x)
        assert not np.any(slope[:, 7:])
        assert np.any(slope[:, 6])


def test_the_papers_form_cannot_stream(rng):
    layer, x = build(strict=False, max_length=64), steps(rng, 3)
    with (
        scope.opened(scope.Stream()),
        pytest.raises(ValueError, match=r"cannot stream: later steps change .*`strict=True`"),
    ):
        layer(x, x, use_causal_mask=True)


@pytest.mark.parametrize("position", [None, Rotary])
def test_a_stream_computes_what_the_whole_does(position, rng):
    layer = build(num_clusters=3, cluster_size=3, max_length=64, position=position and position())
    inputs = keras.Input((None, WIDTH))
    model = keras.Model(inputs, layer(inputs, inputs, use_causal_mask=True))
    x = steps(rng, 40)
    assert_close(streamed(model, x, [17, 18, 19, 31]), model(x), EXACT)


@pytest.mark.parametrize("causal", [False, True])
def test_centroids_move_to_the_mean_of_their_steps(causal, rng):
    layer, x = build(num_clusters=4, cluster_size=4, decay=0.7), steps(rng, 29)
    mask = rng.random((2, 29)) < 0.8
    old, (q, _) = np.float64(numbers(layer)), projections(layer, x)
    nearest = np.argmax(np.einsum("bthd,hkd->bthk", q, unit(old)), axis=-1)
    layer(x, x, query_mask=mask, value_mask=mask, use_causal_mask=causal)
    assert np.array_equal(numbers(layer), np.float32(old))  # not in inference
    layer(x, x, query_mask=mask, value_mask=mask, use_causal_mask=causal, training=True)
    for h in range(2):
        for k in range(4):
            mine = q[:, :, h][mask & (nearest[:, :, h] == k)]
            expected = 0.7 * old[h, k] + 0.3 * np.mean(mine, axis=0) if len(mine) else old[h, k]
            assert_close(numbers(layer)[h, k], expected)


def test_the_weights_of_training_are_those_of_the_output(rng):
    x = steps(rng, 12)
    options = {"num_clusters": 4, "cluster_size": 3, "decay": 0.0, "use_bias": False}
    layer = ClusteredRoutingAttention(1, 4, **options)
    y, weights = layer(x, x, training=True, return_attention_scores=True)
    mixed = np.einsum("bhts,bshe->bthe", np.asarray(weights), np.asarray(layer.value_dense(x)))
    assert_close(layer.output_dense(mixed), y, 1e-6)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_a_batch_without_real_steps_moves_no_centroid(policy, rng):
    layer = build(num_clusters=3, cluster_size=4, dtype=policy)
    before, x = numbers(layer), np.full((2, 13, WIDTH), np.nan, "float32")
    mask = np.zeros((2, 13), bool)
    layer(x, x, query_mask=mask, value_mask=mask, training=True)
    assert np.array_equal(numbers(layer), before)
    assert keras.backend.standardize_dtype(layer.centroids.dtype) == "float32"


def model_of(**arguments):
    inputs = keras.Input((None, WIDTH))
    layer = ClusteredRoutingAttention(2, D, **{"seed": 1, **arguments})
    return keras.Model(inputs, layer(inputs, inputs, use_causal_mask=True))


@pytest.mark.parametrize(
    ("policy", "jit"),
    [
        ("float32", True),
        pytest.param("float32", False, marks=pytest.mark.slow),
        pytest.param("mixed_float16", True, marks=pytest.mark.slow),
        pytest.param("mixed_float16", False, marks=pytest.mark.slow),
    ],
)
def test_fit_moves_centroids_that_are_saved_and_then_fixed(jit, policy, rng, tmp_path):
    model = model_of(num_clusters=3, cluster_size=4, decay=0.9, max_length=64, dtype=policy)
    before, x = numbers(model.layers[-1]), steps(rng, 13, 8)
    model.compile("sgd", "mse", jit_compile=jit)
    model.fit(x, x, batch_size=4, epochs=2, verbose=0)
    learned = numbers(model.layers[-1])
    assert np.all(np.isfinite(learned))
    assert np.max(np.abs(learned - before)) > 0.01
    model.evaluate(x, x, verbose=0)
    model.predict(x, verbose=0)
    if policy == "float32":
        stream = Streaming(model)
        stream(x, stream.initial_state(8))
    assert np.array_equal(numbers(model.layers[-1]), learned)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert np.array_equal(numbers(loaded.layers[-1]), learned)
    assert_close(loaded(x), model(x), 0)


def test_steps_of_a_cluster_of_the_data_share_a_centroid_and_meet(rng):
    kinds, per_kind = 4, 16
    directions, kind = np.eye(D)[:kinds], np.tile(np.arange(kinds), per_kind)
    x = (directions[kind] + 0.1 * rng.normal(size=(8, len(kind), D))).astype("float32")
    layer = ClusteredRoutingAttention(
        1, D, num_clusters=kinds, cluster_size=per_kind, decay=0.8, use_bias=False
    )
    layer.build(x.shape, x.shape)
    layer.query_dense.kernel.assign(np.eye(D)[:, None])
    layer.centroids.assign(directions[None] + 0.3 * rng.normal(size=(1, kinds, D)))
    for _ in range(30):
        layer(x, x, training=True)
    cosines = unit(numbers(layer)[0]) @ unit(directions).T
    assert np.min(np.diag(cosines)) > 0.99
    same = kind[:, None] == kind[None, :]
    for causal in (False, True):
        _, weights = layer(x, x, return_attention_scores=True, use_causal_mask=causal)
        inside = np.sum(np.asarray(weights)[:, 0] * same, axis=-1)
        assert_close(inside, np.ones_like(inside), EXACT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_clusters": 0}, "`num_clusters` must be .* num_clusters=0"),
        ({"cluster_size": None}, "`cluster_size` must be .* cluster_size=None"),
        ({"decay": 1.5}, "`decay` must be between 0 and 1.*decay=1.5"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClusteredRoutingAttention(2, 5, **arguments)


def test_frozen_centroids_stay(rng):
    layer = ClusteredRoutingAttention(2, 4, num_clusters=3, cluster_size=4, decay=0.5, seed=3)
    x = keras.Input((None, WIDTH))
    model = keras.Model(x, layer(x, x))
    layer.trainable = False
    model.compile("sgd", "mse", jit_compile=False)
    before = numbers(layer)
    data = rng.normal(size=(4, 9, WIDTH)).astype("float32")
    model.fit(data, data, epochs=2, verbose=0)
    np.testing.assert_array_equal(numbers(layer), before)
    layer.trainable = True
    model.compile("sgd", "mse", jit_compile=False)
    model.fit(data, data, verbose=0)
    assert np.any(numbers(layer) != before)
