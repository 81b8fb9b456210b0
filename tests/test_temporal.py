"""Causal convolutions, the running mean and the layers that add positions."""

import keras
import numpy as np
import pytest
import references
from keras import ops
from support import (
    BACKEND,
    assert_close,
    compiled,
    compiled_on_jax,
    float64,
    random_mask,
    value_and_gradients,
)
from variants import inputs

from keras_cosattn import (
    CausalConv1D,
    CausalDepthwiseConv1D,
    PositionEmbedding,
    RunningMean,
    Sinusoidal,
    Streaming,
    scope,
)

CHANNELS, LIMIT = 3, 16
EMPTY = [(0, 9), (2, 0), (0, 0)]
LAYERS = {
    "conv": lambda **options: CausalConv1D(4, 3, dilation_rate=2, **options),
    "depthwise": lambda **options: CausalDepthwiseConv1D(3, depth_multiplier=2, **options),
    "mean": RunningMean,
    "embedding": lambda **options: PositionEmbedding(LIMIT, **options),
    "sinusoidal": Sinusoidal,
}
needs_compiler = pytest.mark.skipif(BACKEND == "torch", reason="`compiled` is for XLA")
needs_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow graphs")


@pytest.fixture(params=LAYERS)
def build(request):
    return LAYERS[request.param]


def model_of(layer):
    x = keras.Input((None, CHANNELS), dtype=layer.compute_dtype)
    return keras.Model(x, layer(x))


def numpy(x):
    return np.asarray(ops.convert_to_numpy(x))


@pytest.mark.parametrize("mask_kind", [None, "left", "right", "holes"])
def test_temporal_layers_match_their_sums(mask_kind, rng):
    from support import random_mask

    x = inputs(rng, 3, 13, CHANNELS)
    mask = random_mask(rng, mask_kind, 3, 13)
    real = np.ones((3, 13), bool) if mask is None else mask
    convolution = CausalConv1D(4, 3, dilation_rate=2, bias_initializer="normal")
    depthwise = CausalDepthwiseConv1D(3, depth_multiplier=2, bias_initializer="normal")
    position = PositionEmbedding(13)
    found = {
        layer: np.asarray(layer(x, mask=mask))
        for layer in (convolution, depthwise, RunningMean(), position)
    }
    weights = [np.asarray(w, np.float64) for w in convolution.get_weights()]
    expected = [references.causal_conv1d(x, *weights, dilation_rate=2, mask=mask)]
    kernel, bias = (np.asarray(w, np.float64) for w in depthwise.get_weights())
    expected.append(references.causal_depthwise_conv1d(x, kernel, bias, mask=mask))
    expected.append(references.running_mean(x, mask))
    expected.append(references.position_embedding(x, position.get_weights()[0], mask))
    for y, reference in zip(found.values(), expected, strict=True):
        assert_close(y[real], reference[real])


@pytest.mark.parametrize("streamed", [False, True])
def test_masked_steps_may_hold_nan_and_infinity(build, streamed, rng):
    """Values and gradients are those with zeros in their place."""
    layer = build()
    layer.build((None, None, CHANNELS))
    x, mask = inputs(rng, 2, 9, CHANNELS), random_mask(rng, "holes", 2, 9)
    assert not mask.all()
    junk = rng.choice(np.float32([np.nan, np.inf, -np.inf]), x.shape)
    poisoned = np.where(mask[..., None], x, junk)
    weights = [numpy(w) for w in layer.trainable_variables]

    def call(x, *weights):
        stream = scope.Stream(mask=ops.convert_to_tensor(mask)) if streamed else None
        rest = [w.value for w in layer.non_trainable_variables]
        options = {} if streamed else {"mask": ops.convert_to_tensor(mask)}
        with scope.opened(stream):
            y, _ = layer.stateless_call(list(weights), rest, x, **options)
        return y

    clean = np.where(mask[..., None], x, 0)
    g = rng.normal(size=layer.compute_output_shape(x.shape)).astype("float32")
    value, gradients = value_and_gradients(call, g, poisoned, *weights)
    expected, expected_gradients = value_and_gradients(call, g, clean, *weights)
    assert np.isfinite(value).all()
    assert_close(value[mask], expected[mask], 1e-6)
    for found, gradient in zip(gradients[1:], expected_gradients[1:], strict=True):
        assert_close(found, gradient, 1e-6)
    assert np.isfinite(gradients[0]).all()


def test_junk_in_masked_steps_does_not_reach_the_state(build, rng):
    stream = Streaming(model_of(build()))
    x, mask = inputs(rng, 2, 9, CHANNELS), random_mask(rng, "holes", 2, 9)
    found, expected = (
        stream(np.where(mask[..., None], x, np.float32(junk)), stream.initial_state(2), mask)
        for junk in (np.nan, 0)
    )
    assert np.isfinite(numpy(found[0])).all()
    for name, value in found[1].items():
        assert_close(numpy(value), numpy(expected[1][name]), 1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_empty_inputs_give_empty_outputs(build, masked):
    layer = build()
    layer.build((None, None, CHANNELS))
    for shape in EMPTY:
        x = np.zeros((*shape, CHANNELS), "float32")
        y = layer(x, mask=np.ones(shape, bool) if masked else None)
        assert tuple(y.shape) == layer.compute_output_shape(x.shape)


def test_an_empty_piece_changes_no_state(build, rng):
    stream = Streaming(model_of(build()))
    for shape in EMPTY:
        _, state = stream(inputs(rng, shape[0], 5, CHANNELS), stream.initial_state(shape[0]))
        x = np.zeros((*shape, CHANNELS), "float32")
        for mask in (None, np.ones(shape, bool)):
            y, new = stream(x, state, mask)
            assert tuple(y.shape) == stream.model.compute_output_shape(x.shape)
            assert set(new) == set(state)
            for name, value in state.items():
                assert_close(numpy(new[name]), numpy(value), 0)


@needs_tensorflow
@pytest.mark.parametrize("masked", [False, True])
def test_a_piece_may_be_empty_at_run_time(build, masked, rng):
    import tensorflow as tf

    stream = Streaming(model_of(build()))
    x = inputs(rng, 2, 5, CHANNELS)
    _, state = stream(x, stream.initial_state(2))
    spec = {
        name: tf.TensorSpec((None, *value.shape[1:]), value.dtype) for name, value in state.items()
    }
    signature = [tf.TensorSpec((None, None, CHANNELS)), spec, tf.TensorSpec((None, None), "bool")]

    @tf.function(input_signature=signature)
    def call(x, state, mask):
        return stream(x, state, mask if masked else None)

    y, new = call(x[:, :0], state, np.ones((2, 0), bool))
    assert tuple(y.shape) == stream.model.compute_output_shape((2, 0, CHANNELS))
    for name, value in state.items():
        assert_close(numpy(new[name]), numpy(value), 0)
    y, _ = call(x[:0], {name: value[:0] for name, value in state.items()}, np.ones((0, 5), bool))
    assert tuple(y.shape) == stream.model.compute_output_shape((0, 5, CHANNELS))


def test_only_valid_steps_count_against_the_limit(rng):
    x, mask = inputs(rng, 2, 20, CHANNELS), np.arange(20) % 2 == [[0], [1]]
    layer = PositionEmbedding(10)
    assert np.isfinite(numpy(layer(x, mask=mask))).all()
    assert_close(
        numpy(layer(x, mask=mask))[mask], numpy(layer(x[mask].reshape(2, 10, -1))).reshape(20, -1)
    )
    mask[0, 1] = True
    with pytest.raises(ValueError, match=r"position_embedding.*at most 10 steps. Received: 11"):
        layer(x, mask=mask)
    with pytest.raises(ValueError, match=r"at most 10 steps. Received: 20 .*which is 10 now"):
        layer(x)
    with pytest.raises(ValueError, match=r"at most 10 steps. Received: 20"):
        layer(keras.Input((20, CHANNELS)))


def test_padding_of_a_model_inside_a_stream_does_not_count(rng):
    x = keras.Input((None, CHANNELS))
    stream = Streaming(keras.Model(x, PositionEmbedding(12)(keras.layers.Masking()(x))))
    data, state = inputs(rng, 1, 12, CHANNELS), stream.initial_state(1)
    data[:, 4:] = 0
    for _ in range(3):
        _, state = stream(data, state)
    with pytest.raises(ValueError, match=r"is full: at most 12 steps. Received: 16 steps"):
        stream(data, state)


@needs_compiler
def test_compiled_steps_beyond_the_limit_share_the_last_vector(rng):
    layer = PositionEmbedding(4)
    layer.build((None, None, CHANNELS))
    x = inputs(rng, 1, 4, CHANNELS)
    mask = np.ones((1, 7), bool)
    padded = np.concatenate([x, np.zeros((1, 3, CHANNELS), "float32")], axis=1)
    y = numpy(compiled(lambda x, mask: layer(x, mask=mask))(padded, mask))
    vectors = numpy(layer.embeddings)
    assert_close(y - padded, vectors[None, [0, 1, 2, 3, 3, 3, 3]], 1e-6)
    stream = Streaming(model_of(layer))
    y, state = compiled(stream)(padded, stream.initial_state(1))
    assert_close(numpy(y) - padded, vectors[None, [0, 1, 2, 3, 3, 3, 3]], 1e-6)
    y, _ = compiled(stream)(padded, state)
    assert_close(numpy(y) - padded, vectors[None, [3] * 7], 1e-6)


@needs_tensorflow
@pytest.mark.parametrize("jit", [False, True])
def test_an_overlong_example_leaves_the_weights_finite(jit, rng):
    import tensorflow as tf

    x = keras.Input((None, CHANNELS))
    model = keras.Model(x, keras.layers.Dense(1)(PositionEmbedding(8)(x)))
    model.compile("sgd", "mse", jit_compile=jit)
    data = inputs(rng, 4, 10, CHANNELS)
    dataset = tf.data.Dataset.from_generator(
        lambda: iter([(data, data[..., :1])]),
        output_signature=(tf.TensorSpec((None, None, CHANNELS)), tf.TensorSpec((None, None, 1))),
    )
    before = model.get_weights()
    if jit:
        assert np.isfinite(model.fit(dataset, verbose=0).history["loss"][0])
        assert all(np.isfinite(w).all() for w in model.get_weights())
        return
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"more than 8 steps"):
        model.fit(dataset, verbose=0)
    for weight, old in zip(model.get_weights(), before, strict=True):
        assert_close(weight, old, 0)


def test_a_mean_is_right_at_any_number_of_steps(rng):
    """Also where float32 counts no further, and where int32 would overflow."""
    stream = Streaming(model_of(RunningMean()))
    mean = np.full((1, CHANNELS), 5, "float32")
    x = inputs(rng, 1, 1000, CHANNELS) + 9
    for steps in (1000, 2**24 - 500, 2**24):
        state = {"running_mean_0_mean": mean, "running_mean_0_position": np.array([steps], "int32")}
        y, state = stream(x, state)
        exact = (np.float64(mean) * steps + np.cumsum(x[0], axis=0, dtype="float64")) / (
            steps + np.arange(1, 1001)[:, None]
        )
        assert_close(numpy(y)[0], exact, 1e-6)
        assert_close(numpy(state["running_mean_0_mean"])[0], exact[-1], 1e-6)
        assert numpy(state["running_mean_0_position"])[0] == min(steps + 1000, 2**24)


def test_a_long_mean_follows_its_input_step_by_step():
    """Single steps: each moves the mean, so after 2^24 of them the count may not grow further."""
    stream = Streaming(model_of(RunningMean()))
    state = {
        "running_mean_0_mean": np.ones((1, CHANNELS), "float32"),
        "running_mean_0_position": np.array([2**24], "int32"),
    }
    y, new = stream(np.full((1, 1, CHANNELS), 101, "float32"), state)
    change = numpy(new["running_mean_0_mean"]) - 1
    assert_close(change, np.full((1, CHANNELS), 100 / 2**24), 0.02)
    assert_close(numpy(y)[:, 0] - 1, change, 0)


def test_counts_of_positions_never_overflow(rng):
    """Positions of 2^30 steps and more stay below the largest int32."""
    stream, x = Streaming(model_of(Sinusoidal())), inputs(rng, 1, 50, CHANNELS)
    state = {"sinusoidal_0_position": np.array([2**30 + 2**29 - 20], "int32")}
    y, state = stream(x, state)
    assert np.isfinite(numpy(y)).all()
    assert numpy(state["sinusoidal_0_position"])[0] == 2**30 + 30
    call = compiled_on_jax(lambda x, state: stream._call_in_stream(x, state)[1].next_state)
    stream = Streaming(model_of(PositionEmbedding(4)))
    state = call(x, {"position_embedding_0_position": np.array([2**30 - 20], "int32")})
    assert numpy(state["position_embedding_0_position"])[0] == 2**30


def test_sines_are_accurate_to_a_documented_position():
    from keras_cosattn.positions.sinusoidal import sinusoid

    place = np.arange(10**6 - 200, 10**6 + 1)[None]
    found = numpy(sinusoid(ops.convert_to_tensor(place, "int32"), 64))
    rates = 10_000.0 ** (-2.0 * np.arange(32) / 64)
    angle = place[..., None] * rates
    exact = np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(1, -1, 64)
    assert np.abs(found - exact).max() < 5e-4


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("strides", 2),
        ("strides", (3,)),
        ("padding", "same"),
        ("padding", "valid"),
        ("data_format", "channels_first"),
    ],
)
@pytest.mark.parametrize("layer", [CausalConv1D, CausalDepthwiseConv1D])
def test_convolutions_refuse_by_name_what_they_cannot_do(layer, argument, value):
    sizes = (4, 3) if layer is CausalConv1D else (3,)
    with pytest.raises(ValueError, match=rf"{layer.__name__}: `{argument}` must be .*{argument}="):
        layer(*sizes, **{argument: value})


def test_convolutions_take_what_means_the_same_in_keras(rng):
    x = inputs(rng, 2, 9, CHANNELS)
    ours = CausalConv1D(4, 3, strides=1, padding="causal", data_format="channels_last")
    theirs = keras.layers.Conv1D(4, 3, padding="causal")
    theirs.build(x.shape)
    ours.build(x.shape)
    ours.set_weights(theirs.get_weights())
    assert_close(numpy(ours(x)), numpy(theirs(x)), 1e-6)
    keras.config.set_image_data_format("channels_first")
    try:
        again = CausalConv1D.from_config(ours.get_config())
    finally:
        keras.config.set_image_data_format("channels_last")
    again.build(x.shape)
    again.set_weights(ours.get_weights())
    assert_close(numpy(again(x)), numpy(ours(x)), 0)


def test_a_convolution_with_lora_is_saved(rng, tmp_path):
    model, x = model_of(CausalConv1D(4, 3)), inputs(rng, 2, 9, CHANNELS)
    model.layers[-1].enable_lora(2)
    model.save(tmp_path / "model.keras")
    assert_close(numpy(keras.models.load_model(tmp_path / "model.keras")(x)), numpy(model(x)), 0)


@needs_tensorflow
def test_an_empty_batch_trains(build):
    """As on the replica that gets nothing of the last batch."""
    import tensorflow as tf

    layer = build()
    layer.build((None, None, CHANNELS))

    @tf.function(input_signature=[tf.TensorSpec((None, None, CHANNELS))])
    def call(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x) ** 2)
        return tape.gradient(loss, [w.value for w in layer.trainable_variables])

    for shape in [(0, 5), (2, 0)]:
        for gradient in call(tf.zeros((*shape, CHANNELS))):
            assert not np.any(numpy(tf.convert_to_tensor(gradient)))


def test_bad_arguments_are_refused():
    for bad in (0, 2.5, True, "4"):
        with pytest.raises(
            ValueError, match=rf"`sequence_length` must be .*sequence_length={bad!r}"
        ):
            PositionEmbedding(bad)
    assert PositionEmbedding(np.int64(4)).get_config()["sequence_length"] == 4
    for layer in (RunningMean(), PositionEmbedding(4)):
        with pytest.raises(ValueError, match=r"expected ndim=3, found ndim=2"):
            layer(np.zeros((2, 4)))


def test_one_initializer_serves_two_layers():
    initializer = keras.initializers.RandomNormal(seed=1)
    layers = [PositionEmbedding(4, initializer), PositionEmbedding(4, initializer)]
    for layer in layers:
        layer.build((None, None, CHANNELS))
        assert layer.initializer is initializer


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_every_float_type_streams(build, dtype, rng):
    with float64():
        layer = build(dtype=dtype)
        stream, x = Streaming(model_of(layer)), inputs(rng, 2, 9, CHANNELS).astype("float32")
        wide = "float64" if dtype == "float64" else "float32"
        assert {kind for _, kind in stream.state_spec.values()} <= {wide, "int32"}
        state, outputs = stream.initial_state(2), []
        for piece in (x[:, :4], x[:, 4:5], x[:, 5:]):
            y, state = stream(ops.convert_to_tensor(piece, dtype), state)
            assert keras.backend.standardize_dtype(y.dtype) == dtype
            outputs.append(numpy(ops.cast(y, "float32")))
        exact = build(dtype="float32")
        exact.build((None, None, CHANNELS))
        exact.set_weights([numpy(ops.cast(w, "float32")) for w in layer.weights])
        tolerance = {"float64": 1e-6, "float16": 2e-3, "bfloat16": 2e-2}[dtype]
        assert_close(np.concatenate(outputs, axis=1), numpy(exact(x)), tolerance)


@pytest.mark.parametrize("dtype", ["int16", "int32", "bool"])
def test_integers_are_read_as_floats(build, dtype, rng):
    x, layer = rng.integers(0, 9, (2, 9, CHANNELS)).astype(dtype), build()
    expected = layer(x.astype("float32"))
    with scope.opened(scope.Stream()):
        streamed = layer(x)
    for found in (layer(x), streamed):
        assert keras.backend.standardize_dtype(found.dtype) == "float32"
        assert_close(found, expected, 1e-6)


@pytest.mark.parametrize("floatx", ["float64", "float16"])
def test_other_default_float_types_train_and_stream(build, floatx, rng):
    policy = keras.config.dtype_policy()
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(floatx)  # the default of a new process with this float type
    try:
        with float64():
            model = model_of(build())
            model.compile("sgd", "mse", jit_compile=False)
            x = inputs(rng, 4, 9, CHANNELS).astype(floatx)
            y = np.ones(model.compute_output_shape(x.shape), floatx)
            assert np.isfinite(model.fit(x, y, verbose=0).history["loss"][0])
            stream = Streaming(model)
            found, _ = stream(x[:1], stream.initial_state(1))
            assert keras.backend.standardize_dtype(found.dtype) == floatx
            assert_close(numpy(found), numpy(model(x[:1])), 2e-3)
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy(policy)
