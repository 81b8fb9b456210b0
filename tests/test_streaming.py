"""Any model of causal layers as state in, state out; what cannot is named."""

import os
import threading
import warnings

import keras
import numpy as np
import pytest
from support import BACKEND, assert_close, compiled
from variants import inputs

from keras_cosattn import (
    CausalConv1D,
    CausalDepthwiseConv1D,
    CompressiveMemoryAttention,
    CosFormerAttention,
    LinearAttention,
    PositionEmbedding,
    RunningMean,
    SoftmaxAttention,
    Streaming,
    TransformerDecoder,
    TransformerEncoder,
    state_file,
)

EXACT = 1e-5  # float32 sums in another order, through two blocks
CHANNELS = 6


def model_of(attention=None, convolution=None, limit=300):
    """Everything that streams, in one model."""
    x = keras.Input((None, CHANNELS))
    y = convolution or CausalConv1D(8, 4, dilation_rate=2, activation="relu")
    y = CausalDepthwiseConv1D(3, depth_multiplier=2)(y(x))
    y = PositionEmbedding(limit)(y)
    for _ in range(2):
        block = TransformerDecoder(
            20, attention=attention or CosFormerAttention(4, 5, horizon=8), normalize_first=True
        )
        y = block(y)
    return keras.Model(x, keras.layers.Dense(3)(RunningMean()(y)), name="sensor")


@pytest.fixture(scope="module")
def model():
    return model_of()


@pytest.fixture(scope="module")
def stream(model):
    return Streaming(model)


def run(stream, x, pieces):
    state, outputs = stream.initial_state(len(x)), []
    for piece in np.split(x, np.cumsum(pieces)[:-1], axis=1):
        y, state = stream(piece, state)
        outputs.append(y)
    return np.concatenate(outputs, axis=1), state


def test_a_stack_of_blocks_streams(model, stream, rng):
    x = inputs(rng, 2, 40, CHANNELS)
    outputs, _ = run(stream, x, [9, 1, 1, 17, 1, 11])
    assert_close(outputs, model(x), EXACT)


def test_subclassed_and_sequential_models_stream(rng):
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.attention = LinearAttention(2, 3)

        def call(self, x):
            return self.attention(x, x, use_causal_mask=True)

    x = inputs(rng, 2, 12, CHANNELS)
    subclassed = Subclassed()
    with pytest.raises(ValueError, match=r"not built"):
        Streaming(subclassed)
    subclassed(x)
    with pytest.raises(ValueError, match=r"Give `sample`"):
        Streaming(subclassed)
    sequential = keras.Sequential(
        [keras.Input((None, CHANNELS)), TransformerDecoder(7, attention=LinearAttention(2, 3))]
    )
    for model in (subclassed, sequential):
        outputs, _ = run(Streaming(model, sample=x), x, [5, 1, 6])
        assert_close(outputs, model(x), EXACT)


def test_a_layer_used_twice_has_two_states(rng):
    x = keras.Input((None, CHANNELS))
    layer = LinearAttention(2, 3)
    y = layer(x, x, use_causal_mask=True)
    model = keras.Model(x, layer(y, y, use_causal_mask=True))
    stream = Streaming(model)
    assert sorted(stream.state_spec) == ["linear_attention_0_sums", "linear_attention_1_sums"]
    data = inputs(rng, 2, 12, CHANNELS)
    assert_close(run(stream, data, [7, 1, 4])[0], model(data), EXACT)


def test_each_example_has_its_own_position(model, stream, rng):
    """Examples get their steps at different times; masked steps hold junk."""
    x = inputs(rng, 3, 30, CHANNELS)
    state, taken, found = stream.initial_state(3), np.zeros(3, int), [[], [], []]
    while taken.min() < 20:
        mask = rng.random((3, rng.integers(1, 6))) < [[0.9], [0.5], [0.6]]
        mask &= taken[:, None] + np.cumsum(mask, axis=1) <= 30
        piece = np.full((*mask.shape, CHANNELS), 1e3, "float32")
        for i in range(3):
            n = mask[i].sum()
            piece[i, mask[i]] = x[i, taken[i] : taken[i] + n]
            taken[i] += n
        y, state = stream(piece, state, mask=mask)
        for i in range(3):
            found[i].extend(np.asarray(y)[i, mask[i]])
    whole = np.asarray(model(x))
    assert len(set(taken)) > 1
    for i in range(3):
        assert_close(np.array(found[i]), whole[i, : taken[i]], EXACT)


def test_one_example_can_be_reset_alone_even_from_nan(model, stream, rng):
    x = inputs(rng, 2, 12, CHANNELS)
    poisoned = x.copy()
    poisoned[0, 3] = np.nan
    _, state = stream(poisoned, stream.initial_state(2))
    y, _ = stream(x, state)
    assert np.isnan(np.asarray(y)[0]).all()
    y, _ = stream(x, stream.reset(state, [True, False]))
    assert_close(np.asarray(y)[0], np.asarray(model(x))[0], EXACT)
    assert_close(np.asarray(y)[1], np.asarray(model(np.concatenate([x, x], 1)))[1, 12:], EXACT)
    _, state = stream(poisoned, stream.initial_state(2))
    for value in stream.reset(state).values():
        assert not np.any(np.asarray(value))


@pytest.mark.parametrize("examples", [[True], [1, 0, 1], [[True], [False]]])
def test_a_reset_of_other_examples_is_refused(examples, stream):
    with pytest.raises(ValueError, match=r"`examples` must have a boolean for each of 2 examples"):
        stream.reset(stream.initial_state(2), examples)


def test_a_stream_of_means_takes_no_state_of_sums():
    x = keras.Input((None, CHANNELS))
    y = CompressiveMemoryAttention(2, 3, segment_length=2)(x, x, use_causal_mask=True)
    model = keras.Model(x, y)
    sums, means = Streaming(model), Streaming(model, means=True)
    with pytest.raises(ValueError, match=r"This is not a state .*_0_means.*_0_sums"):
        means(np.zeros((1, 1, CHANNELS), "float32"), sums.initial_state(1))


def test_state_is_saved_and_restored_midstream(model, stream, rng, tmp_path):
    x = inputs(rng, 2, 20, CHANNELS)
    _, state = stream(x[:, :9], stream.initial_state(2))
    stream.save(state, tmp_path / "state.npz")
    outputs, _ = stream(x[:, 9:], stream.load(tmp_path / "state.npz"))
    assert_close(outputs, np.asarray(model(x))[:, 9:], EXACT)
    assert [file.name for file in tmp_path.iterdir()] == ["state.npz"]


def test_a_damaged_or_foreign_state_is_refused(stream, tmp_path):
    path = tmp_path / "state.npz"
    stream.save(stream.initial_state(1), path)
    whole = path.read_bytes()
    compression = whole.index(b"PK\x01\x02") + 10  # of the first entry of the table of contents
    encrypted = whole.index(b"PK\x01\x02") + 8
    changed = [whole[:i] + b"\x01" + whole[i + 1 :] for i in (compression, encrypted)]
    for damaged in (b"", b"junk", whole[: len(whole) // 2], *changed):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged"):
            stream.load(path)
    path.write_bytes(whole)
    with np.load(path) as file:
        older = {name: file[name] for name in file.files if name != state_file.BFLOAT16}
    np.savez(path, **older)
    with pytest.raises(ValueError, match=r"from an older version"):
        stream.load(path)
    other = Streaming(model_of(LinearAttention(4, 5)))
    other.save(other.initial_state(1), path)
    with pytest.raises(ValueError, match=r"not a state of 'sensor'.*linear_attention_0_sums"):
        stream.load(path)
    with pytest.raises(ValueError, match=r"not a state of 'sensor'"):
        stream(np.zeros((1, 1, CHANNELS)), other.initial_state(1))
    with pytest.raises(OSError, match=r"No such file"):
        stream.save(stream.initial_state(1), tmp_path / "nowhere" / "state.npz")


def test_the_wrong_batch_size_and_mask_are_refused(stream):
    x = np.zeros((2, 3, CHANNELS))
    with pytest.raises(ValueError, match=r"state is for \[1\] examples. Received: inputs with 2"):
        stream(x, stream.initial_state(1))
    with pytest.raises(ValueError, match=r"`mask` must have shape .* = \(2, 3\)"):
        stream(x, stream.initial_state(2), mask=np.ones((2, 4)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda x: keras.layers.Conv1D(4, 3, padding="same", name="wide")(x), "'wide' .Conv1D"),
        (lambda x: keras.layers.Conv1D(4, 3, padding="causal", name="old")(x), "'old' .Conv1D"),
        (lambda x: keras.layers.GRU(4, return_sequences=True, name="gru")(x), "'gru' .GRU"),
        (lambda x: keras.layers.GlobalAveragePooling1D(name="pool")(x), "'pool' .GlobalAv"),
        (lambda x: x - keras.ops.mean(x, axis=1, keepdims=True), "an operation outside"),
        (
            lambda x: TransformerEncoder(4, attention=LinearAttention(2, 3), name="both")(x),
            r"both/self_attention \(LinearAttention\) cannot stream: it looks ahead",
        ),
        (
            lambda x: TransformerDecoder(4, attention=CosFormerAttention(2, 3), name="paper")(x),
            r"paper/self_attention .* cannot stream: without `max_length` or `horizon`",
        ),
        (
            lambda x: TransformerDecoder(4, attention=SoftmaxAttention(2, 3), name="soft")(x),
            "soft/self_attention .* Build it with `max_length`",
        ),
    ],
)
def test_what_cannot_stream_is_named(build, message):
    x = keras.Input((None, CHANNELS))
    with pytest.raises(ValueError, match=f"cannot stream.*{message}"):
        Streaming(keras.Model(x, build(x)))


def test_a_fixed_length_cannot_stream():
    x = keras.Input((9, CHANNELS))
    with pytest.raises(ValueError, match=r"inputs of any length.*\(None, 9, 6\)"):
        Streaming(keras.Model(x, keras.layers.Dense(2)(x)))


@pytest.mark.parametrize(
    "attention",
    [CosFormerAttention(2, 3, max_length=20), SoftmaxAttention(2, 3, max_length=20)],
    ids=["cosformer", "softmax"],
)
def test_a_bounded_stream_ends_with_an_error_and_is_finite_beyond(attention, rng):
    x = keras.Input((None, CHANNELS))
    model = keras.Model(x, TransformerDecoder(4, attention=attention)(x))
    stream = Streaming(model)
    assert stream.max_steps == 20
    data = inputs(rng, 1, 20, CHANNELS)
    y, state = stream(data, stream.initial_state(1))
    assert np.isfinite(np.asarray(y)).all()
    with pytest.raises(ValueError, match=r"stream of '.*' is full: at most 20 steps.*: 21 steps"):
        stream(data[:, :1], state)
    stream(data[:, :1], state, mask=[[False]])  # takes no step
    y, _ = stream._call_in_stream(data[:, :1], state)
    assert np.isfinite(np.asarray(y)).all()


def test_the_state_of_an_endless_stream_stays_as_it_is(rng):
    model = model_of(limit=10_000)
    stream = Streaming(model)
    sizes = set()
    state = stream.initial_state(1)
    for _ in range(4):
        _, state = stream(inputs(rng, 1, 500, CHANNELS), state)
        sizes.add(sum(np.asarray(value).nbytes for value in state.values()))
    assert sizes == {stream.state_bytes}
    assert int(state["cos_former_attention_0_position"][0]) <= 8


def test_temporal_layers_save_and_load(model, rng, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = inputs(rng, 2, 13, CHANNELS)
    assert_close(loaded(x), model(x), 0)


def test_a_short_stream_is_checked_within_its_limit(rng):
    x = keras.Input((None, CHANNELS))
    stream = Streaming(keras.Model(x, PositionEmbedding(7)(x)))
    assert stream.max_steps == 7


def test_a_layer_of_two_submodels_is_named():
    x = keras.Input((None, CHANNELS))
    wide = keras.layers.Conv1D(CHANNELS, 3, padding="same", name="wide")
    submodel = keras.Model(x, wide(x))
    with pytest.raises(ValueError, match=r"cannot stream: its layer 'wide' \(Conv1D\)"):
        Streaming(keras.Model(x, submodel(wide(submodel(x)))))
    assert "call" not in vars(wide)


def test_a_layer_is_blamed_for_its_own_inputs_only():
    """A layer that takes a list gets other inputs than before, and is not the reason."""
    x = keras.Input((None, CHANNELS))
    y = x - keras.ops.mean(x, axis=1, keepdims=True)
    with pytest.raises(ValueError, match=r"cannot stream: an operation outside its layers"):
        Streaming(keras.Model(x, keras.layers.Add(name="sum")([y, y])))


def test_a_model_with_nan_in_its_weights_is_named():
    x = keras.Input((None, CHANNELS))
    model = keras.Model(x, keras.layers.Dense(2, kernel_initializer="ones")(x))
    model.set_weights([np.full((CHANNELS, 2), np.nan), np.zeros(2)])
    with pytest.raises(ValueError, match=r"cannot be checked: its outputs .* hold NaN"):
        Streaming(model)


def test_nan_in_pieces_alone_is_a_difference():
    from keras_cosattn import probe

    x = np.array([[0.0, 1.0, -np.inf]])
    assert probe.difference(x, [x[:, :1], x[:, 1:]]) == 0
    assert probe.difference(x, [x[:, :1], np.array([[np.nan, -np.inf]])]) == np.inf
    assert probe.difference(x, [x[:, :1], np.array([[1.0, np.inf]])]) == np.inf
    assert probe.difference(x[:, :0], [x[:, :0]]) == 0


def test_a_layer_of_half_precision_in_a_float32_model_streams():
    x = keras.Input((None, CHANNELS))
    attention = LinearAttention(2, 3, dtype="float16")
    y = keras.layers.Activation("linear", dtype="float32")(attention(x, x, use_causal_mask=True))
    assert Streaming(keras.Model(x, y)).state_bytes > 0


def test_streaming_changes_no_setting_of_the_process(monkeypatch):
    """Another thread keeps its filtered tracebacks while a model is refused."""
    x = keras.Input((None, CHANNELS))
    attention = SoftmaxAttention(2, 3, name="soft")
    model = keras.Model(x, attention(x, x, use_causal_mask=True))
    changes = []
    monkeypatch.setattr(
        keras.config, "disable_traceback_filtering", lambda: changes.append("disabled")
    )
    for filtering in (True, False):
        if not filtering:
            keras.src.utils.traceback_utils.disable_traceback_filtering()
        try:
            with pytest.raises(ValueError, match=r"cannot stream") as raised:
                Streaming(model)
        finally:
            keras.config.enable_traceback_filtering()
        assert "Build it with `max_length`" in str(raised.value)
        assert "Arguments received" not in str(raised.value)
        assert "Exception encountered" not in str(raised.value)
    assert not changes


def test_streaming_warns_of_nothing():
    """JAX warns where float64 is asked for and not enabled."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Streaming(model_of())


def convolution(activation="relu"):
    x = keras.Input((None, CHANNELS))
    return keras.Model(x, RunningMean()(CausalConv1D(4, 3, activation=activation)(x)))


def test_a_state_belongs_to_its_weights(rng, tmp_path):
    model = convolution()
    stream, path = Streaming(model), tmp_path / "state.npz"
    _, state = stream(inputs(rng, 1, 5, CHANNELS), stream.initial_state(1))
    stream.save(state, path)
    same = keras.models.clone_model(model)
    same.set_weights(model.get_weights())
    loaded = Streaming(same).load(path)
    for name, value in state.items():
        assert_close(loaded[name], value, 0)
    with pytest.raises(ValueError, match=r"computed by a model with other weights\. Load it"):
        Streaming(convolution()).load(path)
    sigmoid = convolution("sigmoid")
    sigmoid.set_weights(model.get_weights())
    with pytest.raises(ValueError, match=r"a model with another architecture\. Load it"):
        Streaming(sigmoid).load(path)


def test_a_layer_that_is_named_as_its_setting_has_one(tmp_path):
    def build(activation):
        x = keras.Input((None, CHANNELS))
        return keras.Model(
            x, RunningMean()(keras.layers.Activation(activation, name=activation)(x))
        )

    stream, path = Streaming(build("relu")), tmp_path / "state.npz"
    stream.save(stream.initial_state(1), path)
    with pytest.raises(ValueError, match="another architecture"):
        Streaming(build("tanh")).load(path)


def test_names_and_dropout_do_not_matter_to_a_state(tmp_path):
    def build(rate, name):
        x = keras.Input((None, CHANNELS))
        y = keras.layers.Dropout(rate)(CausalConv1D(4, 3, name=name)(x))
        return keras.Model(x, keras.layers.Add()([y, keras.layers.Dense(4)(x)]))

    first, second = build(0.1, "first"), build(0.0, "second")
    second.set_weights(first.get_weights())
    stream, path = Streaming(first), tmp_path / "state.npz"
    stream.save(stream.initial_state(2), path)
    assert Streaming(second).load(path).keys() == stream.state_spec.keys()


def test_a_state_file_has_the_modes_of_other_files(stream, tmp_path):
    path, other = tmp_path / "state.npz", tmp_path / "other"
    old = os.umask(0o027)
    try:
        stream.save(stream.initial_state(1), path)
        other.write_text("")
    finally:
        os.umask(old)
    assert path.stat().st_mode == other.stat().st_mode
    assert sorted(file.name for file in tmp_path.iterdir()) == ["other", "state.npz"]


def test_masked_steps_of_a_stream_may_hold_anything(stream, rng):
    x = inputs(rng, 2, 9, CHANNELS)
    mask = rng.random((2, 9)) < 0.6
    junk = rng.choice(np.float32([np.nan, np.inf]), x.shape)
    found, expected = (
        stream(np.where(mask[..., None], x, fill), stream.initial_state(2), mask)
        for fill in (junk, np.zeros_like(x))
    )
    assert_close(np.asarray(found[0])[mask], np.asarray(expected[0])[mask], EXACT)
    for name, value in expected[1].items():
        assert_close(found[1][name], value, EXACT)


def test_masked_steps_of_integer_inputs_may_hold_anything(rng):
    x = keras.Input((None,), dtype="int32")
    stream = Streaming(keras.Model(x, RunningMean()(keras.layers.Embedding(5, 3)(x))))
    ids, mask = np.array([[3, 10**6, 2]], "int32"), np.array([[True, False, True]])
    y, _ = stream(ids, stream.initial_state(1), mask)
    expected, _ = stream(ids[mask][None], stream.initial_state(1))
    assert_close(np.asarray(y)[mask], np.asarray(expected)[0], EXACT)


def test_no_steps_give_no_outputs_and_the_same_state(stream, rng):
    _, state = stream(inputs(rng, 2, 5, CHANNELS), stream.initial_state(2))
    y, new = stream(np.zeros((2, 0, CHANNELS), "float32"), state)
    assert tuple(y.shape) == (2, 0, 3)
    for name, value in state.items():
        assert_close(new[name], value, 0)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="assertions in graphs are TensorFlow's")
def test_a_graph_asserts_that_a_stream_is_not_full(rng):
    import tensorflow as tf

    x = keras.Input((None, CHANNELS))
    stream = Streaming(keras.Model(x, PositionEmbedding(8)(x)))
    call = tf.function(stream)
    data = inputs(rng, 1, 5, CHANNELS)
    _, state = call(data, stream.initial_state(1))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"is full: more than 8 steps"):
        call(data, state)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="assertions in graphs are TensorFlow's")
def test_a_graph_asserts_that_inputs_have_the_examples_of_the_state():
    import tensorflow as tf

    x = keras.Input((None, CHANNELS))
    stream = Streaming(keras.Model(x, RunningMean()(x)))
    any_batch = tf.TensorSpec((None, None, CHANNELS))
    call = tf.function(lambda x: stream(x, stream.initial_state(3))[0], input_signature=[any_batch])
    with pytest.raises(tf.errors.InvalidArgumentError, match="every_batch_must_have_3_examples"):
        call(np.ones((1, 4, CHANNELS), "float32"))


@pytest.mark.skipif(BACKEND == "torch", reason="`compiled` is for XLA")
def test_a_full_stream_stays_finite_where_nothing_can_be_raised(rng):
    x = keras.Input((None, CHANNELS))
    stream = Streaming(keras.Model(x, PositionEmbedding(8)(x)))
    call, state = compiled(stream), stream.initial_state(1)
    for _ in range(3):
        y, state = call(inputs(rng, 1, 5, CHANNELS), state)
        assert np.isfinite(np.asarray(y)).all()


def test_streams_of_two_threads_are_apart(stream, model, rng):
    """The open stream is a context variable."""
    x, found = inputs(rng, 2, 12, CHANNELS), {}

    def read(i):
        found[i] = run(stream, x[i : i + 1], [5, 1, 6])[0]

    threads = [threading.Thread(target=read, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(2):
        assert_close(found[i], np.asarray(model(x[i : i + 1])), EXACT)


@pytest.mark.parametrize(
    "attention",
    [SoftmaxAttention(2, 3, max_length=30), LinearAttention(2, 3)],
    ids=lambda layer: type(layer).__name__,
)
def test_a_decoder_with_an_encoder_streams(attention, rng):
    x, encoded = keras.Input((None, CHANNELS)), keras.Input((None, 6), name="encoded")
    masked = keras.layers.Masking()(encoded)
    cross = LinearAttention(2, 3)
    block = TransformerDecoder(8, attention=attention, cross_attention=cross)
    model = keras.Model([x, encoded], block(x, masked))
    data, constant = inputs(rng, 2, 9, CHANNELS), inputs(rng, 2, 5, 6)
    constant[0, 3:] = 0
    stream = Streaming(model, [data, constant], constants=["encoded"])
    state = stream.initial_state(2, {"encoded": constant})
    whole = model([data, constant])
    found = []
    for piece in np.split(data, [4, 5], axis=1):
        y, state = stream(piece, state)
        found.append(y)
    assert_close(np.concatenate(found, axis=1), whole, 1e-5)
    for examples in (None, [True, True]):  # the encoder's outputs stay
        again, _ = stream(data, stream.reset(state, examples))
        assert_close(again, whole, 1e-5)
    with pytest.raises(ValueError, match=r"must have a value for each of \['encoded'\]"):
        stream.initial_state(2)


def test_a_stream_of_two_inputs_takes_a_list_or_a_dict_beside_constants(rng):
    x, y, encoded = (keras.Input((None, CHANNELS), name=name) for name in ("x", "y", "encoded"))
    # An encoder's outputs are not a cache, so softmax needs no `max_length` here.
    mixed = SoftmaxAttention(2, 3)(x + y, encoded)
    model = keras.Model([x, y, encoded], RunningMean()(mixed))
    data = [inputs(rng, 2, steps, CHANNELS) for steps in (4, 4, 5)]
    stream = Streaming(model, data, constants=["encoded"])
    state = stream.initial_state(2, {"encoded": data[2]})
    for given in (data[:2], {"x": data[0], "y": data[1]}):
        assert_close(stream(given, state)[0], model(data), EXACT)
    with pytest.raises(ValueError, match=r"reads the inputs \['x', 'y'\].* Received: 1 inputs"):
        stream(data[0], state)


def test_cross_attention_that_counts_queries_does_not_stream(rng):
    x, encoded = keras.Input((None, CHANNELS)), keras.Input((5, 6), name="encoded")
    block = TransformerDecoder(8, attention=CosFormerAttention(2, 3, max_length=20))
    model = keras.Model([x, encoded], block(x, encoded))
    with pytest.raises(ValueError, match="depend on the positions of the queries"):
        Streaming(model, constants=["encoded"])
