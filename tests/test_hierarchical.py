"""Attention in levels: what the levels compute, what they may know, what they cost."""

import keras
import numpy as np
import pytest
from references import How, projected
from support import (
    BACKEND,
    assert_close,
    compiled,
    gradients,
    layer_weights,
    pure,
    value_and_gradients,
)
from variants import inputs

from keras_cosattn import HierarchicalAttention, SoftmaxAttention, Streaming, analysis, scope

EXACT = 1e-6  # the same sums, at most in another order
WIDTH = 6
NAME = "HierarchicalAttention"
both_ways = pytest.mark.parametrize("causal", [False, True])
both_ways_but_slow = pytest.mark.parametrize(
    "causal", [False, pytest.param(True, marks=pytest.mark.slow)]
)


@keras.saving.register_keras_serializable("tests")
class Largest(keras.layers.Layer):
    """The largest of each feature, projected: `(z, c, m) -> (z, m')`."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = keras.layers.Dense(units, bias_initializer="normal")

    def build(self, shape):
        self.dense.build((shape[0], shape[2]))

    def call(self, inputs, mask=None):
        if mask is not None:
            inputs = keras.ops.where(keras.ops.expand_dims(mask, -1), inputs, -1e9)
        return self.dense(keras.ops.max(inputs, axis=1))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def build(unit_sizes=(3, 2), width=WIDTH, **arguments):
    layer = HierarchicalAttention(
        4, 5, unit_sizes=unit_sizes, num_key_value_heads=2, value_dim=3, **arguments
    )
    layer.build((None, None, width), (None, None, width))
    rng = np.random.default_rng(1)
    for weight in layer.trainable_variables:
        weight.assign(rng.normal(size=weight.shape, scale=0.5))
    return layer


def expected(layer, x, causal=False, mask=None, **arguments):
    how = How(mask, mask, causal=causal)
    arguments = {"unit_sizes": layer.unit_sizes, "aggregator": layer.aggregator, **arguments}
    return projected(NAME, layer_weights(layer), x, x, how=how, **arguments)


def sentences(rng, b, length):
    """Ids of runs of 1 to 8 steps; an id comes back later."""
    lengths = rng.integers(1, 9, (b, length))
    return np.stack([np.repeat(np.arange(length) % 5, n)[:length] for n in lengths])


@both_ways
@pytest.mark.parametrize(
    ("unit_sizes", "aggregator"),
    [
        ((1,), "attention"),
        ((5,), "mean"),
        ((3, 2), "attention"),
        ((2, 1, 3), "mean"),
        ((16, 16), "attention"),
    ],
    ids=str,
)
def test_each_level_is_a_softmax_in_its_units(unit_sizes, aggregator, causal, rng):
    layer = build(unit_sizes, aggregator=aggregator)
    for length in (1, 21):
        x = inputs(rng, 2, length, WIDTH)
        assert_close(layer(x, x, use_causal_mask=causal), expected(layer, x, causal))


@both_ways
@pytest.mark.parametrize(
    ("unit_sizes", "max_units"), [((1,), 31), ((5,), None), ((4, 3), 31)], ids=str
)
def test_units_may_be_given(unit_sizes, max_units, causal, rng):
    layer = build(unit_sizes, max_units=max_units)
    for length in (1, 31):
        x, ids = inputs(rng, 3, length, WIDTH), sentences(rng, 3, length)
        mask = rng.random((3, length)) < 0.8
        mask[2] = False
        for real in (None, mask):
            found = layer(
                x, x, unit_ids=ids, query_mask=real, value_mask=real, use_causal_mask=causal
            )
            assert_close(found, expected(layer, x, causal, real, unit_ids=ids))


@both_ways
def test_given_units_of_the_fixed_size_are_the_fixed_units(causal, rng):
    layer, x = build((4, 2)), inputs(rng, 2, 18, WIDTH)
    fixed = layer(x, x, use_causal_mask=causal)
    ids = np.repeat([[3, 1, 2, 3, 1]], 4, axis=1)[:, :18].repeat(2, axis=0)
    assert_close(layer(x, x, unit_ids=ids, use_causal_mask=causal), fixed, EXACT)
    # One long unit is cut after each 4 steps.
    one = np.zeros((2, 18), "int32")
    assert_close(layer(x, x, unit_ids=one, use_causal_mask=causal), fixed, EXACT)


@both_ways
@pytest.mark.parametrize(("given", "side"), [(False, "left"), (True, "left"), (True, "right")])
def test_padding_equals_truncation(given, side, causal, rng):
    layer, x = build(max_units=13), inputs(rng, 3, 13, WIDTH)
    ids = sentences(rng, 3, 13)
    mask = np.arange(13) < np.array([[5], [9], [13]])
    mask = mask if side == "right" else mask[:, ::-1]
    x[~mask] = np.nan
    found = layer(
        x, x, unit_ids=ids if given else None, query_mask=mask, value_mask=mask,
        use_causal_mask=causal,
    )  # fmt: skip
    for i in range(3):
        alone, real = x[i : i + 1, mask[i]], mask[i]
        own = ids[i : i + 1, real] if given else None
        truncated = layer(alone, alone, unit_ids=own, use_causal_mask=causal)
        assert_close(np.asarray(found)[i : i + 1][:, real], truncated, EXACT)


def influence(layer, x, causal, **call):
    """`(t, s)`: the largest derivative of output t after input s."""
    t = x.shape[1]
    own = np.eye(t, dtype="float32")[:, :, None]  # of copy i the output i

    def loss(x):
        return keras.ops.sum((layer(x, x, use_causal_mask=causal, **call) * own) ** 2)

    (slopes,) = gradients(loss, x.repeat(t, axis=0))
    return np.abs(slopes).max(axis=2)


@both_ways
@pytest.mark.parametrize("given", [False, True])
def test_every_step_reaches_every_step(given, causal, rng):
    """Or, if causal, every later one: no gap between own unit, finished units and theirs."""
    ids = np.repeat([[0, 1, 2, 3, 4]], [1, 4, 2, 1, 3], axis=1) if given else None
    ids = ids.repeat(11, axis=0) if given else None
    found = influence(build((2, 2)), inputs(rng, 1, 11, WIDTH), causal, unit_ids=ids)
    reached = np.tri(11, dtype=bool) if causal else np.ones((11, 11), bool)
    np.testing.assert_array_equal(found > 0, reached)
    assert found[reached].min() > 1e-5 * found.max()


def test_causal_attention_uses_finished_units_only(rng):
    """The upper levels' kernels get no gradient from outputs that have no finished unit."""
    layer, x = build((4, 2)), inputs(rng, 1, 12, WIDTH)
    upper = [*layer.upper_query_dense, *layer.upper_key_dense, *layer.upper_value_dense]
    before = np.asarray(layer(x, x, use_causal_mask=True))
    for dense in upper:
        dense.set_weights([w + 1 for w in dense.get_weights()])
    changed = np.abs(np.asarray(layer(x, x, use_causal_mask=True)) - before).max(axis=(0, 2))
    assert np.all(changed[:4] == 0)
    assert np.all(changed[4:] > 1e-3)
    for dense in upper:
        dense.set_weights([w - 1 for w in dense.get_weights()])
    # A step of unit 1 changes the rest of its unit through level 1 alone, whatever the levels
    # above do; a later step of the unit changes none before it.
    moved = x.copy()
    moved[:, 5] += 1
    level_1 = build((4, 2))
    for dense in [*level_1.upper_query_dense, *level_1.upper_key_dense, *level_1.upper_value_dense]:
        dense.set_weights([0 * w for w in dense.get_weights()])
    deltas = []
    for each in (layer, level_1):
        outputs = [np.asarray(each(y, y, use_causal_mask=True)) for y in (x, moved)]
        deltas.append(outputs[1] - outputs[0])
    assert np.all(deltas[0][:, :5] == 0)
    assert_close(deltas[0][:, 5:8], deltas[1][:, 5:8], 1e-5)  # differences of near numbers
    assert np.abs(deltas[0][:, 8:]).max() > 1e-3
    assert np.all(deltas[1][:, 8:] == 0)


@both_ways
def test_weights_say_how_much_of_each_step_is_mixed(causal, rng):
    layer, x = build((3, 2)), inputs(rng, 2, 13, WIDTH)
    mask = np.arange(13) < np.array([[8], [13]])
    call = {"query_mask": mask, "value_mask": mask, "use_causal_mask": causal}
    outputs, weights = layer(x, x, return_attention_scores=True, **call)
    assert_close(outputs, layer(x, x, **call), 0)
    levels = np.full(13, 3)
    if causal:  # no unit is finished before step 3; no unit of units before step 9, see the layer
        levels = 1 + (np.arange(13) >= 3) + (np.arange(13) >= 9)
    assert_close(
        np.asarray(weights).sum(axis=-1), (levels * mask)[:, None].repeat(4, axis=1), EXACT
    )
    assert np.all((np.asarray(weights) > 0) <= mask[:, None, None])
    # With the value projections of level 1 at every level, means mix its values to the output.
    layer = build((3, 2), aggregator="mean")
    for dense in layer.upper_value_dense:
        dense.set_weights(layer.value_dense.get_weights())
    outputs, weights = layer(x, x, return_attention_scores=True, **call)
    values = np.repeat(np.asarray(layer.value_dense(x)), 2, axis=2)
    mixed = np.einsum("bhts,bshe->bthe", np.asarray(weights), values)
    assert_close(outputs, layer.output_dense(mixed), 1e-5)


@pytest.mark.parametrize(("given", "causal"), [(False, True), (True, False)])
def test_a_layer_of_the_user_aggregates(given, causal, rng, tmp_path):
    layer, x = build((3, 2), aggregator=Largest(WIDTH)), inputs(rng, 2, 13, WIDTH)
    ids = sentences(rng, 2, 13) if given else None
    mask = np.arange(13) < np.array([[8], [13]])
    weights = layer_weights(layer)
    found = layer(x, x, unit_ids=ids, query_mask=mask, value_mask=mask, use_causal_mask=causal)
    denses = [
        [np.asarray(w, np.float64) for w in each.dense.get_weights()] for each in layer.aggregators
    ]
    assert not np.array_equal(denses[0][0], denses[1][0])
    real = projected(
        NAME, weights, x, x, how=How(mask, mask, causal=causal), unit_sizes=(3, 2),
        aggregator=lambda unit, level: unit.max(axis=0) @ denses[level][0] + denses[level][1],
        unit_ids=ids,
    )  # fmt: skip
    assert_close(found, real)
    y = keras.Input((None, WIDTH))
    model = keras.Model(y, layer(y, y, use_causal_mask=causal))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_close(loaded(x), model(x), 0)
    refusal = pytest.raises(ValueError, match="which a layer as `aggregator` does not give")
    with refusal:
        layer(x, x, return_attention_scores=True)
    with refusal:
        analysis.attention_weights(layer, x)


def flat():
    return keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(WIDTH)])


def functional():
    x = keras.Input((None, WIDTH))
    return keras.Model(x, keras.layers.Dense(WIDTH)(keras.layers.GlobalMaxPooling1D()(x)))


@pytest.mark.parametrize("parts", [flat, functional])
def test_an_aggregator_of_several_layers_is_loaded_for_each_level(parts, rng):
    layer, x = build((3, 2), aggregator=parts()), inputs(rng, 2, 13, WIDTH)
    for _ in range(2):  # that a copy is made does not change the config of the next
        copy = HierarchicalAttention.from_config(layer.get_config())
    copy.build(x.shape, x.shape)
    copy.set_weights(layer.get_weights())
    assert_close(copy(x, x), layer(x, x), 0)


def test_an_aggregator_without_a_mask_gets_zeros(rng):
    class Sum(keras.layers.Layer):
        def call(self, inputs):
            return keras.ops.sum(inputs, axis=1)

    layer, x = build((4,), aggregator=Sum()), inputs(rng, 2, 10, WIDTH)
    mask = np.arange(10) < np.array([[6], [10]])
    found = layer(x, x, query_mask=mask, value_mask=mask)
    real = expected(layer, x, mask=mask, aggregator=lambda unit, level: unit.sum(axis=0))
    assert_close(found, real)


def test_an_aggregator_with_a_mean_of_no_steps_trains(rng):
    """Padding fills whole units: their mean is not asked for, in values or in gradients."""

    class Mean(keras.layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

        def call(self, inputs, mask=None):
            inputs = inputs * self.scale
            if mask is None:
                return keras.ops.mean(inputs, axis=1)
            mask = keras.ops.cast(keras.ops.expand_dims(mask, -1), inputs.dtype)
            return keras.ops.sum(inputs * mask, axis=1) / keras.ops.sum(mask, axis=1)

    layer = build((2, 2), aggregator=Mean())
    x, mask = inputs(rng, 2, 12, WIDTH), np.arange(12) < np.array([[3], [12]])
    for each in layer.aggregators:
        each.scale.assign(np.ones(WIDTH))
    weights = [np.asarray(w) for w in layer.trainable_variables]

    def loss(*weights):
        masks = {"query_mask": mask, "value_mask": mask}
        state = [w.value for w in layer.non_trainable_variables]
        return keras.ops.sum(layer.stateless_call(list(weights), state, x, x, **masks)[0] ** 2)

    value, slopes = value_and_gradients(loss, np.float32(1), *weights)
    mean = build((2, 2), aggregator="mean")
    scales = {id(each.scale) for each in layer.aggregators}
    mean.set_weights([w for w in layer.weights if id(w) not in scales])
    assert_close(
        layer(x, x, query_mask=mask, value_mask=mask), mean(x, x, query_mask=mask, value_mask=mask)
    )
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(slope)) for slope in slopes)


@both_ways
def test_more_units_than_the_capacity_are_not_silent(causal, rng):
    layer, x = build((4,), max_units=2), inputs(rng, 2, 8, WIDTH)
    ids = np.array([[0, 0, 1, 1, 1, 1, 1, 1], [0] * 8])  # three units, cut after 4, and two
    with pytest.raises(ValueError, match=r"at most 2 units. Received: 3 units.*`max_units`"):
        layer(x, x, unit_ids=ids, use_causal_mask=causal)
    found = compiled(lambda x, ids: layer(x, x, unit_ids=ids, use_causal_mask=causal))(x, ids)
    assert np.all(np.isfinite(found))
    alone = layer(x[1:], x[1:], unit_ids=ids[1:], use_causal_mask=causal)
    assert_close(found[1:], alone, EXACT)


@both_ways
@pytest.mark.parametrize("max_units", [None, 18])
def test_packed_units_end_with_their_segment(max_units, causal, rng):
    """At every level, also where a unit's id goes on."""
    layer, x = build((3, 2), max_units=max_units), inputs(rng, 2, 31, WIDTH)
    segments = np.repeat([[4, 0, 4, 1]], [1, 13, 3, 14], axis=1).repeat(2, axis=0)
    mask = rng.random((2, 31)) < 0.9
    for ids, real in ((None, None), (None, mask), (sentences(rng, 2, 31), mask)):
        if ids is not None and max_units:
            continue  # more units than that
        how = How(real, real, segments, causal=causal)
        exact = projected(
            NAME, layer_weights(layer), x, x, how=how, unit_sizes=(3, 2), unit_ids=ids
        )
        found = layer(
            x, x, unit_ids=ids, segment_ids=segments, query_mask=real, value_mask=real,
            use_causal_mask=causal,
        )  # fmt: skip
        assert_close(found, exact)


@both_ways
def test_more_packed_units_than_the_capacity_are_not_silent(causal, rng):
    layer, x = build((4,), max_units=3), inputs(rng, 2, 9, WIDTH)
    segments = np.array([[0, 0, 1, 1, 1, 1, 1, 2, 2], [0] * 9])  # four units, and three
    with pytest.raises(ValueError, match=r"at most 3 units. Received: 4 units.*`max_units`"):
        layer(x, x, segment_ids=segments, use_causal_mask=causal)
    run = compiled(lambda x, ids: layer(x, x, segment_ids=ids, use_causal_mask=causal))
    assert np.all(np.isfinite(run(x, segments)))


def streamed(layer):
    x = keras.Input((None, WIDTH))
    return Streaming(keras.Model(x, layer(x, x, use_causal_mask=True)))


@pytest.mark.parametrize(
    ("unit_sizes", "aggregator", "pieces"),
    [
        ((4, 3), "layer", [3, 1, 17, 2]),
        pytest.param((1,), "attention", [1, 4, 18], marks=pytest.mark.slow),
        pytest.param((2, 1, 3), "attention", [13, 1, 1, 8], marks=pytest.mark.slow),
        pytest.param((2, 1, 3), "layer", [1] * 23, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_examples_of_a_stream_finish_their_units_at_their_own_time(
    unit_sizes, aggregator, pieces, rng
):
    aggregator = Largest(WIDTH + 1) if aggregator == "layer" else aggregator
    layer, x = build(unit_sizes, aggregator=aggregator, max_length=23), inputs(rng, 3, 23, WIDTH)
    mask = rng.random((3, 23)) < np.array([[0.4], [0.8], [1.0]])
    x[~mask] = np.nan
    stream = streamed(layer)
    state, outputs = stream.initial_state(3), []
    for piece, real in zip(
        *(np.split(y, np.cumsum(pieces)[:-1], axis=1) for y in (x, mask)), strict=True
    ):
        y, state = stream(piece, state, real)
        outputs.append(y)
    outputs = np.concatenate(outputs, axis=1)
    for i, real in enumerate(mask):
        alone = x[i : i + 1, real]
        whole = layer(alone, alone, use_causal_mask=True)
        assert_close(outputs[i : i + 1, real], whole, EXACT)
    np.testing.assert_array_equal(state["hierarchical_attention_0_position"], mask.sum(axis=1))


@pytest.mark.parametrize("max_length", [14, 5, 12])
@pytest.mark.sample(3)
def test_a_stream_is_exact_to_its_end_and_finite_beyond(max_length, rng):
    layer, x = build((3, 2), max_length=max_length), inputs(rng, 1, 20, WIDTH)
    stream = streamed(layer)
    whole = np.asarray(layer(x, x, use_causal_mask=True))
    assert np.all(np.isfinite(whole))
    y, state = stream(x[:, : max_length - 1], stream.initial_state(1))
    last, full = stream(x[:, max_length - 1 : max_length], state)
    assert_close(np.concatenate([y, last], axis=1), whole[:, :max_length], EXACT)
    with pytest.raises(ValueError, match=f"is full: at most {max_length} steps"):
        stream(x[:, max_length:], full)
    across, _ = stream._call_in_stream(x[:, max_length - 1 :], state)
    assert_close(across[:, :1], last, EXACT)
    assert np.all(np.isfinite(np.asarray(across)))


def test_the_state_of_a_stream_grows_with_its_units_of_units():
    def floats(max_length, unit_sizes=(16, 8)):
        return streamed(build(unit_sizes, max_length=max_length)).state_bytes / 4

    per_step = 2 * (5 + 3)  # of a key head: a key and a value
    known = (16 + 8) * (per_step + WIDTH) + 2 * 4 * 3  # windows, and what the last units got
    assert floats(1 << 20) == known + (1 << 20) // 128 * per_step + 1
    # Of units of one step nothing has to be kept but what the level above gave.
    assert floats(64, (1,)) == 4 * 3 + 64 * per_step + 1


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow exports")
@pytest.mark.parametrize("unit_sizes", [(1,), (3, 2)], ids=str)
def test_a_stream_with_a_layer_of_the_user_becomes_a_tflite_file(unit_sizes, tmp_path):
    from keras_cosattn.export import to_tflite

    layer = build(unit_sizes, aggregator=Largest(WIDTH + 1), max_length=40)
    x = keras.Input((None, WIDTH))
    model = keras.Model(x, layer(x, x, use_causal_mask=True))
    report = to_tflite(model, tmp_path / "model.tflite")
    assert set(report.differences) == {"serve", "prefill", "step"}
    assert report.largest_difference < 1e-5


def test_what_a_stream_cannot_know_is_refused(rng):
    with pytest.raises(ValueError, match=r"needs to know how many\. Build it with `max_length`"):
        streamed(build())
    layer, x = build(max_length=9), inputs(rng, 1, 3, WIDTH)
    with (
        scope.opened(scope.Stream()),
        pytest.raises(ValueError, match=r"cannot stream: `unit_ids` would need .* Leave them out"),
    ):
        layer(x, x, unit_ids=np.zeros((1, 3), "int32"), use_causal_mask=True)


@pytest.mark.slow
@both_ways
def test_given_units_train_under_jit(causal, rng):
    x, ids = keras.Input((None, WIDTH)), keras.Input((None,), dtype="int32")
    attention = HierarchicalAttention(2, 4, unit_sizes=(4, 2), max_units=13)
    y = attention(x, x, unit_ids=ids, use_causal_mask=causal)
    model = keras.Model([x, ids], keras.layers.Dense(1)(y))
    model.compile(keras.optimizers.Adam(0.03), "mse", jit_compile=True)
    data, units = inputs(rng, 8, 13, WIDTH), sentences(rng, 8, 13).astype("int32")
    losses = model.fit([data, units], data[..., :1], epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="JAX has no dynamic shapes")
@both_ways_but_slow
def test_any_length_runs_in_one_graph(causal, rng):
    import tensorflow as tf

    layer = build((3, 2))
    specs = tf.TensorSpec((None, None, WIDTH)), tf.TensorSpec((None, None), "int32")

    @tf.function(input_signature=specs, autograph=False)
    def run(x, ids):
        return layer(x, x, unit_ids=ids, use_causal_mask=causal)

    for length in (1, 13, 17):
        x, ids = inputs(rng, 2, length, WIDTH), sentences(rng, 2, length).astype("int32")
        assert_close(run(x, ids), expected(layer, x, causal, unit_ids=ids))


@pytest.mark.parametrize("causal", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_one_compiled_call_has_the_values_and_gradients(causal, rng):
    layer, x, ids = build((4,)), inputs(rng, 2, 13, WIDTH), sentences(rng, 2, 13).astype("int32")

    def run(x):
        return pure(layer, x, x, unit_ids=ids, use_causal_mask=causal)

    g = inputs(rng, 2, 13, WIDTH)
    value, (slopes,) = value_and_gradients(compiled(run), g, x)
    assert_close(value, expected(layer, x, causal, unit_ids=ids))
    assert_close(slopes, value_and_gradients(run, g, x)[1][0])


@pytest.mark.skipif(BACKEND != "tensorflow", reason="reads the shapes in a TensorFlow graph")
@pytest.mark.parametrize(
    ("given", "causal"),
    [
        (False, True),
        pytest.param(False, False, marks=pytest.mark.slow),
        pytest.param(True, False, marks=pytest.mark.slow),
        pytest.param(True, True, marks=pytest.mark.slow),
    ],
)
def test_its_largest_tensor_grows_with_the_length_only(given, causal):
    import tensorflow as tf

    def largest(layer, n, **call):
        @tf.function(input_signature=[tf.TensorSpec((1, n, WIDTH))])
        def run(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, x, use_causal_mask=causal, **call)
            return tape.gradient(y, x)

        operations = run.get_concrete_function().graph.get_operations()
        return max(y.shape.num_elements() or 0 for op in operations for y in op.outputs)

    if given:
        # A unit can lie in two blocks, and three blocks are looked at.
        layer, ids = build((16, 16), max_units=128), (np.arange(1024)[None] // 9).astype("int32")
        assert largest(layer, 1024, unit_ids=ids) <= 1024 * 4 * 16 * 3
        assert largest(layer, 1024, segment_ids=ids // 50) <= 1024 * 4 * 16 * 3
        return
    layer = build((16, 16))
    # Scores of 4 heads inside units of 16; the upper levels have 64 and 4 steps.
    assert largest(layer, 1024) <= 1024 * 4 * 16
    assert largest(layer, 2048) <= 2048 * 4 * 16
    assert largest(SoftmaxAttention(4, 5), 1024) == 4 * 1024 * 1024


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unit_sizes": ()}, r"`unit_sizes` must be a tuple of at least one .* unit_sizes=\(\)"),
        ({"unit_sizes": 4}, "Received: unit_sizes=4"),
        ({"unit_sizes": (4, 0)}, "`unit_sizes` must be an integer .* unit_sizes=0"),
        ({"aggregator": "max"}, '"attention", "mean" or a Keras layer. .*aggregator=\'max\''),
        ({"max_units": 0}, "`max_units` must be .* max_units=0"),
        ({"max_length": -1}, "`max_length` must be .* max_length=-1"),
    ],
)
def test_a_bad_argument_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalAttention(2, 3, **arguments)


def test_a_bad_call_is_refused(rng):
    x = inputs(rng, 2, 5, WIDTH)
    with pytest.raises(ValueError, match=r"`unit_ids` must have shape .*\(2, 4\)"):
        build()(x, x, unit_ids=np.zeros((2, 4), "int32"))
    with pytest.raises(ValueError, match=r"`aggregator` must make \(units, features\)"):
        build(aggregator=keras.layers.Identity())
