"""The references themselves: their gradients by differences, and sums done by hand."""

import numpy as np
import pytest
from references import (
    How,
    attention,
    attention_gradients,
    causal_conv1d,
    causal_depthwise_conv1d,
    cosformer_weights,
    cosine_table,
    position_embedding,
    positions,
    projected,
    running_mean,
)
from support import assert_close

B, T, S, H, SHARED, D, E = 2, 7, 5, 4, 2, 3, 6

VARIANTS = [
    ("SoftmaxAttention", {}),
    ("LinearAttention", {"feature_map": "elu+1"}),
    ("LinearAttention", {"feature_map": "relu"}),
    ("LinearAttention", {"feature_map": "squared_relu"}),
    ("LinearAttention", {"feature_map": "identity"}),
    ("CosFormerAttention", {}),
    ("CosFormerAttention", {"max_length": 9}),
    ("CosFormerAttention", {"horizon": 4}),
]


def by_differences(function, x, step=1e-6):
    """The gradient of a scalar function, entry by entry."""
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        change = np.zeros_like(x)
        change[i] = step
        gradient[i] = (function(x + change) - function(x - change)) / (2 * step)
    return gradient


@pytest.mark.parametrize("shape", ["both_ways", "causal", "cross", "packed"])
@pytest.mark.parametrize(("name", "arguments"), VARIANTS)
def test_gradients_equal_central_differences(name, arguments, shape, rng):
    s = S if shape == "cross" else T
    # Apart from zero, where relu has no derivative.
    q, k = (
        rng.uniform(0.1, 1, x) * rng.choice([-1, 1], x) for x in [(B, T, H, D), (B, s, SHARED, D)]
    )
    v, g = rng.normal(size=(B, s, SHARED, E)), rng.normal(size=(B, T, H, E))
    how = {
        "both_ways": How(key_mask=rng.random((B, s)) < 0.7),
        "causal": How(causal=True),
        "cross": How(query_mask=rng.random((B, T)) < 0.7, causal=True),
        "packed": How(segment_ids=np.array([[1, 1, 1, 0, 0, 1, 1], [2, 2, 2, 2, 2, 2, 0]])),
    }[shape]
    actual = attention_gradients(name, q, k, v, g, how, **arguments)

    def loss(q=q, k=k, v=v):
        return np.sum(attention(name, q, k, v, how, **arguments) * g)

    for letter, x, gradient in zip("qkv", (q, k, v), actual, strict=True):
        # Central differences of step 1e-6 are right to about 1e-9.
        assert_close(gradient, by_differences(lambda x, at=letter: loss(**{at: x}), x), 1e-6)


def test_softmax_of_equal_keys_is_the_mean(rng):
    v = rng.normal(size=(1, S, 1, E))
    out = attention("SoftmaxAttention", rng.normal(size=(1, T, 1, D)), np.ones((1, S, 1, D)), v)
    assert_close(out, np.broadcast_to(v.mean(axis=1, keepdims=True), out.shape), 1e-12)


def test_causal_linear_attention_of_equal_keys_is_the_running_mean(rng):
    v = rng.normal(size=(1, T, 1, E))
    ones = np.ones((1, T, 1, D))
    out = attention("LinearAttention", ones, ones, v, How(causal=True))
    assert_close(out[:, :, 0], running_mean(v[:, :, 0]), 1e-12)


def test_cosformer_weights_fall_as_a_cosine():
    ones = np.ones((1, 4, 1, 1))
    weights = cosformer_weights(ones, ones, max_length=6)[0, 0]
    fall = np.cos(np.deg2rad([0, 15, 30, 45]))
    assert_close(weights[0], fall, 1e-12)
    assert_close(weights[:, 3], fall[::-1], 1e-12)


def test_horizon_sees_its_own_and_the_previous_half():
    seen = cosine_table(7, 7, How(causal=True), horizon=4)[0, 0] > 0
    first = [0, 0, 0, 0, 2, 2, 4]
    assert seen.tolist() == [[first[t] <= s <= t for s in range(7)] for t in range(7)]


def test_positions_count_the_real_steps_of_a_segment():
    ids = np.array([[5, 5, 5, 5, 0, 0, 0, 5]])
    mask = np.array([[False, True, False, True, True, False, True, True]])
    assert positions(8, mask, ids)[mask[0][None]].tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(("name", "arguments"), VARIANTS)
def test_padding_equals_truncation(name, arguments, rng):
    q, k, v = (rng.normal(size=(1, T, 2, D)) for _ in "qkv")
    mask = np.array([[False, True, True, False, True, True, False]])
    out = attention(name, q, k, v, How(mask, mask, causal=True), **arguments)
    cut = [x[:, mask[0]] for x in (q, k, v)]
    assert_close(out[:, mask[0]], attention(name, *cut, How(causal=True), **arguments), 1e-12)
    assert not np.any(out[:, ~mask[0]])


def test_grouped_heads_share_neighbouring_queries(rng):
    q, k, v = rng.normal(size=(1, 1, 4, D)), rng.normal(size=(1, 1, 2, D)), np.zeros((1, 1, 2, 1))
    v[0, 0, 1] = 1
    assert attention("SoftmaxAttention", q, k, v)[0, 0, :, 0].tolist() == [0, 0, 1, 1]


def test_projected_is_the_attention_between_its_projections(rng):
    x, eye = rng.normal(size=(B, T, D)), np.eye(D)[:, None]
    weights = dict.fromkeys(("query", "key", "value"), (eye, 0.0))
    weights["attention_output"] = (2 * np.eye(D)[None], np.ones(D))
    expected = attention("SoftmaxAttention", *[x[:, :, None]] * 3)[:, :, 0] * 2 + 1
    assert_close(projected("SoftmaxAttention", weights, x, x), expected, 1e-12)


def test_convolution_counts_its_taps_back_from_the_step():
    x = np.array([[[1.0], [10.0], [100.0], [1000.0]]])
    kernel = np.array([2.0, 3.0]).reshape(2, 1, 1)
    by_hand = [3, 30, 302, 3020]
    assert causal_conv1d(x, kernel, dilation_rate=2)[0, :, 0].tolist() == by_hand
    assert causal_depthwise_conv1d(x, kernel, 1.0, 2)[0, :, 0].tolist() == [n + 1 for n in by_hand]


def test_convolution_passes_over_masked_steps(rng):
    x, kernel = rng.normal(size=(1, 6, 2)), rng.normal(size=(3, 2, 5))
    mask = np.array([[True, False, True, True, False, True]])
    out = causal_conv1d(x, kernel, mask=mask)
    assert_close(out[:, mask[0]], causal_conv1d(x[:, mask[0]], kernel), 1e-12)


def test_running_mean_and_position_embedding_count_real_steps():
    x = np.array([[[8.0], [2.0], [9.0], [4.0]]])
    mask = np.array([[False, True, False, True]])
    assert running_mean(x, mask)[0, :, 0].tolist() == [0, 2, 2, 3]
    embedded = position_embedding(x, np.array([[0.5], [0.25]]), mask)[0, :, 0]
    assert embedded[[1, 3]].tolist() == [2.5, 4.25]
