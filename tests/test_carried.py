"""Training by segments sees what came before them, and leaves the state that a stream has."""

import keras
import numpy as np
import pytest
from support import BACKEND, assert_close
from variants import inputs

from keras_cosattn import (
    CarriedState,
    CausalConv1D,
    CompressiveMemoryAttention,
    CosFormerAttention,
    PositionEmbedding,
    RecurrentMemoryAttention,
    RunningMean,
    SoftmaxAttention,
    Streaming,
    TransformerDecoder,
)

BATCH, STEPS, SEGMENTS = 4, 6, 5
LAYERS = {
    "recurrent_memory": lambda: RecurrentMemoryAttention(2, 3, segment_length=4, memory_length=5),
    "compressive_memory": lambda: CompressiveMemoryAttention(2, 3, segment_length=4),
    "delta_rule": lambda: CompressiveMemoryAttention(2, 3, segment_length=4, delta_rule=True),
    "cosformer": lambda: CosFormerAttention(2, 3, horizon=8),
    "softmax": lambda: SoftmaxAttention(2, 3, max_length=STEPS * SEGMENTS),
}


def model_of(attention):
    x = keras.Input((None, 2))
    y = PositionEmbedding(100)(CausalConv1D(8, 3)(x))
    y = TransformerDecoder(9, attention=attention, dropout=0.1)(y)
    return keras.Model(x, keras.layers.Dense(1)(RunningMean()(y)))


def in_order(x):
    """`(BATCH, SEGMENTS * STEPS, m)` as the batches of `fit`, one after the other."""
    return np.concatenate(np.split(x, SEGMENTS, axis=1))


def fit(model, x, y, rate=0.0, epochs=1, jit=True):
    model.compile(keras.optimizers.Adam(rate), "mse", jit_compile=jit)
    return model.fit(x, y, batch_size=BATCH, shuffle=False, epochs=epochs, verbose=0)


@pytest.mark.parametrize(
    ("name", "jit"),
    [
        ("softmax", False),
        *(pytest.param(name, True, marks=pytest.mark.slow) for name in LAYERS),
    ],
)
def test_the_state_after_fit_is_that_of_the_stream(name, jit, rng):
    model = model_of(LAYERS[name]())
    carried, x = CarriedState(model, BATCH), inputs(rng, BATCH, STEPS * SEGMENTS, 2)
    fit(carried, in_order(x), in_order(x[..., :1]), jit=jit)
    stream = Streaming(model)
    state = stream.initial_state(BATCH)
    for piece in np.split(x, SEGMENTS, axis=1):
        _, state = stream(piece, state)
    if name == "recurrent_memory":
        assert set(state) == set(carried.carried)
    for key, value in state.items():
        if not key.startswith("running_mean"):  # behind the dropout
            assert_close(carried.carried[key], value, 1e-5)


def remembered(rng):
    """Each marker carries a number, to be told until the next comes two segments later."""
    x = np.zeros((BATCH, SEGMENTS + 1, STEPS, 2), "float32")
    x[:, ::2, 0, 0] = 3
    x[:, ::2, 0, 1] = rng.normal(size=(BATCH, SEGMENTS // 2 + 1))
    y = np.repeat(np.repeat(x[:, ::2, :1, 1:], 2, axis=1), STEPS, axis=2)
    return tuple(np.concatenate(np.moveaxis(a, 1, 0)) for a in (x, y))


@pytest.mark.slow
def test_what_only_the_segment_before_tells_is_learned_with_carried_state_alone(rng):
    losses = []
    for carry in (True, False):
        keras.utils.set_random_seed(0)
        layer = RecurrentMemoryAttention(1, 4, segment_length=STEPS, memory_length=STEPS)
        x = keras.Input((None, 2))
        y = keras.layers.Dense(1)(layer(x, x, use_causal_mask=True))
        model = keras.Model(x, y)
        model = CarriedState(model, BATCH) if carry else model
        data = [np.concatenate(a) for a in zip(*(remembered(rng) for _ in range(20)), strict=True)]
        losses.append(fit(model, *data, rate=0.03, epochs=6).history["loss"][-1])
    with_state, without = losses
    assert with_state < 0.02
    assert without > 0.4  # half of the variance: every second segment does not show the number


def test_outputs_are_those_of_the_whole_and_start_again_after_a_reset(rng):
    model = model_of(LAYERS["compressive_memory"]())
    carried, x = CarriedState(model, BATCH), inputs(rng, BATCH, STEPS * SEGMENTS, 2)
    for _ in range(2):
        found = [carried(piece) for piece in np.split(x, SEGMENTS, axis=1)]
        assert_close(np.concatenate(found, axis=1), model(x), 1e-5)
        carried.reset_state()
    carried.compile(loss="mse", jit_compile=True)
    found = carried.predict(in_order(x), batch_size=BATCH, verbose=0)
    assert_close(found, in_order(np.asarray(model(x))), 1e-5)


def test_the_state_is_saved_with_the_weights(rng, tmp_path):
    carried = CarriedState(model_of(LAYERS["recurrent_memory"]()), BATCH, name="by_segments")
    x = inputs(rng, BATCH, 2 * STEPS, 2)
    carried(x[:, :STEPS])
    carried.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.name == "by_segments"
    assert_close(loaded(x[:, STEPS:]), carried(x[:, STEPS:]), 1e-6)


def test_another_batch_size_is_refused(rng):
    carried = CarriedState(model_of(LAYERS["recurrent_memory"]()), BATCH)
    with pytest.raises(ValueError, match=r"state of 4 streams.*Received: a batch of 3"):
        carried(inputs(rng, 3, STEPS, 2))
    with pytest.raises(ValueError, match=r"cannot stream"):
        CarriedState(model_of(SoftmaxAttention(2, 3)), BATCH)


@pytest.mark.parametrize("jit", [False, True])
def test_a_smaller_batch_at_the_end_is_refused(jit, rng):
    carried, x = CarriedState(small_model(), BATCH), inputs(rng, BATCH + 1, STEPS, 2)
    carried.compile("sgd", "mse", jit_compile=jit)
    message = "must_have_4_examples" if BACKEND == "tensorflow" else "Received: a batch of 1"
    with pytest.raises(Exception, match=message):
        carried.predict(x, batch_size=BATCH, verbose=0)
    with pytest.raises(Exception, match=message):
        carried.fit(x, x[..., :1], batch_size=BATCH, shuffle=False, verbose=0)


def test_inputs_reach_the_model_in_their_own_dtype(rng, mixed_bfloat16):
    x = keras.Input((None, 2))
    y = keras.layers.Normalization(mean=[1000.0] * 2, variance=[1.0] * 2, dtype="float32")(x)
    model, x = keras.Model(x, RunningMean(dtype="float32")(y)), 1000 + inputs(rng, 1, STEPS, 2)
    assert_close(CarriedState(model, 1)(x), model(x), 1e-6)


def small_model(limit=100):
    x = keras.Input((None, 2))
    return keras.Model(x, keras.layers.Dense(1)(PositionEmbedding(limit)(RunningMean()(x))))


def test_evaluation_and_prediction_leave_the_training_streams(rng):
    carried, x = CarriedState(small_model(), BATCH), inputs(rng, BATCH, STEPS * SEGMENTS, 2)
    data = in_order(x), in_order(x[..., :1])
    carried.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=False)
    options = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
    history = carried.fit(*data, **options, validation_data=data, validation_batch_size=BATCH)
    trained = {name: np.asarray(value) for name, value in carried.carried.items()}
    assert trained["running_mean_0_position"].tolist() == [STEPS * SEGMENTS] * BATCH
    # Nothing was learned at a rate of 0, so both losses are those of the streams from their start.
    loss, validation = history.history["loss"][0], history.history["val_loss"][0]
    assert_close(validation, loss, 1e-5)
    for _ in range(2):  # each evaluation reads its streams from the start
        assert_close(carried.evaluate(*data, batch_size=BATCH, verbose=0), loss, 1e-5)
    found = carried.predict(data[0], batch_size=BATCH, verbose=0)
    assert_close(found, in_order(np.asarray(carried.model(x))), 1e-5)
    carried.test_on_batch(data[0][:BATCH], data[1][:BATCH])
    carried.predict_on_batch(data[0][:BATCH])
    for name, value in trained.items():
        assert_close(np.asarray(carried.carried[name]), value, 0)
    carried.train_on_batch(data[0][:BATCH], data[1][:BATCH])
    assert int(carried.carried["running_mean_0_position"][0]) == STEPS * (SEGMENTS + 1)


def test_both_states_are_reset(rng):
    carried = CarriedState(small_model(), BATCH)
    for training in (True, False):
        carried(inputs(rng, BATCH, STEPS, 2), training=training)
    carried.reset_state()
    for weight in (*carried.carried.values(), *carried.carried_in_evaluation.values()):
        assert not np.any(np.asarray(weight))


@pytest.mark.parametrize("jit", [False, True])
def test_a_stream_beyond_the_limit_spoils_no_weights(jit, rng):
    carried, x = CarriedState(small_model(2 * STEPS), BATCH), inputs(rng, BATCH, 3 * STEPS, 2)
    carried.compile("sgd", "mse", jit_compile=jit)
    batches = np.split(x, 3, axis=1)
    losses = [carried.train_on_batch(batch, batch[..., :1]) for batch in batches[:2]]
    before = [np.asarray(w) for w in carried.model.trainable_weights]
    if jit:
        losses.append(carried.train_on_batch(batches[2], batches[2][..., :1]))
        assert np.isfinite(losses).all()
        assert all(np.isfinite(np.asarray(w)).all() for w in carried.model.trainable_weights)
        return
    with pytest.raises(Exception, match=r"is full: (more than|at most) 12 steps") as raised:
        carried.train_on_batch(batches[2], batches[2][..., :1])
    # TensorFlow's graph has an assertion. JAX without compilation knows the number.
    expected = "InvalidArgumentError" if BACKEND == "tensorflow" else "ValueError"
    assert type(raised.value).__name__ == expected
    for weight, old in zip(carried.model.trainable_weights, before, strict=True):
        assert_close(np.asarray(weight), old, 0)
    with pytest.raises(ValueError, match=r"is full: at most 12 steps. Received: 18 steps"):
        carried(batches[2], training=True)
