"""Any model of causal layers as state in, state out; what cannot is named."""

import keras
import numpy as np
import pytest
from support import assert_close
from variants import inputs

from keras_cosattn import (
    CausalConv1D,
    CausalDepthwiseConv1D,
    CosFormerAttention,
    LinearAttention,
    PositionEmbedding,
    RunningMean,
    SoftmaxAttention,
    Streaming,
    TransformerDecoder,
    TransformerEncoder,
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
    for damaged in (b"", b"junk", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged"):
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
def test_a_bounded_stream_ends_with_an_error(attention, rng):
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
