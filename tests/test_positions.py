"""Relative positions: each equals its paper's formula, streams, and fits where it says."""

import keras
import numpy as np
import pytest
import recurrent_references
import references
from references import How
from support import (
    BACKEND,
    assert_close,
    compiled,
    compiled_on_jax,
    float64,
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
    CosFormerAttention,
    DecayedCosFormerAttention,
    LinearAttention,
    PerformerAttention,
    RetentionAttention,
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
    "Rotary-halves": (
        Rotary,
        {"base": 50.0, "interleaved": False, "scaling_factor": 3.0, "rotary_dim": 4},
    ),
    "Rotary-adjusted": (Rotary, {"base": 300.0, "frequency_adjustment": (4.0, 0.5, 2.0, 12)}),
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
@pytest.mark.sample(4)
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
@pytest.mark.sample(3)
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

    assert_close(slopes(heads), recurrent_references.alibi_slopes(heads), 1e-12)
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


LAST = 2**31 - 1
TAU = 2 * np.longdouble("3.14159265358979323846264338327950288")
LATE = {
    "million": 1_000_000,
    "13 million": 13_000_000,
    "100 million": 100_000_000,
    "2^30": 2**30,
    "last": LAST,
}
"""The position where int32 ends is after 37 hours at 16,000 steps per second."""


def angle_error(place, dtype):
    """The largest distance on the unit circle, from whole turns taken off in long doubles."""
    from keras_cosattn.ops.angles import angles, frequencies

    rates = frequencies(64)
    exact = np.mod(place[..., None].astype(np.longdouble) * rates, TAU).astype("float64")
    with float64():
        found = np.asarray(angles(place, rates, dtype))
    assert found.dtype == dtype
    return np.abs(np.exp(1j * found.astype("float64")) - np.exp(1j * exact)).max()


@pytest.mark.parametrize("place", LATE.values(), ids=LATE)
def test_angles_stay_exact_up_to_the_last_position(place):
    near = np.array([[0, 7, 1023, 1024, place, place - 1, place - 1000, -3]], "int32")
    assert angle_error(near, "float32") < 2e-6
    assert angle_error(near, "float64") < 1e-6  # a float64 rate is exact to 2^-53 of its turns


def test_angles_are_exact_in_float64():
    assert angle_error(np.arange(2000, dtype="int32")[None], "float64") < 1e-12


@pytest.mark.parametrize("place", LATE.values(), ids=LATE)
@pytest.mark.parametrize("name", [name for name in OBJECTS if name != "Sinusoidal"])
def test_late_positions_give_the_scores_of_early_ones(name, place, rng):
    """All but the sinusoid of the position itself depend on the distance only."""
    cls, own = OBJECTS[name]
    position = cls(**own)
    position.build((None, None, HEADS, D))
    q, k = inputs(rng, 1, 9, HEADS, D), inputs(rng, 1, 9, HEADS, D)
    early = np.arange(9, dtype="int32")[None]
    assert_close(scores(position, q, k, early + (place - 8)), scores(position, q, k, early))


def scores(position, q, k, place):
    """Unscaled scores of queries and keys at the same positions: `(b, h, t, s)`, float64."""
    bias = position.bias(q, place, place)
    q, k = (np.float64(x) for x in position.encode(q, k, place, place))
    return np.einsum("bthd,bshd->bhts", q, k) + (0 if bias is None else np.float64(bias))


def test_a_rotation_moves_features_without_products(rng, monkeypatch):
    """A product of matrices rounds to 10 bits on some devices."""

    def product(*args, **kwargs):
        raise AssertionError("a product of matrices")

    for name in ("matmul", "einsum", "dot", "tensordot"):
        monkeypatch.setattr(keras.ops, name, product)
    x = inputs(rng, 2, 13, 3, 7)
    found, _ = Rotary().encode(x, x, *2 * (np.arange(13, dtype="int32")[None],))
    matrices = np.stack([references._rotation(p, 7) for p in range(13)])
    assert_close(found, np.einsum("tcd,bthd->bthc", matrices, x), 1e-6)


@pytest.mark.parametrize("name", [name for name in OBJECTS if name.startswith("Rotary")])
def test_prepared_positions_encode_the_same(name, rng):
    cls, own = OBJECTS[name]
    position, place = cls(**own), rng.integers(0, 99, (2, 7)).astype("int32")
    q, k = inputs(rng, 2, 7, 4, 5), inputs(rng, 2, 7, 2, 5)
    prepared = position.prepare(place, 5, "float32")
    found = position.encode(q, k, prepared, prepared)
    for one, other in zip(found, position.encode(q, k, place, place), strict=True):
        assert_close(one, other, 0)


class NotRotated(Rotary):
    def encode(self, q, k, q_positions, k_positions):
        assert len(q_positions.shape) == len(k_positions.shape) == 2
        return q, k


def test_an_encode_of_a_subclass_is_used(rng):
    x = inputs(rng, 2, 13, WIDTH)
    layer = LinearAttention(2, 4, position=NotRotated(), block_size=4)
    out = layer(x, x, use_causal_mask=True)
    plain = LinearAttention(2, 4, block_size=4)
    plain.build(x.shape, x.shape)
    plain.set_weights(layer.get_weights())
    assert_close(out, plain(x, x, use_causal_mask=True))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="reads a graph of TensorFlow")
@pytest.mark.parametrize(
    "layer",
    [
        LinearAttention(2, 4, position=Rotary(), chunk_size=4),
        PerformerAttention(2, 4, position=Rotary(), chunk_size=4),
        RetentionAttention(2, 4, chunk_size=4),
        DecayedCosFormerAttention(2, 4, chunk_size=4),
        CosFormerAttention(2, 4, max_length=300),
        CosFormerAttention(2, 4, horizon=16),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_loop_computes_no_sines(layer, rng):
    """XLA would compute them for each head and, of cosFormer, for each feature."""
    import tensorflow as tf

    x = inputs(rng, 2, 300, WIDTH)  # so many that a loop is faster
    run = tf.function(lambda x: layer(x, x, use_causal_mask=True)).get_concrete_function(x)
    graph = run.graph.as_graph_def()
    assert {"Sin", "Cos"} <= {node.op for node in graph.node}
    loops = {
        node.attr["body"].func.name for node in graph.node if node.op in {"While", "StatelessWhile"}
    }
    bodies = [f for f in graph.library.function if f.signature.name in loops]
    assert bodies
    assert not {"Sin", "Cos", "FloorMod"} & {node.op for f in bodies for node in f.node_def}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scaling_factor": 0}, "`scaling_factor` must be a number above 0.*=0"),
        ({"rotary_dim": 3}, "`rotary_dim` must be an even number above 0.*=3"),
        ({"frequency_adjustment": (8.0, 4.0, 1.0, 64)}, "must be four numbers above 0.*the second"),
        ({"rotary_dim": 8}, "`rotary_dim` must be at most the size of a head.*=8, heads of 6"),
    ],
)
def test_a_wrong_rotation_is_refused(wrong, message, rng):
    x = inputs(rng, 1, 2, 12)
    with pytest.raises(ValueError, match=message):
        SoftmaxAttention(2, 6, position=Rotary(**wrong))(x, x)


@pytest.mark.parametrize("d", [1, 2, 5, 8])
def test_the_first_step_is_not_rotated(d, rng):
    x, place = inputs(rng, 2, 1, 3, d), np.zeros((1, 1), "int32")
    assert_close(Rotary().encode(x, x, place, place)[0], x, 0)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="exports need TensorFlow")
def test_a_stream_with_rotary_is_exported_as_one_delegated_part(tmp_path):
    from keras_cosattn import export

    x = keras.Input((None, 8))
    layer = LinearAttention(2, 4, position=Rotary())
    model = keras.Model(x, layer(x, x, use_causal_mask=True))
    report = export.to_tflite(model, tmp_path / "m.tflite", signatures=["step"])
    assert report.partitions["step"] == 1
    assert report.largest_difference < 1e-5


@every_object
def test_one_object_passed_to_two_layers_is_saved_for_each(name, rng, tmp_path):
    cls, own = OBJECTS[name]
    given = cls(**own)
    x = keras.Input((None, WIDTH))
    layers = [SoftmaxAttention(2, 4, position=given) for _ in range(2)]
    y = x
    for layer in layers:
        y = layer(y, y)
    model = keras.Model(x, y)
    assert not given.weights
    first, second = (layer.position.get_weights() for layer in layers)
    assert all(np.any(one != other) for one, other in zip(first, second, strict=True))
    data = inputs(rng, 2, 9, WIDTH)
    model.save(tmp_path / "model.keras")
    assert_close(keras.models.load_model(tmp_path / "model.keras")(data), model(data), 0)


@every_object
def test_a_clone_has_the_same_arguments(name):
    cls, own = OBJECTS[name]
    given = cls(**own)
    clone = given.clone()
    assert clone is not given
    assert clone.get_config() == given.get_config()
    assert clone.clone(dtype="float64").dtype_policy.name == "float64"


@pytest.mark.parametrize("cls", [Shaw, T5Bias, TransformerXL])
def test_a_function_may_be_the_initializer(cls):
    def ones(shape, dtype):
        return keras.ops.ones(shape, dtype)

    layer = SoftmaxAttention(2, 4, position=cls(initializer=ones))
    layer.build((None, None, 5), (None, None, 5))
    assert all(np.all(weight == 1) for weight in layer.position.get_weights())


def test_weights_of_one_initializer_and_shape_differ():
    position = TransformerXL()
    position.build((None, None, HEADS, D))
    assert np.any(np.asarray(position.content) != np.asarray(position.distance))


def given(name, **arguments):
    cls, own = OBJECTS[name]
    position = cls(**own, **arguments)
    position.build((None, None, HEADS, D))
    return position


def tensors(name, position, q, k):
    """What a position makes of queries and keys at 0, 1, ..: the two, and the bias if any."""
    q_place, k_place = (
        keras.ops.expand_dims(keras.ops.arange(x.shape[1], dtype="int32"), 0) for x in (q, k)
    )
    bias = position.bias(q, q_place, k_place)
    return [*position.encode(q, k, q_place, k_place), *([] if bias is None else [bias])]


COMPUTING = [name for name in OBJECTS if name != "Sinusoidal"]
compute = pytest.mark.parametrize("name", COMPUTING)


@compute
def test_float64_stays_float64(name, rng):
    q, k = rng.normal(size=(2, 2, 9, HEADS, D))
    with float64():
        position = given(name, dtype="float64")
        found = tensors(name, position, q, k)
        assert all(keras.backend.standardize_dtype(x.dtype) == "float64" for x in found)
        assert {weight.dtype for weight in position.weights} <= {"float64"}
        place = np.arange(9, dtype="int32")[None]
        weights = {w.name: np.asarray(w) for w in position.weights}
        cls, own = OBJECTS[name]
        exact = references.placed_scores(cls.__name__, q, k, How(), weights, **own) * D**0.5
        actual = scores_with_scaled_bias(position, q, k, place)
    # On the other backends Keras computes the sines and exponentials of float64 in float32.
    assert_close(actual, exact, 1e-10 if BACKEND == "tensorflow" else 1e-6)


def scores_with_scaled_bias(position, q, k, place):
    bias = position.bias(q, place, place)
    q, k = (np.asarray(x) for x in position.encode(q, k, place, place))
    return np.einsum("bthd,bshd->bhts", q, k) + (0 if bias is None else np.asarray(bias) * D**0.5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@compute
def test_half_precision_is_computed_in_float32(name, dtype, rng):
    q, k = (keras.ops.cast(inputs(rng, 2, 9, HEADS, D), dtype) for _ in "qk")
    position = given(name)
    expected = tensors(name, position, *(keras.ops.cast(x, "float32") for x in (q, k)))
    for half, single in zip(tensors(name, position, q, k), expected, strict=True):
        assert_close(keras.ops.cast(half, "float32"), single, 0)


@pytest.mark.parametrize("floatx", ["float16", "float64"])
@compute
def test_the_default_float_type_does_not_reach_positions(name, floatx, rng):
    q, k, before = inputs(rng, 2, 9, HEADS, D), inputs(rng, 2, 9, HEADS, D), keras.config.floatx()
    position = given(name)
    expected = tensors(name, position, q, k)
    keras.config.set_floatx(floatx)
    try:
        found = tensors(name, position, q, k)
    finally:
        keras.config.set_floatx(before)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, 0)


@pytest.mark.parametrize(("b", "t", "s"), [(0, 9, 9), (2, 0, 0), (2, 0, 9), (0, 0, 9)])
@compute
def test_no_examples_and_no_steps_are_allowed(name, b, t, s):
    q, k = np.zeros((b, t, HEADS, D), "float32"), np.zeros((b, s, HEADS, D), "float32")
    new_q, new_k, *bias = tensors(name, given(name), q, k)
    assert tuple(new_q.shape) == q.shape
    assert tuple(new_k.shape) == k.shape
    for x in bias:
        assert np.broadcast_shapes(x.shape, (b, HEADS, t, s)) == (b, HEADS, t, s)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", [None, "holes"])
def test_linear_attention_rotates_its_features_in_the_numerator(causal, kind, rng):
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
        (lambda: Shaw(True), "max_distance=True"),
        (lambda: T5Bias(num_buckets=1), "num_buckets=1"),
        (lambda: T5Bias(num_buckets=8.0), "num_buckets=8.0"),
        (lambda: T5Bias(max_distance=8), "max_distance=8"),
        (lambda: SoftmaxAttention(2, 3, position="rotary"), "position='rotary'"),
    ],
)
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_sizes_of_numpy_are_integers():
    assert type(Shaw(np.int64(3)).max_distance) is int
    assert type(T5Bias(np.int32(8), np.int64(11)).num_buckets) is int


def test_every_object_is_tested():
    found = {n for n in positions.__all__ if n not in ("Position", "PositionEmbedding")}
    assert found == {cls.__name__ for cls, _ in OBJECTS.values()}


@pytest.mark.parametrize("cls", [Rotary, Sinusoidal])
@pytest.mark.parametrize(
    "case",
    ["SoftmaxAttention-cache", "LSHAttention-buckets", "ClusteredRoutingAttention-strict"],
)
def test_a_stream_encodes_each_key_once(case, cls, rng, monkeypatch):
    lengths, encode = [], cls.encode

    def record(self, q, k, q_positions, k_positions):
        lengths.append((q.shape[1], k.shape[1]))
        return encode(self, q, k, q_positions, k_positions)

    layer, one = make(case, position=cls()), keras.Input((None, WIDTH))
    model = keras.Model(one, layer(one, one, use_causal_mask=True))
    x, mask = inputs(rng, 2, 13, WIDTH), rng.random((2, 13)) < 0.7
    stream = Streaming(model, run_eagerly=True)
    whole = layer(x, x, query_mask=mask, value_mask=mask, use_causal_mask=True)
    monkeypatch.setattr(cls, "encode", record)
    state, outputs = stream.initial_state(2), []
    for piece, valid in zip(*(np.split(a, [5, 6], axis=1) for a in (x, mask)), strict=True):
        y, state = stream(piece, state, valid)
        outputs.append(np.where(valid[..., None], y, 0))
    assert lengths == [(5, 5), (1, 1), (7, 7)]
    assert_close(np.concatenate(outputs, axis=1), np.where(mask[..., None], whole, 0))
