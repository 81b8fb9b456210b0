"""What is special to low-rank attention: slots, their sharing, and the number of steps."""

import keras
import numpy as np
import pytest
from references import How, projected
from support import assert_close, compiled, gradients, layer_weights, pure
from variants import inputs, mask_of

from keras_cosattn import LowRankAttention, SoftmaxAttention
from keras_cosattn.ops.low_rank import low_rank_attention

HEADS, SHARED, D, E, WIDTH = 6, 3, 5, 7, 11
EXACT = 1e-6  # the same sums, at most in another order


def build(**arguments):
    arguments = {"num_key_value_heads": SHARED, "value_dim": E, **arguments}
    layer = LowRankAttention(HEADS, D, bias_initializer="normal", **arguments)
    layer.build((None, None, WIDTH), (None, None, WIDTH))
    return layer


def with_identity(max_length, rank, **arguments):
    """A layer that mixes step j, alone, into slot j; and softmax attention with its weights."""
    layer = build(max_length=max_length, rank=rank, **arguments)
    eye = np.eye(max_length, rank, dtype="float32")
    for weight in (layer.key_projection, layer.value_projection):
        each = eye if len(weight.shape) == 2 else np.repeat(eye[:, None], SHARED, axis=1)
        weight.assign(each)
    softmax = SoftmaxAttention(HEADS, D, num_key_value_heads=SHARED, value_dim=E)
    softmax.build((None, None, WIDTH), (None, None, WIDTH))
    softmax.set_weights(layer.get_weights()[-8:])
    return layer, softmax


@pytest.mark.parametrize("share_heads", [True, False])
@pytest.mark.parametrize("share_key_value", [True, False])
@pytest.mark.parametrize("t", [1, 13, 64])
def test_the_identity_of_full_rank_is_softmax_at_every_length(share_heads, share_key_value, t, rng):
    layer, softmax = with_identity(64, 64, share_heads=share_heads, share_key_value=share_key_value)
    x, mask = inputs(rng, 3, t, WIDTH), mask_of((t, (t + 1) // 2, 1), t, "left")
    assert_close(layer(x, x), softmax(x, x), EXACT)
    masked = {"query_mask": mask, "value_mask": mask}
    assert_close(layer(x, x, **masked), softmax(x, x, **masked), EXACT)


def test_the_identity_of_full_rank_is_softmax_in_cross_attention(rng):
    layer, softmax = with_identity(17, 17)
    x, y = inputs(rng, 3, 64, WIDTH), inputs(rng, 3, 13, WIDTH)
    mask = rng.random((3, 13)) < 0.6
    assert_close(layer(x, y, value_mask=mask), softmax(x, y, value_mask=mask), EXACT)
    _, weights = layer(x, y, value_mask=mask, return_attention_scores=True)
    _, expected = softmax(x, y, value_mask=mask, return_attention_scores=True)
    assert_close(weights, expected, EXACT)


def test_a_slot_without_a_key_does_not_count(rng):
    """Both slots hold the same key; the second is empty until there is a third step."""
    q, k, v = (inputs(rng, 1, t, 1, 4) for t in (2, 3, 3))
    keys = np.array([[1, 0], [0, 0], [0, 1]], "float32")
    values = np.array([[1, 5], [0, 5], [0, 5]], "float32")
    two = low_rank_attention(q, k[:, :2], v[:, :2], keys, values)
    assert_close(two, np.broadcast_to(v[:, :1], two.shape), EXACT)
    three = low_rank_attention(q, k, v, keys, values)
    assert np.abs(three - np.broadcast_to(v[:, :1], three.shape)).max() > 0.1


@pytest.mark.parametrize("share_heads", [True, False])
@pytest.mark.parametrize("share_key_value", [True, False])
def test_sharing_is_seen_in_the_weights(share_heads, share_key_value):
    layer = build(max_length=9, rank=4, share_heads=share_heads, share_key_value=share_key_value)
    shapes = [w.shape for w in layer.weights if "projection" in w.name]
    assert shapes == [(9, 4) if share_heads else (9, SHARED, 4)] * (1 if share_key_value else 2)


def test_each_head_has_its_own_slots(rng):
    layer = build(max_length=9, rank=4, share_heads=False)
    keys = keras.ops.convert_to_numpy(layer.key_projection)
    values = keras.ops.convert_to_numpy(layer.value_projection)
    drawn = [keys[:, 0], keys[:, 1], keys[:, 2], values[:, 0], values[:, 1], values[:, 2]]
    for i, one in enumerate(drawn):
        assert 0.2 < np.std(one) * 3 < 2  # 1 / sqrt(9), over 36 numbers
        assert all(np.abs(one - other).max() > 0.05 for other in drawn[:i])


def test_half_precision_keeps_the_projections_in_float32():
    layer = build(max_length=9, rank=4, dtype="mixed_float16")
    assert layer.key_projection.dtype == "float32"


@pytest.mark.parametrize("share_heads", [True, False])
@pytest.mark.parametrize("share_key_value", [True, False])
@pytest.mark.parametrize("lengths", [(13, 13), (257, 1), (1, 64)])
def test_every_way_of_sharing_equals_the_sum(share_heads, share_key_value, lengths, rng):
    arguments = {"share_heads": share_heads, "share_key_value": share_key_value}
    layer = build(max_length=64, rank=9, **arguments)
    x, y = (inputs(rng, 2, n, WIDTH) for n in lengths)
    mask = rng.random((2, lengths[1])) < 0.7
    expected = projected(
        "LowRankAttention", layer_weights(layer), x, y, how=How(key_mask=mask), **arguments
    )
    assert_close(layer(x, y, value_mask=mask), expected)


def test_more_steps_than_max_length_are_refused():
    layer, x = build(max_length=4, rank=2), np.zeros((2, 5, WIDTH), "float32")
    with pytest.raises(ValueError, match=r"at most 4 steps. Received: 5 steps.*larger"):
        layer(x, x)
    assert layer(x, x[:, :4]).shape == x.shape


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"use_causal_mask": True}, "cannot be causal.*also of the future"),
        ({"segment_ids": np.zeros((1, 3), "int32")}, "cannot pack.*would mix the segments"),
    ],
)
def test_what_mixes_steps_is_refused(call, message, rng):
    x = inputs(rng, 1, 3, WIDTH)
    with pytest.raises(ValueError, match=message):
        build(max_length=4, rank=2)(x, x, **call)


@pytest.mark.parametrize("arguments", [{"max_length": 0}, {"rank": 0}, {"rank": 2.5}])
def test_a_bad_argument_is_refused(arguments):
    name, value = next(iter(arguments.items()))
    with pytest.raises(ValueError, match=f"`{name}` must be an integer .* {name}={value}"):
        build(**{"max_length": 4, "rank": 2, **arguments})


def test_gradients_reach_the_projections(rng):
    layer, x = build(max_length=13, rank=4), inputs(rng, 2, 9, WIDTH)
    others = [w.value for w in layer.trainable_variables[2:]]

    def loss(keys, values):
        return keras.ops.sum(layer.stateless_call([keys, values, *others], [], x, x)[0] ** 2)

    starts = layer.get_weights()[:2]
    for slope in gradients(loss, *starts):
        assert np.all(np.any(slope[:9] != 0, axis=1))
        assert not np.any(slope[9:])  # there are nine steps


def test_xla_gives_the_same(rng):
    layer, x = build(max_length=64, rank=4, share_heads=False), inputs(rng, 2, 13, WIDTH)
    mask = mask_of((7, 13), 13, "left")
    run = compiled(lambda x: pure(layer, x, x, query_mask=mask, value_mask=mask))
    assert_close(run(x), layer(x, x, query_mask=mask, value_mask=mask), EXACT)


@pytest.mark.slow
def test_trains_compiled_with_any_length(rng):
    x = keras.Input((None, WIDTH))
    model = keras.Model(x, keras.layers.Dense(1)(build(max_length=31, rank=6)(x, x)))
    model.compile(keras.optimizers.Adam(0.03), "mse", jit_compile=True)
    losses = []
    for length in (13, 7):
        data = inputs(rng, 8, length, WIDTH)
        losses += model.fit(data, data[..., :1], epochs=8, verbose=0).history["loss"]
    assert losses[7] < 0.8 * losses[0]
    assert np.all(np.isfinite(losses))
