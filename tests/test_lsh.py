"""LSH attention: what it sees, that hashing finds near keys, and what it costs."""

import keras
import numpy as np
import pytest
from references import How, lsh_weights, normalise
from support import BACKEND, assert_close, compiled, gradients, layer_weights, pure, streamed

from keras_cosattn import LSHAttention, Rotary, SoftmaxAttention, Streaming
from keras_cosattn.ops import buckets as bucket_ops

EXACT = 1e-6  # the same sums, at most in another order
WIDTH = 11


def build(**arguments):
    layer = LSHAttention(2, 5, value_dim=7, **{"seed": 1, **arguments})
    layer.build((None, None, WIDTH), (None, None, WIDTH))
    return layer


def steps(rng, t, b=2):
    return rng.normal(size=(b, t, WIDTH)).astype("float32")


def projections(layer, x):
    """q and v `(b, t, h, .)`, in float64."""
    weights = layer_weights(layer)
    return [
        np.einsum("btm,mhd->bthd", np.float64(x), weights[name][0]) + weights[name][1]
        for name in ("query", "value")
    ]


def dense_attention(layer, x, causal):
    """Softmax over all keys `q / ||q||`, a step's own only if there is no other."""
    q, v = projections(layer, x)
    t = x.shape[1]
    others = ~np.eye(t, dtype=bool) & (np.tri(t, dtype=bool) | (not causal))
    sees = others | (np.eye(t, dtype=bool) & ~np.any(others, axis=-1, keepdims=True))
    k = q / np.linalg.norm(q, axis=-1, keepdims=True)
    weights = normalise(np.exp(np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(5)) * sees)
    kernel, bias = layer_weights(layer)["attention_output"]
    return np.einsum("bhts,bshe,hem->btm", weights, v, kernel) + bias


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("t", [1, 13, 64, 257])
def test_one_bucket_is_dense_attention_with_the_own_key_last(t, causal, rng):
    x = steps(rng, t)
    layer = build(num_buckets=1, bucket_size=300, num_hashes=2)
    assert_close(layer(x, x, use_causal_mask=causal), dense_attention(layer, x, causal))


def test_one_chunk_that_covers_everything_is_dense_attention_in_each_bucket(rng):
    # Two buckets are the two sides of one random plane.
    layer, x = build(num_buckets=2, bucket_size=300, num_hashes=1), steps(rng, 64, 1)
    _, weights = layer(x, x, return_attention_scores=True)
    q, _ = projections(layer, x)
    side = np.einsum("bthd,hdf->bhtf", q, layer_weights(layer)["more"]["rotations"])[..., 0] > 0
    same = (side[..., :, None] == side[..., None, :]) & ~np.eye(64, dtype=bool)
    assert np.array_equal(np.asarray(weights) > 0, same)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("t", [1, 13, 64, 257])
def test_any_length_with_padding_and_packing_equals_the_reference(t, causal, rng):
    layer, x = build(num_hashes=3, num_buckets=4, bucket_size=3), steps(rng, t)
    mask = rng.random((2, t)) < 0.7
    ids = np.cumsum(rng.random((2, t)) < 0.1, axis=1)
    call = {"query_mask": mask, "value_mask": mask, "segment_ids": ids, "use_causal_mask": causal}
    _, found = layer(x, x, return_attention_scores=True, **call)
    q, _ = projections(layer, x)
    how = How(mask, mask, ids, causal=causal)
    options = {"num_hashes": 3, "num_buckets": 4, "bucket_size": 3}
    expected = normalise(lsh_weights(q, q, how, layer_weights(layer)["more"], **options))
    assert_close(found, expected)


def test_more_rounds_find_more_of_the_nearest_keys(rng):
    """The share of the softmax over all keys that the keys seen have, in noisy clusters."""
    t, d, found = 256, 16, {}
    centres = rng.normal(size=(16, d))
    q = centres[rng.integers(0, 16, t)] + 0.35 * rng.normal(size=(t, d))
    k = q / np.linalg.norm(q, axis=-1, keepdims=True)
    order = np.argsort(np.where(np.eye(t), -np.inf, q @ k.T), axis=1)
    nearest = order[:, -8:]
    x = q[None].astype("float32")
    for rounds in (1, 2, 4, 8):
        shares = []
        for seed in range(3):
            layer = LSHAttention(
                1, d, num_hashes=rounds, num_buckets=16, bucket_size=32, seed=seed, use_bias=False
            )
            layer.build(x.shape, x.shape)
            layer.query_dense.kernel.assign(np.eye(d)[:, None])
            weights = layer(x, x, return_attention_scores=True)[1]
            seen = np.asarray(weights)[0, 0] > 0
            shares.append(np.mean(np.take_along_axis(seen, nearest, axis=1)))
        found[rounds] = np.mean(shares)
    recall = list(found.values())
    assert np.all(np.diff(recall) > 0.01), found
    assert recall[-1] > 0.9, found
    assert recall[-1] > recall[0] + 0.2, found


@pytest.mark.parametrize("jit", [False, True])
def test_a_later_step_changes_nothing_earlier_even_through_buckets(jit, rng):
    layer, x = build(num_buckets=4, bucket_size=2), steps(rng, 29)

    def run(x):
        return pure(layer, x, x, use_causal_mask=True)

    run = compiled(run) if jit else run
    before = np.asarray(run(x))
    for _ in range(3):
        changed = x.copy()
        changed[:, 17:] = 9 * steps(rng, 12)
        assert_close(np.asarray(run(changed))[:, :17], before[:, :17], EXACT)


def test_a_later_step_gets_no_gradient_from_an_earlier_one(rng):
    layer, x = build(num_buckets=2, bucket_size=4), steps(rng, 13, 1)
    (slope,) = gradients(lambda x: keras.ops.sum(layer(x, x, use_causal_mask=True)[:, 6] ** 2), x)
    assert not np.any(slope[:, 7:])
    assert np.any(slope[:, :7])


@pytest.mark.parametrize("position", [None, Rotary])
def test_a_stream_computes_what_the_whole_does(position, rng):
    layer = build(
        num_hashes=3, num_buckets=4, bucket_size=3, max_length=64, position=position and position()
    )
    inputs = keras.Input((None, WIDTH))
    model = keras.Model(inputs, layer(inputs, inputs, use_causal_mask=True))
    x = steps(rng, 40)
    assert_close(streamed(model, x, [17, 18, 19, 31]), model(x), EXACT)


def test_a_masked_step_in_a_stream_is_in_no_bucket(rng):
    layer = build(num_hashes=2, num_buckets=2, bucket_size=2, max_length=64)
    inputs = keras.Input((None, WIDTH))
    stream = Streaming(keras.Model(inputs, layer(inputs, inputs, use_causal_mask=True)))
    x, mask = steps(rng, 30, 1), rng.random((1, 30)) < 0.6
    junk = np.where(mask[..., None], x, np.float32(np.nan))
    found, _ = stream(junk, stream.initial_state(1), mask)
    expected, _ = stream(x[:, mask[0]], stream.initial_state(1))
    assert_close(np.asarray(found)[:, mask[0]], expected, EXACT)


def test_the_same_seed_has_the_same_hashes_also_after_saving(rng, tmp_path):
    x = steps(rng, 64)

    def model(seed):
        inputs = keras.Input((None, WIDTH))
        layer = LSHAttention(2, 5, num_hashes=2, num_buckets=8, bucket_size=4, seed=seed)
        return keras.Model(inputs, layer(inputs, inputs))

    first, same, other = model(3), model(3), model(4)
    rotations = [m.layers[-1].rotations.numpy() for m in (first, same, other)]
    assert np.array_equal(rotations[0], rotations[1])
    assert not np.any(rotations[0] == rotations[2])
    first.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert np.array_equal(loaded.layers[-1].rotations.numpy(), rotations[0])
    assert_close(loaded(x), first(x), 0)
    assert not first.layers[-1].rotations.trainable


def test_a_pair_found_in_two_rounds_counts_once(rng):
    """A round that comes back shows nothing new, whatever the other rounds show."""
    q, v = rng.normal(size=(2, 2, 29, 2, 5)).astype("float32")
    rounds = rng.integers(0, 3, (2, 29, 2, 2)).astype("int32")
    once, again = (
        bucket_ops.bucket_attention(q, q, v, rounds[..., order], 3, size=4, causal=True)
        for order in ([0, 1], [0, 0, 1, 0])
    )
    assert_close(again, once, EXACT)


@pytest.mark.skipif(BACKEND != "jax", reason="read off JAX's program")
def test_the_largest_tensor_grows_with_the_length_and_not_its_square():
    import jax

    def largest(t):
        layer = LSHAttention(2, 8, num_hashes=2, num_buckets=8, bucket_size=16, seed=1)
        layer.build((1, t, 8), (1, t, 8))
        program = jax.make_jaxpr(jax.grad(lambda x: pure(layer, x, x, use_causal_mask=True).sum()))(
            np.zeros((1, t, 8), "float32")
        )
        return max(sizes(program.jaxpr))

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (int(np.prod(v.aval.shape)) for v in equation.outvars)
            for inner in jax.core.jaxprs_in_params(equation.params):
                yield from sizes(inner)

    assert largest(2048) == 4 * largest(512)
    assert largest(2048) < 2048**2 / 4


@pytest.mark.skipif(BACKEND != "tensorflow", reason="read off TensorFlow's graph")
def test_no_tensor_of_the_graph_is_quadratic():
    import tensorflow as tf

    def largest(t):
        layer = LSHAttention(2, 8, num_hashes=2, num_buckets=8, bucket_size=16, seed=1)
        layer.build((1, t, 8), (1, t, 8))

        @tf.function
        def run(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.reduce_sum(layer(x, x, use_causal_mask=True))
            return tape.gradient(y, x)

        graph = run.get_concrete_function(tf.TensorSpec((1, t, 8))).graph
        outputs = [out for op in graph.get_operations() for out in op.outputs]
        return max(out.shape.num_elements() or 0 for out in outputs)

    assert largest(2048) <= 4.1 * largest(512)
    assert largest(2048) < 2048**2 / 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_buckets": 5}, "`num_buckets` must be even.*num_buckets=5"),
        ({"num_hashes": 0}, "`num_hashes` must be .* num_hashes=0"),
        ({"bucket_size": 2.5}, "`bucket_size` must be .* bucket_size=2.5"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LSHAttention(2, 5, **arguments)


def test_it_costs_no_key_projection():
    assert "key" not in layer_weights(build())
    softmax = SoftmaxAttention(2, 5, value_dim=7)
    softmax.build((None, None, WIDTH), (None, None, WIDTH))
    rotations = 2 * 5 * 4 * 32 // 2
    key = WIDTH * 2 * 5 + 2 * 5
    assert build().count_params() == softmax.count_params() - key + rotations


def test_the_order_of_many_buckets_and_steps_does_not_overflow(rng):
    t, count = 140_000, 65_536
    numbers = rng.integers(0, count, (1, t, 1, 1)).astype("int32")
    order, _ = bucket_ops._sort(keras.ops.convert_to_tensor(numbers), count, 64, None, None)
    expected = np.argsort(numbers[0, :, 0, 0], kind="stable")
    np.testing.assert_array_equal(np.asarray(order)[0], expected)
