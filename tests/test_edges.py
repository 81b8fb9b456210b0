"""What every attention layer does at the edges: junk in masked steps, empty input, too many steps.

Each test runs over all layers, whole and streamed.
"""

import keras
import numpy as np
import pytest
from support import BACKEND, assert_close, gradients, traced
from variants import (
    CASES,
    DIRECTIONS,
    STREAMING,
    WIDTH,
    build,
    inputs,
    mask_of,
)

from keras_cosattn import (
    CosFormerAttention,
    GatedLinearAttention,
    LowRankAttention,
    NystromAttention,
    SegmentedAttention,
    Streaming,
)

EXACT = 1e-5  # the same sums in another order
every_direction = pytest.mark.parametrize(("case", "causal"), DIRECTIONS)
every_stream = pytest.mark.parametrize("case", STREAMING)
every_junk = pytest.mark.parametrize("junk", [np.nan, np.inf], ids=str)


def gradients_of(layer, x, **call):
    """The gradients of the layer's weights for the loss sum(y^2), where y is valid."""
    mask = call["query_mask"]

    def loss(*weights):
        y = layer.stateless_call(
            weights, [v.value for v in layer.non_trainable_variables], x, x, **call
        )[0]
        return keras.ops.sum(keras.ops.where(mask[..., None], y, 0.0) ** 2)

    return gradients(loss, *[np.asarray(w) for w in layer.trainable_variables])


@every_direction
@every_junk
@pytest.mark.sample(3)
def test_masked_steps_may_hold_anything(case, causal, junk, rng):
    layer, x = build(case), inputs(rng, 2, 9, WIDTH)
    mask = rng.random((2, 9)) < 0.6
    call = {"query_mask": mask, "value_mask": mask, "use_causal_mask": causal}
    dirty = np.where(mask[..., None], x, np.float32(junk))
    assert_close(layer(dirty, dirty, **call), layer(x, x, **call), 0)
    found, expected = (gradients_of(layer, each, **call) for each in (dirty, x))
    for one, other in zip(found, expected, strict=True):
        assert np.all(np.isfinite(one))
        assert_close(one, other, 1e-6)


@every_stream
@every_junk
@pytest.mark.sample(7)
def test_masked_steps_of_a_stream_may_hold_anything(case, junk, rng):
    x, mask = inputs(rng, 2, 9, WIDTH), rng.random((2, 9)) < 0.6
    one = keras.Input((None, WIDTH))
    stream = Streaming(keras.Model(one, build(case)(one, one, use_causal_mask=True)))
    dirty = np.where(mask[..., None], x, np.float32(junk))
    results = []
    for each in (x, dirty):
        y, state = stream(each[:, :5], stream.initial_state(2), mask=mask[:, :5])
        z, state = stream(each[:, 5:6], state, mask=mask[:, 5:6])
        w, state = stream(each[:, 6:], state, mask=mask[:, 6:])
        results.append((np.concatenate([y, z, w], axis=1)[mask], state))
    assert_close(results[1][0], results[0][0], 0)
    for name, expected in results[0][1].items():
        assert_close(results[1][1][name], expected, 0)


@every_direction
@pytest.mark.parametrize(("b", "t"), [(0, 9), (2, 0)])
def test_empty_input_gives_empty_output(case, causal, b, t, rng):
    layer, x = build(case), inputs(rng, b, t, WIDTH)
    mask = np.ones((b, t), bool)
    for masks in ({}, {"query_mask": mask, "value_mask": mask}):
        y, weights = layer(x, x, use_causal_mask=causal, return_attention_scores=True, **masks)
        assert y.shape == (b, t, WIDTH)
        assert weights.shape == (b, layer.num_heads, t, t)


def unknown_sizes(function):
    """`function` of `(b, t, m)` as a graph that knows neither b nor t."""
    if BACKEND != "tensorflow":
        return function
    import tensorflow as tf

    spec = tf.TensorSpec((None, None, WIDTH), "float32")
    return tf.function(function, input_signature=[spec], autograph=False)


@every_direction
@pytest.mark.sample(8)
def test_a_graph_of_any_size_takes_an_empty_batch(case, causal, rng):
    layer = build(case)
    run = unknown_sizes(lambda x: layer(x, x, use_causal_mask=causal))
    masked = unknown_sizes(
        lambda x: layer(
            x, x, query_mask=x[..., 0] < 9, value_mask=x[..., 0] < 9, use_causal_mask=causal
        )
    )
    for function in (run, masked):
        assert function(inputs(rng, 0, 9, WIDTH)).shape == (0, 9, WIDTH)
        assert function(inputs(rng, 2, 9, WIDTH)).shape == (2, 9, WIDTH)


NO_STEPS = {
    "both ways": (lambda: GatedLinearAttention(2, 4, chunk_size=4), [0]),
    "landmarks": (lambda: NystromAttention(2, 4, num_landmarks=3), [0]),
    "landmarks of keys": (lambda: NystromAttention(2, 4, num_landmarks=3), [0, 9]),
    "segments": (
        lambda: SegmentedAttention(2, 4, segment_length=3, summaries="mean", block_size=6),
        [0, 9],
    ),
}


@pytest.mark.skipif(BACKEND != "tensorflow", reason="graphs of TensorFlow only")
@pytest.mark.parametrize(("make", "lengths"), NO_STEPS.values(), ids=NO_STEPS)
def test_a_graph_of_any_size_takes_no_steps_and_no_keys(make, lengths, rng):
    import tensorflow as tf

    layer = make()
    layer.build((None, None, WIDTH), (None, None, WIDTH))

    def loss_and_gradients(query, value):
        value = query if len(lengths) == 1 else value
        masks = {"query_mask": query[..., 0] < 9, "value_mask": value[..., 0] < 9}
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(query, value, **masks) ** 2)
        return loss, tape.gradient(
            loss, layer.trainable_variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )

    spec = tf.TensorSpec((None, None, WIDTH))
    run = tf.function(loss_and_gradients, input_signature=[spec, spec])
    for length in lengths:
        loss, slopes = run(inputs(rng, 2, length, WIDTH), inputs(rng, 2, 0, WIDTH))
        assert np.isfinite(loss)
        assert all(np.all(np.isfinite(slope)) for slope in slopes)


@pytest.mark.parametrize("case", ["SoftmaxAttention-cache", "LinearAttention-elu"])
def test_a_graph_of_any_size_takes_padding_as_an_attention_mask(case, rng):
    layer, x = build(case), inputs(rng, 2, 9, WIDTH)
    run = unknown_sizes(lambda x: layer(x, x, attention_mask=x[:, None, :, 0] < 0.5))
    assert_close(run(x), layer(x, x, value_mask=x[..., 0] < 0.5))


@every_stream
@pytest.mark.sample(5)
def test_a_chunk_of_no_steps_changes_nothing(case, rng):
    one = keras.Input((None, WIDTH))
    stream = Streaming(keras.Model(one, build(case)(one, one, use_causal_mask=True)))
    x = inputs(rng, 2, 7, WIDTH)
    _, state = stream(x, stream.initial_state(2))
    run = unknown_sizes(lambda x: stream(x, state))
    for step in (stream, lambda x, _: run(x)):
        y, after = step(x[:, :0], state)
        assert y.shape == (2, 0, WIDTH)
        for name, expected in state.items():
            assert_close(after[name], expected, 0)


LIMITED = {
    "cosformer": lambda: CosFormerAttention(2, 4, max_length=8),
    "low_rank": lambda: LowRankAttention(2, 4, max_length=8, rank=3),
}
every_limit = pytest.mark.parametrize("name", LIMITED)


@every_limit
def test_too_many_steps_raise_where_their_number_is_known(name, rng):
    layer, x = LIMITED[name](), inputs(rng, 2, 12, WIDTH)
    with pytest.raises(ValueError, match=r"at most 8 steps\. Received: 12 steps"):
        layer(x, x)
    mask = mask_of((9, 3), 12)
    with pytest.raises(ValueError, match=r"at most 8 steps\. Received: 9 steps"):
        layer(x, x, query_mask=mask, value_mask=mask)


@every_limit
def test_only_valid_steps_count(name, rng):
    layer, x = LIMITED[name](), inputs(rng, 2, 12, WIDTH)
    for side in ("left", "right"):
        mask = mask_of((8, 3), 12, side)
        y = np.asarray(layer(x, x, query_mask=mask, value_mask=mask))
        alone = layer(x[:1, mask[0]], x[:1, mask[0]])
        assert_close(y[:1, mask[0]], alone, EXACT)


def padded_batches(longest):
    """Batches of 4 sequences padded together, one of them of `longest` steps."""
    import tensorflow as tf

    lengths = [3, 5, longest, 4] * 2

    def examples():
        draw = np.random.default_rng(0)
        for n in lengths:
            x = draw.normal(size=(n, WIDTH)).astype("float32")
            yield x, x[:, :1]

    spec = (
        tf.TensorSpec((None, WIDTH), "float32"),
        tf.TensorSpec((None, 1), "float32"),
    )
    data = tf.data.Dataset.from_generator(examples, output_signature=spec)
    return data.padded_batch(4)


def masked_model(layer, length=None):
    x = keras.Input((length, WIDTH))
    masked = keras.layers.Masking()(x)
    model = keras.Model(x, keras.layers.Dense(1)(layer(masked, masked)))
    return model


tensorflow_only = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="tf.data and XLA of TensorFlow"
)


@every_limit
@pytest.mark.parametrize("jit", [False, True])
@tensorflow_only
@pytest.mark.sample(5)
def test_an_over_long_example_never_reaches_the_weights(name, jit):
    import tensorflow as tf

    model = masked_model(LIMITED[name]())
    model.compile("sgd", "mse", jit_compile=jit)
    before = [np.asarray(w) for w in model.weights]
    if jit:  # nothing can be raised: finite values
        history = model.fit(padded_batches(12), epochs=1, verbose=0).history
        assert np.all(np.isfinite(history["loss"]))
        assert all(np.all(np.isfinite(w)) for w in map(np.asarray, model.weights))
        return
    with pytest.raises(tf.errors.InvalidArgumentError, match="more than 8 steps"):
        model.fit(padded_batches(12), epochs=1, verbose=0)
    for weight, old in zip(model.weights, before, strict=True):
        assert_close(weight, old, 0)


@every_limit
@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.sample(5)
def test_padding_does_not_count_in_fit_evaluate_and_predict(name, jit, rng):
    x = inputs(rng, 4, 12, WIDTH)
    x[~mask_of((8, 3, 5, 7), 12)] = 0
    for length in (None, 12):
        model = masked_model(LIMITED[name](), length)
        model.compile("sgd", "mse", jit_compile=jit)
        model.fit(x, x[..., :1], verbose=0)
        assert np.isfinite(model.evaluate(x, x[..., :1], verbose=0))
        assert np.all(np.isfinite(model.predict(x, verbose=0)[0, :8]))


@every_limit
def test_past_the_limit_a_compiled_layer_gives_finite_values(name, rng):
    layer, x = LIMITED[name](), inputs(rng, 2, 12, WIDTH)
    layer.build(x.shape, x.shape)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        spec = tf.TensorSpec((None, None, WIDTH), "float32")
        run = tf.function(lambda x: layer(x, x), input_signature=[spec], jit_compile=True)
        y = run(x)
    else:
        mask = np.ones((2, 12), bool)
        y = traced(lambda x, m: layer(x, x, query_mask=m, value_mask=m))(x, mask)
    assert np.all(np.isfinite(y))


@every_stream
@pytest.mark.sample(3)
def test_a_stream_past_its_end_stays_finite(case, rng):
    if "max_length" not in CASES[case][1]:
        pytest.skip("its streams have no end")
    one, x = keras.Input((None, WIDTH)), inputs(rng, 2, 9, WIDTH)
    layer = build(case, max_length=6)
    stream = Streaming(keras.Model(one, layer(one, one, use_causal_mask=True)), sample=x[:, :6])
    with pytest.raises(ValueError, match="at most 6 steps"):
        stream(x, stream.initial_state(2))
    if BACKEND == "tensorflow":
        import tensorflow as tf

        run = tf.function(lambda x, s: stream(x, s), jit_compile=True)
    else:
        run = traced(lambda x, s: stream(x, s))
    y, state = run(x, stream.initial_state(2))
    y, state = run(x[:, :1], state)
    assert np.all(np.isfinite(y))
    assert all(np.all(np.isfinite(s)) for s in map(np.asarray, state.values()))


UNITS = {
    "SegmentedAttention-windows": 4,
    "RecurrentMemoryAttention-uneven": 4,
    "RecurrentMemoryAttention-tokens": 4,
    "CompressiveMemoryAttention-sums": 4,
    "CompressiveMemoryAttention-delta_rule": 3,
    "CosFormerAttention-endless": 4,
}
"""Endless streams that count steps, and the unit after which their counts repeat."""


@pytest.mark.parametrize("case", UNITS)
def test_counters_of_endless_streams_never_overflow(case, rng):
    one = keras.Input((None, WIDTH))
    stream = Streaming(keras.Model(one, build(case)(one, one, use_causal_mask=True)))
    x = inputs(rng, 1, 40, WIDTH)
    _, early = stream(x[:, :14], stream.initial_state(1))
    (name,) = (name for name in early if name.endswith("position"))
    late = dict(early)
    if case != "CosFormerAttention-endless":  # that one counts inside its half-horizon
        unit = UNITS[case]
        start = (2**30 // unit - 2) * unit + int(early[name][0]) % unit
        late[name] = keras.ops.convert_to_tensor(np.array([start], "int32"))
    for piece in np.split(x[:, 14:], [1, 2, 13], axis=1):
        y, early = stream(piece, early)
        z, late = stream(piece, late)
        assert_close(z, y, EXACT)
    assert int(late[name][0]) <= 2**30 + UNITS[case]


def test_an_unknown_call_argument_is_named(rng):
    layer, x = CosFormerAttention(2, 4, max_length=8), inputs(rng, 1, 3, WIDTH)
    with pytest.raises(TypeError, match="unexpected keyword argument 'maks'"):
        layer(x, x, maks=None)


def test_a_symbolic_call_is_refused_where_the_real_one_would_be():
    x = keras.Input((None, WIDTH))
    with pytest.raises(ValueError, match=r"cannot look both ways.*`use_causal_mask=True`"):
        CosFormerAttention(2, 4, horizon=8)(x, x)
    with pytest.raises(ValueError, match="cannot be causal"):
        LowRankAttention(2, 4, max_length=8, rank=2)(x, x, use_causal_mask=True)


def test_masks_may_be_given_in_order_to_a_symbolic_call(rng):
    x, mask = keras.Input((None, WIDTH)), keras.Input((None,), dtype="bool")
    layer = CosFormerAttention(2, 4, max_length=8)
    model = keras.Model([x, mask], layer(x, x, None, mask, mask))
    real, valid = inputs(rng, 2, 5, WIDTH), mask_of((5, 3), 5)
    assert_close(model([real, valid]), layer(real, real, query_mask=valid, value_mask=valid), EXACT)


@pytest.mark.parametrize("kind", ["list", "variable"])
def test_masks_may_be_lists_and_variables(kind, rng):
    layer, x = CosFormerAttention(2, 4, max_length=8), inputs(rng, 2, 5, WIDTH)
    valid = mask_of((5, 3), 5)
    given = valid.tolist() if kind == "list" else keras.Variable(valid, dtype="bool")
    expected = layer(x, x, query_mask=valid, value_mask=valid)
    assert_close(layer(x, x, query_mask=given, value_mask=given), expected, 0)
