"""Softmax in the window, features before it: one normaliser, whole and streamed."""

import contextlib

import keras
import numpy as np
import pytest
import references
from references import How
from support import BACKEND, assert_close, compiled, gradients, layer_weights, random_segments
from variants import inputs, mask_of

from keras_cosattn import (
    ALiBi,
    DPFPFeatures,
    HedgehogFeatures,
    LinearAttention,
    Rotary,
    SoftmaxAttention,
    Streaming,
    WindowedLinearAttention,
)
from keras_cosattn.ops.block_size import all_at_once

B, HEADS, SHARED, D, E, WIDTH = 2, 4, 2, 5, 3, 7
SIZES = {"value_dim": E, "num_key_value_heads": SHARED, "bias_initializer": "normal"}
PROJECTIONS = ("query", "key", "value", "output")


def make(window, logit=None, cls=WindowedLinearAttention, **options):
    options = {"window": window, **options} if cls is WindowedLinearAttention else options
    layer = cls(HEADS, D, **SIZES, **options)
    layer.build((None, None, WIDTH), (None, None, WIDTH))
    if logit is not None:
        layer.window_factor.assign(np.full(HEADS, logit))
    return layer


def with_projections_of(layer, cls, **options):
    other = make(None, cls=cls, **options)
    for name in PROJECTIONS:
        getattr(other, f"{name}_dense").set_weights(getattr(layer, f"{name}_dense").get_weights())
    return other


def streamed(layer):
    x = keras.Input((None, WIDTH), dtype=layer.compute_dtype)
    return keras.Model(x, layer(x, x, use_causal_mask=True))


def single_steps(stream, x):
    """The outputs of a stream that reads one step at a time, and its states' sizes."""
    step = compiled(lambda x, state: stream(x, state))
    state, outputs, sizes = stream.initial_state(len(x)), [], set()
    for i in range(x.shape[1]):
        y, state = step(x[:, i : i + 1], state)
        outputs.append(y)
        sizes.add(sum(np.asarray(value).nbytes for value in state.values()))
    return keras.ops.concatenate(outputs, axis=1), sizes


def expected(layer, x, how, **options):
    name = type(layer).__name__
    return references.projected(name, layer_weights(layer), x, x, how=how, **options)


@pytest.mark.parametrize("logit", [-2.0, 0.0, 100.0])
@pytest.mark.parametrize(("window", "length"), [(13, 13), (64, 13), (200, 130)])
def test_a_window_over_all_steps_is_softmax_attention(window, length, logit, rng):
    layer, x = make(window, logit), inputs(rng, B, length, WIDTH)
    softmax = with_projections_of(layer, SoftmaxAttention)
    mask = mask_of((length, length // 2), length, "left")
    for masks in ({}, {"query_mask": mask, "value_mask": mask}):
        found = layer(x, x, use_causal_mask=True, **masks)
        assert_close(found, softmax(x, x, use_causal_mask=True, **masks), 1e-6)


def test_a_factor_of_zero_leaves_linear_attention_to_the_steps_before_the_window(rng):
    layer, x = make(3, -100.0, feature_map="elu+1"), inputs(rng, B, 20, WIDTH)
    linear = with_projections_of(layer, LinearAttention)
    found = np.asarray(layer(x, x, use_causal_mask=True))
    for t in range(3, 20):
        one = linear(x[:, t : t + 1], x[:, : t - 2])
        assert_close(found[:, t : t + 1], one, 1e-5)


def test_a_window_of_one_step(rng):
    """The own step has the weight g, whatever its score."""
    layer, x = make(1, 0.7), inputs(rng, B, 140, WIDTH)
    outputs, weights = layer(x, x, use_causal_mask=True, return_attention_scores=True)
    assert_close(outputs, expected(layer, x, How(causal=True), window=1))
    weights = np.asarray(weights)
    own = np.einsum("bhtt->bht", weights)
    assert_close(own[:, :, 0], np.ones((B, HEADS)))
    assert_close(weights.sum(axis=3), np.ones((B, HEADS, 140)))
    found, _ = single_steps(Streaming(streamed(layer)), x[:, :10])
    assert_close(found, outputs[:, :10])


MAPS = {
    "default": None,
    "hedgehog": HedgehogFeatures(),
    "normalized": HedgehogFeatures(normalized=True),
    "dpfp": DPFPFeatures(nu=2),
    "taylor": "taylor",
    "squared_relu": "squared_relu",
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.sample(3)
def test_every_feature_map_is_that_of_the_sum(name, rng):
    layer = make(4, feature_map=MAPS[name])
    for variable in layer.trainable_variables:
        variable.assign(rng.normal(size=variable.shape, scale=0.5))
    x = inputs(rng, B, 30, WIDTH)
    found = layer(x, x, use_causal_mask=True)
    how = How(causal=True)
    assert_close(found, expected(layer, x, how, window=4, feature_map=MAPS[name]))
    streams, _ = single_steps(Streaming(streamed(layer)), x)
    assert_close(streams, found)


@pytest.mark.parametrize("options", [{}, {"feature_map": "elu+1", "position": Rotary()}], ids=str)
def test_a_stream_of_a_thousand_steps_is_the_whole_sequence(options, rng):
    layer, x = make(8, 0.3, **options), inputs(rng, 1, 1000, WIDTH)
    model = streamed(layer)
    stream = Streaming(model)
    found, sizes = single_steps(stream, x)
    assert_close(found, model(x))
    assert sizes == {stream.state_bytes}
    f = D if options else 2 * D
    assert stream.state_bytes == 4 * (8 * SHARED * (D + E) + SHARED * f * (E + 1) + 1)
    if not options:
        assert_close(found, expected(layer, x, How(causal=True), window=8))


def test_the_rotation_acts_on_both_parts(rng):
    layer, x = make(4, 0.3, feature_map="elu+1", position=Rotary()), inputs(rng, B, 17, WIDTH)
    mask, weights = mask_of((17, 9), 17, "left"), layer_weights(layer)
    q, k, v = (
        np.einsum("btm,mhd->bthd", np.float64(x), weights[name][0]) + weights[name][1]
        for name in ("query", "key", "value")
    )
    placed = references.positions(17, mask)
    turn = [[references._rotation(n, D) for n in row] for row in placed]
    q, k = (np.einsum("btde,bthe->bthd", turn, y) for y in (q, k))
    how, options = How(mask, mask, causal=True), {"window": 4, "feature_map": "elu+1"}
    a = references.windowed_linear_weights(q, k, how, **options, more=weights["more"])
    mixed = references.mix(references.normalise(a), v)
    kernel, bias = weights["attention_output"]
    found = layer(x, x, query_mask=mask, value_mask=mask, use_causal_mask=True)
    assert_close(found, np.einsum("bthe,hem->btm", mixed, kernel) + bias)


FORMS = {
    "loop": {},
    "short blocks": {"block_size": 7},
    "one block of chunks": {"block_size": 1000},
    "blocks of chunks": {"block_size": 150},
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", [*FORMS, "all at once"])
@pytest.mark.sample(5)
def test_every_form_is_the_sum(form, packed, rng):
    options = {"window": 6, **FORMS.get(form, {})}
    layer, x = make(**options), inputs(rng, B, 321, WIDTH)
    mask = rng.random((B, 321)) < 0.8
    ids = random_segments(rng, B, 321) if packed else None

    def run(x):
        return layer(x, x, query_mask=mask, value_mask=mask, segment_ids=ids, use_causal_mask=True)

    how = How(mask, mask, ids, causal=True)
    with all_at_once() if form == "all at once" else contextlib.nullcontext():
        assert_close(run(x), expected(layer, x, how, **options))
        assert_close(compiled(run)(x), expected(layer, x, how, **options))


def test_means_give_the_outputs_of_sums(rng):
    layer, x = make(5, 0.3, feature_map="elu+1"), inputs(rng, 3, 60, WIDTH)
    mask, found = rng.random((3, 60)) < 0.8, []
    for means in (False, True):
        stream = Streaming(streamed(layer), means=means)
        state, outputs = stream.initial_state(3), []
        for piece, real in zip(
            *(np.split(a, [2, 9, 10, 11, 25, 25], axis=1) for a in (x, mask)), strict=True
        ):
            y, state = stream(piece, state, real)
            outputs.append(np.where(real[..., None], y, 0))
        sums = next(x for name, x in state.items() if name.endswith(("sums", "means")))
        found.append((np.concatenate(outputs, axis=1), np.abs(sums).max()))
    assert_close(found[1][0], found[0][0], 1e-6)
    assert found[1][1] < found[0][1] / 4


def test_each_example_of_a_stream_has_its_own_window(rng):
    """Valid steps come at other times in each example."""
    layer, x = make(3, feature_map="elu+1"), inputs(rng, 3, 20, WIDTH)
    model = streamed(layer)
    stream, whole = Streaming(model), np.asarray(model(x))
    state, taken, found = stream.initial_state(3), np.zeros(3, int), [[], [], []]
    while taken.min() < 15:
        mask = rng.random((3, rng.choice([1, 2, 7]))) < [[0.9], [0.4], [0.7]]
        mask &= taken[:, None] + np.cumsum(mask, axis=1) <= 20
        piece = np.full((*mask.shape, WIDTH), 1e3, "float32")
        for i, n in enumerate(mask.sum(axis=1)):
            piece[i, mask[i]] = x[i, taken[i] : taken[i] + n]
            taken[i] += n
        y, state = stream(piece, state, mask=mask)
        for i in range(3):
            found[i].extend(np.asarray(y)[i, mask[i]])
    assert len(set(taken)) > 1
    for i in range(3):
        assert_close(np.array(found[i]), whole[i, : taken[i]])


def test_the_counter_of_a_stream_never_overflows(rng):
    layer, x = make(4), inputs(rng, 1, 30, WIDTH)
    stream = Streaming(streamed(layer))
    _, early = stream(x[:, :9], stream.initial_state(1))
    (name,) = (name for name in early if name.endswith("position"))
    late = {**early, name: keras.ops.convert_to_tensor(np.array([2**30 - 3], "int32"))}
    for piece in np.split(x[:, 9:], [1, 2, 13], axis=1):
        y, early = stream(piece, early)
        z, late = stream(piece, late)
        assert_close(z, y)
    assert int(late[name][0]) == 2**30


@pytest.mark.parametrize("policy", ["bfloat16", "mixed_bfloat16"])
def test_in_bfloat16_the_sums_are_float32(policy, rng):
    """Bfloat16 has 8 bits: a sum in it stops to grow at 256 steps."""
    layer = make(4, 0.0, feature_map="elu+1")
    half = make(4, 0.0, feature_map="elu+1", dtype=policy)
    half.set_weights(layer.get_weights())
    x = inputs(rng, 1, 2000, WIDTH)
    outputs = half(x, x, use_causal_mask=True)
    assert keras.backend.standardize_dtype(outputs.dtype) == "bfloat16"
    outputs = keras.ops.cast(outputs, "float32")
    assert_close(outputs, layer(x, x, use_causal_mask=True), 0.03)
    stream = Streaming(streamed(half))
    dtypes = {name.split("_")[-1]: dtype for name, (_, dtype) in stream.state_spec.items()}
    assert dtypes == {
        "key": "bfloat16", "value": "bfloat16", "sums": "float32", "position": "int32"
    }  # fmt: skip
    found, _ = single_steps(stream, x[:, :100])
    assert_close(keras.ops.cast(found, "float32"), outputs[:, :100], 0.01)


@pytest.mark.parametrize("feature_map", [None, HedgehogFeatures()], ids=["default", "hedgehog"])
def test_large_inputs_and_factors_give_finite_outputs_and_gradients(feature_map, rng):
    layer = make(4, feature_map=feature_map)
    layer.window_factor.assign([-200.0, -30.0, 30.0, 200.0])
    x = 1e3 * inputs(rng, 1, 40, WIDTH)

    def loss(x):
        return keras.ops.sum(layer(x, x, use_causal_mask=True))

    assert np.isfinite(loss(x))
    assert np.isfinite(gradients(loss, x)[0]).all()


def test_a_far_step_counts_through_the_sums(rng):
    layer, x = make(4), inputs(rng, 1, 200, WIDTH)
    (slope,) = gradients(lambda x: keras.ops.sum(layer(x, x, use_causal_mask=True)[:, 150] ** 2), x)
    assert np.flatnonzero(np.any(slope != 0, axis=(0, 2))).tolist() == list(range(151))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, r"`window` must be an integer of at least 1. Received: window=0"),
        ({"feature_map": "softmax"}, r"`feature_map` must be .*Received: feature_map='softmax'"),
        ({"position": ALiBi()}, r"`position` must be .*rotation"),
        ({"block_size": 2.5}, r"`block_size` must be an integer"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        WindowedLinearAttention(2, 4, **options)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="needs a length that is not known")
@pytest.mark.slow
def test_an_unknown_length_trains_compiled(rng):
    import tensorflow as tf

    layer, x = make(4, block_size=6), inputs(rng, B, 13, WIDTH)

    def slopes(x):
        with tf.GradientTape() as tape:
            loss = keras.ops.sum(layer(x, x, use_causal_mask=True) ** 2)
        return tape.gradient(loss, layer.trainable_variables)

    spec = [tf.TensorSpec((None, None, WIDTH))]
    unknown = tf.function(slopes, jit_compile=True, input_signature=spec, autograph=False)
    for found, wanted in zip(unknown(x), slopes(tf.convert_to_tensor(x)), strict=True):
        assert np.any(wanted)
        assert_close(found, wanted)
