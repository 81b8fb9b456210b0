"""What is special to Nystrom attention: landmarks, the inverse, the convolution."""

import keras
import numpy as np
import pytest
import references
from references import How, projected
from support import assert_close, compiled, gradients, layer_weights, pure
from variants import inputs, mask_of

from keras_cosattn import NystromAttention, Rotary, SoftmaxAttention
from keras_cosattn.ops.nystrom import convolve_steps, landmarks, nystrom_attention, pseudo_inverse

HEADS, SHARED, D, E, WIDTH = 6, 3, 5, 7, 11
EXACT = 1e-6  # the same sums, at most in another order
ROUNDED = 1e-5  # float32, in products of another batch size, times the norm of the inverse
CONVERGED = 16  # with more, singular values that are but rounding would be inverted too
INVERTED = 1e-4  # float32, times the condition of the landmarks' matrix


def build(**arguments):
    arguments = {"num_key_value_heads": SHARED, "value_dim": E, **arguments}
    layer = NystromAttention(HEADS, D, bias_initializer="normal", **arguments)
    layer.build((None, None, WIDTH), (None, None, WIDTH))
    return layer


def softmax_like(layer):
    softmax = SoftmaxAttention(
        HEADS, D, num_key_value_heads=SHARED, value_dim=E, position=layer.position
    )
    softmax.build((None, None, WIDTH), (None, None, WIDTH))
    softmax.set_weights(layer.get_weights())
    return softmax


@pytest.mark.parametrize("position", [None, Rotary()], ids=["nowhere", "rotary"])
@pytest.mark.parametrize("t", [1, 13, 32])
def test_as_many_landmarks_as_keys_equal_softmax(position, t, rng):
    layer = build(num_landmarks=32, pinv_iterations=CONVERGED, position=position)
    softmax, x = softmax_like(layer), inputs(rng, 3, t, WIDTH)
    mask = mask_of((t, (t + 1) // 2, 1), t, "left")
    assert_close(layer(x, x), softmax(x, x), INVERTED)
    masked = {"query_mask": mask, "value_mask": mask}
    assert_close(layer(x, x, **masked), softmax(x, x, **masked), INVERTED)


@pytest.mark.parametrize("lengths", [(13, 7), (7, 13)])
def test_as_many_landmarks_as_keys_equal_softmax_in_cross_attention(lengths, rng):
    q, k, v = (inputs(rng, 2, t, 2, D) for t in (*lengths, lengths[1]))
    found = nystrom_attention(q, k, v, num_landmarks=13, pinv_iterations=CONVERGED)
    weights = references.normalise(references.softmax_weights(np.float64(q), np.float64(k)))
    assert_close(found, references.mix(weights, np.float64(v)), INVERTED)


def test_six_iterations_are_far_from_the_inverse_where_landmarks_are_alike(rng):
    """What the docstring says: more come nearer."""
    x, errors = inputs(rng, 2, 13, WIDTH), {}
    layers = {n: build(num_landmarks=13, pinv_iterations=n) for n in (6, 12, CONVERGED)}
    expected = softmax_like(layers[6])(x, x)
    for n, layer in layers.items():
        layer.set_weights(layers[6].get_weights())
        errors[n] = np.abs(layer(x, x) - expected).max() / np.abs(expected).max()
    assert 1e-3 < errors[6] < 0.3
    assert errors[12] < errors[6] / 10
    assert errors[CONVERGED] < INVERTED


def test_an_example_does_not_depend_on_its_neighbours(rng):
    """The first has flat weights, the second sharp: their norms differ more than tenfold."""
    q, k, v = (inputs(rng, 2, 64, 2, n) for n in (D, D, E))
    q[0] *= 0.1
    q[1], k[1, :, :, 0] = q[1] * 10, 30.0
    one, other = (
        nystrom_attention(q[i : i + 1], k[i : i + 1], v[i : i + 1], num_landmarks=8) for i in (0, 1)
    )
    together = nystrom_attention(q, k, v, num_landmarks=8)
    assert_close(together[:1], one, ROUNDED)
    assert_close(together[1:], other, ROUNDED)


def test_a_head_does_not_depend_on_the_others(rng):
    q, k, v = (inputs(rng, 1, 64, 2, n) for n in (D, D, E))
    q[:, :, 1], k[:, :, 1, 0] = q[:, :, 1] * 10, 30.0
    together = nystrom_attention(q, k, v, num_landmarks=8)
    alone = nystrom_attention(q[:, :, :1], k[:, :, :1], v[:, :, :1], num_landmarks=8)
    assert_close(together[:, :, :1], alone, ROUNDED)


def test_each_matrix_starts_from_its_own_norms(rng):
    matrices = np.exp(inputs(rng, 3, 4, 4)) * np.array([1, 1e-2, 1e3], "float32")[:, None, None]
    found = np.asarray(pseudo_inverse(matrices, CONVERGED))
    for matrix, inverse in zip(matrices, found, strict=True):
        assert_close(inverse, np.linalg.inv(matrix), 1e-3)  # condition up to 100
        assert_close(pseudo_inverse(matrix, 3), references.nearly_inverse(matrix, 3))


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_the_inverse_is_that_of_moore_and_penrose(shape, rng):
    matrix = rng.normal(size=shape).astype("float32")
    inverse = np.linalg.pinv(matrix)
    assert_close(pseudo_inverse(matrix, CONVERGED), inverse, INVERTED)
    padded = np.pad(matrix, ((0, 2), (0, 4)))
    expected = np.pad(inverse, ((0, 4), (0, 2)))
    assert_close(pseudo_inverse(padded, CONVERGED), expected, INVERTED)
    assert_close(
        pseudo_inverse(padded, 2)[: shape[1], : shape[0]], pseudo_inverse(matrix, 2), EXACT
    )


def test_the_inverse_of_nothing_is_nothing():
    zeros = np.zeros((2, 3, 3), "float32")
    assert not np.any(pseudo_inverse(zeros, 6))
    (slope,) = gradients(lambda x: keras.ops.sum(pseudo_inverse(x, 6)), zeros)
    assert np.all(np.isfinite(slope))


@pytest.mark.parametrize(("t", "number"), [(13, 5), (64, 8), (257, 10), (3, 5), (1, 1), (13, 13)])
def test_landmarks_are_means_of_nearly_equal_runs(t, number, rng):
    x = inputs(rng, 2, t, 3, 4)
    found, exists = landmarks(x, number)
    runs = [i * min(number, t) // t for i in range(t)]
    sizes = np.bincount(runs)
    assert max(sizes) - min(sizes) <= 1
    assert np.sum(exists) == len(sizes) == min(number, t)
    for j in range(number):
        one = x[:, np.equal(runs, j)].mean(axis=1) if j < t else np.zeros((2, 3, 4))
        assert_close(np.asarray(found)[:, j], one, EXACT)


def test_landmarks_are_means_of_real_steps(rng):
    x, mask = inputs(rng, 2, 13, 3, 4), rng.random((2, 13)) < 0.6
    x[~mask] = 0
    found, exists = map(np.asarray, landmarks(x, 5, mask))
    for i in range(2):
        alone, there = map(np.asarray, landmarks(x[i : i + 1, mask[i]], 5))
        assert_close(found[i : i + 1], alone, EXACT)
        assert np.array_equal(exists[i : i + 1], there)


def test_an_example_without_steps_is_zero_and_spares_the_others(rng):
    q, k, v = (inputs(rng, 2, 13, 2, n) for n in (D, D, E))
    mask = np.ones((2, 13), bool)
    mask[0] = False
    masked = {"num_landmarks": 4, "query_mask": mask, "mask": mask}
    found = np.asarray(nystrom_attention(q, k, v, **masked))
    assert not np.any(found[0])
    assert_close(found[1:], nystrom_attention(q[1:], k[1:], v[1:], num_landmarks=4), EXACT)
    for slope in gradients(lambda *x: keras.ops.sum(nystrom_attention(*x, **masked)), q, k, v):
        assert np.all(np.isfinite(slope))
        assert not np.any(slope[0])


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_gradients_through_the_inverse_are_finite(scale, rng):
    """All landmarks alike; any; each sees one other only."""
    q, k, v = (scale * inputs(rng, 2, 64, 2, n) for n in (D, D, E))

    def loss(*x):
        return keras.ops.sum(nystrom_attention(*x, num_landmarks=16, pinv_iterations=12))

    for slope in gradients(loss, q, k, v):
        assert np.all(np.isfinite(slope))


@pytest.mark.parametrize("size", [1, 3, 9])
def test_the_convolution_is_centred_and_skips_masked_steps(size, rng):
    v, kernel = inputs(rng, 2, 13, 3, 4), inputs(rng, size, 3)
    mask = rng.random((2, 13)) < 0.6
    v[~mask] = np.nan
    found = np.asarray(convolve_steps(v, kernel, mask))
    assert not np.any(found[~mask])
    for i in range(2):
        real = v[i, mask[i]]
        expected = [
            [np.convolve(real[:, h, e], kernel[::-1, h], "full") for e in range(4)]
            for h in range(3)
        ]
        reach = size // 2
        expected = np.transpose(expected, (2, 0, 1))[reach : reach + len(real)]
        assert_close(found[i, mask[i]], expected, EXACT)


@pytest.mark.parametrize("masked", [False, True])
def test_the_convolution_adds_the_values_around_each_step(masked, rng):
    arguments = {"num_landmarks": 4, "conv_kernel_size": 5}
    layer, x = build(**arguments), inputs(rng, 2, 13, WIDTH)
    mask = mask_of((13, 6), 13, "left") if masked else None
    how = How(query_mask=mask, key_mask=mask)
    expected = projected("NystromAttention", layer_weights(layer), x, x, how=how, **arguments)
    found = layer(x, x, query_mask=mask, value_mask=mask)
    assert_close(found, expected)
    layer.conv_kernel.assign(np.zeros((5, SHARED)))
    without = layer(x, x, query_mask=mask, value_mask=mask)
    assert np.abs(np.asarray(found - without)).max() > 0.05


@pytest.mark.parametrize(("t", "s"), [(13, 64), (64, 13), (1, 257), (257, 1), (257, 64)])
def test_cross_attention_has_landmarks_of_both_sides(t, s, rng):
    layer, x, y = build(num_landmarks=4), inputs(rng, 2, t, WIDTH), inputs(rng, 2, s, WIDTH)
    weights = layer_weights(layer)
    expected = projected("NystromAttention", weights, x, y, num_landmarks=4)
    assert_close(layer(x, y), expected)


@pytest.mark.parametrize(
    ("arguments", "call", "message"),
    [
        ({}, {"use_causal_mask": True}, "cannot be causal.*means over the whole sequence"),
        ({}, {"segment_ids": np.zeros((1, 3), "int32")}, "cannot pack.*would mix the segments"),
        (
            {"conv_kernel_size": 3},
            {"key": np.ones((1, 3, WIDTH), "float32")},
            "cannot attend from .*Build it without `conv_kernel_size`",
        ),
    ],
)
def test_what_has_no_meaning_is_refused(arguments, call, message, rng):
    x = inputs(rng, 1, 3, WIDTH)
    with pytest.raises(ValueError, match=message):
        build(num_landmarks=2, **arguments)(x, x, **call)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_landmarks": 0},
        {"pinv_iterations": 0},
        {"conv_kernel_size": 0},
        {"conv_kernel_size": 4},
    ],
)
def test_a_bad_argument_is_refused(arguments):
    name, value = next(iter(arguments.items()))
    with pytest.raises(ValueError, match=f"`{name}` must be .*Received: {name}={value}"):
        build(**arguments)


def test_xla_gives_the_same(rng):
    layer, x = build(num_landmarks=4, conv_kernel_size=3), inputs(rng, 2, 13, WIDTH)
    mask = mask_of((7, 13), 13, "left")
    run = compiled(lambda x: pure(layer, x, x, query_mask=mask, value_mask=mask))
    assert_close(run(x), layer(x, x, query_mask=mask, value_mask=mask), 1e-5)


@pytest.mark.slow
def test_trains_compiled_with_any_length(rng):
    x = keras.Input((None, WIDTH))
    layer = build(num_landmarks=3, pinv_iterations=2, conv_kernel_size=3, dropout=0.1)
    model = keras.Model(x, keras.layers.Dense(1)(layer(x, x)))
    model.compile(keras.optimizers.Adam(0.03), "mse", jit_compile=True)
    losses = []
    for length in (13, 7):
        data = inputs(rng, 8, length, WIDTH)
        losses += model.fit(data, data[..., :1], epochs=8, verbose=0).history["loss"]
    assert losses[7] < 0.8 * losses[0]
    assert np.all(np.isfinite(losses))
