"""Attention in blocks equals one dense softmax under a mask, whatever the blocks are."""

import keras
import numpy as np
import pytest
import references
from references import How
from support import assert_close, compiled, compiled_on_jax, value_and_gradients

from keras_cosattn.ops import block_attention, timesteps, windows

B, HEADS, SHARED, D, E = 2, 4, 2, 5, 3


def in_windows(t, s, size, look_back, look_ahead, how):
    """Who sees whom, `(b or 1, 1, t, s)`, by comparing positions."""
    query, key = references._both_positions(t, s, how)
    start = query // size * size
    sees = (key >= start - look_back) & (key < start + size + look_ahead)
    return references.allowed(t, s, how) & sees


def dense(q, k, v, sees, bias=0.0):
    logits = references.inner(q, k) / np.sqrt(D) + bias
    logits = np.where(sees, logits, -np.inf)
    largest = np.max(logits, axis=-1, keepdims=True)
    weights = np.exp(logits - np.where(np.isfinite(largest), largest, 0))
    return references.mix(references.normalise(weights), np.where(np.isnan(v), 0, v))


def arrays(rng, t, s=None):
    s = t if s is None else s
    shapes = (B, t, HEADS, D), (B, s, SHARED, D), (B, s, SHARED, E)
    return [rng.normal(size=shape).astype("float32") for shape in shapes]


WINDOWS = [(1, 0, 0), (1, 2, 1), (4, 0, 0), (4, 3, 2), (4, 4, 8), (5, 7, 6), (64, 10, 1)]
every_window = pytest.mark.parametrize("window", WINDOWS, ids=str)
both_ways = pytest.mark.parametrize("causal", [False, True])


at_once_and_in_a_loop = pytest.mark.parametrize("block_size", [None, 6])


def options(window, causal):
    size, look_back, look_ahead = window
    return {"size": size, "look_back": look_back, "look_ahead": look_ahead, "causal": causal}


@every_window
@both_ways
@at_once_and_in_a_loop
@pytest.mark.parametrize(("t", "s"), [(1, 1), (3, 3), (13, 13), (3, 17), (17, 3)])
@pytest.mark.sample(3)
def test_a_window_equals_a_dense_mask(window, causal, block_size, t, s, rng):
    q, k, v = arrays(rng, t, s)
    out, state = windows.window_attention(q, k, v, block_size=block_size, **options(window, causal))
    assert state is None
    assert_close(out, dense(q, k, v, in_windows(t, s, *window, How(causal=causal))))


@every_window
@both_ways
def test_masked_keys_are_not_there(window, causal, rng):
    q, k, v = arrays(rng, 13)
    mask = np.arange(13) < np.array([[6], [13]])
    how = How(key_mask=mask, causal=causal)
    expected = dense(q, k, v, in_windows(13, 13, *window, how))
    k[~mask], v[~mask] = np.nan, np.nan
    out, _ = windows.window_attention(q, k, v, mask=mask, **options(window, causal))
    assert_close(out, expected)


@every_window
@both_ways
@pytest.mark.parametrize("t", [3, 31])
def test_positions_begin_anew_in_each_segment(window, causal, t, rng):
    q, k, v = arrays(rng, t)
    ids = np.cumsum(rng.random((B, t)) < 0.2, axis=1)
    how = How(segment_ids=ids, causal=causal)
    numbers = timesteps.segment_numbers(keras.ops.convert_to_tensor(ids.astype("int32")))
    out, _ = windows.window_attention(q, k, v, segments=numbers, **options(window, causal))
    assert_close(out, dense(q, k, v, in_windows(t, t, *window, how)))


@every_window
@pytest.mark.parametrize("pieces", [[23], [1] * 23, [4, 1, 12, 1, 5], [22, 1]], ids=str)
@pytest.mark.sample(3)
def test_pieces_equal_the_whole(window, pieces, rng):
    q, k, v = arrays(rng, 23)
    size, look_back, _ = window
    length = windows.window_length(size, look_back)
    state = {
        "key": np.zeros((B, length, SHARED, D), "float32"),
        "value": np.zeros((B, length, SHARED, E), "float32"),
        "position": np.zeros(B, "int32"),
    }
    shapes = {name: x.shape for name, x in state.items()}
    outputs = []
    cuts = np.cumsum(pieces)[:-1]
    for parts in zip(*(np.split(x, cuts, axis=1) for x in (q, k, v)), strict=True):
        out, state = windows.window_attention(*parts, state=state, **options(window, True))
        assert {name: tuple(x.shape) for name, x in state.items()} == shapes
        outputs.append(out)
    expected = dense(q, k, v, in_windows(23, 23, *window, How(causal=True)))
    assert_close(np.concatenate(outputs, axis=1), expected)


@every_window
def test_pieces_with_fewer_real_steps_equal_the_whole(window, rng):
    q, k, v = arrays(rng, 12)
    size, look_back, _ = window
    length = windows.window_length(size, look_back)
    state = {
        "key": np.zeros((B, length, SHARED, D), "float32"),
        "value": np.zeros((B, length, SHARED, E), "float32"),
        "position": np.zeros(B, "int32"),
    }
    expected = dense(q, k, v, in_windows(12, 12, *window, How(causal=True)))
    taken = np.zeros(B, int)
    for counts in [(4, 2), (0, 3), (3, 1), (5, 5)]:
        mask = np.arange(5) < np.array(counts)[:, None]
        steps = np.minimum(taken[:, None] + np.arange(5), 11)
        parts = [np.take_along_axis(x, steps[:, :, None, None], axis=1) for x in (q, k, v)]
        parts[1][~mask] = np.nan
        out, state = windows.window_attention(
            *parts, state=state, mask=mask, **options(window, True)
        )
        for i, count in enumerate(counts):
            found = np.asarray(out)[i, :count]
            assert_close(found, expected[i, taken[i] : taken[i] + count], 1e-5)
        taken += counts
    np.testing.assert_array_equal(state["position"], [12, 11])


@both_ways
@pytest.mark.parametrize("packed", [False, True])
def test_positions_are_encoded(causal, packed, rng):
    q, k, v = arrays(rng, 13)
    ids = np.repeat([[0, 1, 2], [4, 5, 6]], [3, 1, 9], axis=1).astype("int32")
    how = How(causal=causal, segment_ids=ids if packed else None)

    def encode(q, k, q_positions, k_positions):
        q_positions = keras.ops.cast(q_positions, "float32")[:, None, :, None]
        k_positions = keras.ops.cast(k_positions, "float32")[:, None, None, :]
        return q * 2, k, 0.1 * (q_positions - k_positions) ** 2 + 0.3 * k_positions

    out, _ = windows.window_attention(
        q, k, v, segments=timesteps.segment_numbers(ids) if packed else None,
        encode_positions=encode, **options((4, 5, 2), causal),
    )  # fmt: skip
    query, key = references._both_positions(13, 13, how)
    bias = 0.1 * (query - key) ** 2 + 0.3 * key
    assert_close(out, dense(q * 2, k, v, in_windows(13, 13, 4, 5, 2, how), bias))


@both_ways
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("t", [3, 13])
@pytest.mark.sample(5)
def test_gradients_are_those_of_the_dense_form(causal, packed, t, rng):
    q, k, v = arrays(rng, t)
    ids = (np.arange(t) // 3)[None].repeat(B, 0).astype("int32")
    how = How(causal=causal, segment_ids=ids if packed else None)
    sees = in_windows(t, t, 4, 3, 2, how)

    def run(q, k, v):
        segments = timesteps.segment_numbers(keras.ops.convert_to_tensor(ids)) if packed else None
        return windows.window_attention(q, k, v, segments=segments, **options((4, 3, 2), causal))[0]

    g = rng.normal(size=(B, t, HEADS, E)).astype("float32")
    _, found = value_and_gradients(compiled(run), g, q, k, v)
    exact = [np.float64(x) for x in (q, k, v)]
    for i, x in enumerate(exact):
        along = rng.normal(size=x.shape)
        ends = []
        for step in (1e-6, -1e-6):
            moved = list(exact)
            moved[i] = x + step * along
            ends.append(np.sum(dense(*moved, sees) * g))
        assert_close(np.sum(found[i] * along), (ends[0] - ends[1]) / 2e-6)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="JAX has no dynamic shapes")
@both_ways
@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@at_once_and_in_a_loop
@pytest.mark.sample(10)
def test_any_length_runs_in_one_graph(causal, jit, packed, block_size, rng):
    import tensorflow as tf

    spec = [tf.TensorSpec((None, None, *x.shape[2:]), "float32") for x in arrays(rng, 2)] + [
        tf.TensorSpec((None, None), "int32")
    ]

    @tf.function(input_signature=spec, jit_compile=jit, autograph=False)
    def run(q, k, v, ids):
        segments = timesteps.segment_numbers(ids) if packed else None
        return windows.window_attention(
            q, k, v, segments=segments, block_size=block_size, **options((4, 3, 2), causal)
        )[0]

    for t in (1, 3, 4, 13):
        q, k, v = arrays(rng, t)
        ids = (np.arange(t) // 3)[None].repeat(B, 0).astype("int32")
        how = How(causal=causal, segment_ids=ids if packed else None)
        assert_close(run(q, k, v, ids), dense(q, k, v, in_windows(t, t, 4, 3, 2, how)))


@pytest.mark.parametrize("t", [3, 13])
@at_once_and_in_a_loop
def test_blocks_take_any_rule(t, block_size, rng):
    """Sorted buckets: a query sees the keys of its own bucket, in its block and the two beside."""
    q, k, v = arrays(rng, t)
    bucket = np.sort(rng.integers(0, 6, (B, t)), axis=1).astype("int32")

    def padded(x):
        return np.pad(x, [(0, 0), (4, 0)] + [(0, 0)] * (x.ndim - 2), constant_values=-1)

    out = compiled_on_jax(
        lambda q, k, v: block_attention.attend_in_blocks(
            q, k, v, {"bucket": bucket}, {"bucket": padded(bucket)},
            lambda q, k: keras.ops.equal(q["bucket"], k["bucket"]),
            size=4, before=1, after=1, block_size=block_size,
        )
    )(q, padded(k), padded(v))  # fmt: skip
    block = np.arange(t) // 4
    near = np.abs(block[:, None] - block) <= 1
    sees = (bucket[:, :, None] == bucket[:, None]) & near
    assert_close(out, dense(q, k, v, sees[:, None]))
