"""Attention in segments: what each step sees, what it costs, and how summaries join segments."""

import keras
import numpy as np
import pytest
from references import How, projected
from support import BACKEND, assert_close, compiled_on_jax, gradients, layer_weights, pure
from variants import inputs

from keras_cosattn import (
    ALiBi,
    Rotary,
    SegmentedAttention,
    SoftmaxAttention,
    Streaming,
    T5Bias,
    TransformerXL,
    scope,
)

EXACT = 1e-6  # the same sums, at most in another order
WIDTH = 6
both_ways = pytest.mark.parametrize("causal", [False, True])


def build(**arguments):
    layer = SegmentedAttention(4, 5, num_key_value_heads=2, value_dim=3, **arguments)
    layer.build((None, None, WIDTH), (None, None, WIDTH))
    rng = np.random.default_rng(1)
    for weight in layer.trainable_variables:
        weight.assign(rng.normal(size=weight.shape, scale=0.5))
    return layer


def softmax_like(layer, position=None):
    softmax = SoftmaxAttention(4, 5, num_key_value_heads=2, value_dim=3, position=position)
    softmax.build((None, None, WIDTH), (None, None, WIDTH))
    for name in ("query_dense", "key_dense", "value_dense", "output_dense"):
        getattr(softmax, name).set_weights(getattr(layer, name).get_weights())
    if position is not None:
        softmax.position.set_weights(layer.position.get_weights())
    return softmax


def block_mask(length, size, look_back, causal):
    block = np.arange(length) // size
    apart = block[:, None] - block
    return (np.abs(apart) <= look_back) & (np.tri(length, dtype=bool) | (not causal))


@both_ways
@pytest.mark.parametrize(("size", "look_back"), [(1, 0), (5, 0), (4, 1), (3, 2), (64, 1)])
@pytest.mark.parametrize("length", [1, 13, 64])
@pytest.mark.sample(7)
def test_it_is_softmax_under_a_block_mask(size, look_back, causal, length, rng):
    layer, x = build(segment_length=size, look_back=look_back), inputs(rng, 2, length, WIDTH)
    expected = softmax_like(layer)(x, x, attention_mask=block_mask(length, size, look_back, causal))
    assert_close(layer(x, x, use_causal_mask=causal), expected, EXACT)


@both_ways
@pytest.mark.parametrize("position", [Rotary, ALiBi, T5Bias, TransformerXL])
def test_positions_are_those_of_the_whole_sequence(position, causal, rng):
    layer, x = build(segment_length=4, look_back=1, position=position()), inputs(rng, 2, 13, WIDTH)
    expected = softmax_like(layer, position())(x, x, attention_mask=block_mask(13, 4, 1, causal))
    assert_close(layer(x, x, use_causal_mask=causal), expected, 1e-5)  # angles in float32


@both_ways
@pytest.mark.parametrize("summaries", ["mean", "attention"])
def test_a_summary_weighs_as_much_as_its_steps(summaries, causal, rng):
    """With equal steps in each segment nothing is lost: it is softmax over the whole sequence."""
    layer = build(segment_length=4, summaries=summaries)
    x = np.repeat(inputs(rng, 2, 5, WIDTH), 4, axis=1)[:, :18]
    assert_close(
        layer(x, x, use_causal_mask=causal),
        softmax_like(layer)(x, x, use_causal_mask=causal),
        EXACT,
    )


@both_ways
def test_one_segment_is_softmax(causal, rng):
    layer = build(segment_length=64, summaries="attention", look_back=1)
    x = inputs(rng, 2, 64, WIDTH)
    expected = softmax_like(layer)(x, x, use_causal_mask=causal)
    assert_close(layer(x, x, use_causal_mask=causal), expected, EXACT)


def influence(layer, x, causal):
    """`(t, s)`: the largest derivative of output t after input s."""
    return np.stack(
        [
            np.abs(
                gradients(
                    lambda x, t=t: keras.ops.sum(layer(x, x, use_causal_mask=causal)[:, t] ** 2), x
                )[0]
            ).max(axis=(0, 2))
            for t in range(x.shape[1])
        ]
    )


@both_ways
@pytest.mark.parametrize("look_back", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_summaries_carry_every_step_to_every_segment(look_back, causal, rng):
    layer = build(segment_length=3, look_back=look_back, summaries="attention")
    found = influence(layer, inputs(rng, 1, 11, WIDTH), causal)
    expected = np.tri(11, dtype=bool) if causal else np.ones((11, 11), bool)
    # In causal mode a step of an earlier segment always lies in a finished one.
    np.testing.assert_array_equal(found > 0, expected)
    assert found[expected].min() > 1e-4 * found.max()


@both_ways
def test_without_summaries_segments_know_nothing_of_each_other(causal, rng):
    found = influence(build(segment_length=3), inputs(rng, 1, 11, WIDTH), causal)
    np.testing.assert_array_equal(found > 0, block_mask(11, 3, 0, causal))


@both_ways
@pytest.mark.parametrize("position", [None, Rotary, T5Bias])
def test_a_summary_stands_at_its_middle_step(position, causal, rng):
    """Packed, padded and alone are the same with positions and summaries together."""
    layer = build(
        segment_length=4,
        look_back=1,
        summaries="attention",
        position=None if position is None else position(),
    )
    x, lengths = inputs(rng, 1, 41, WIDTH), [1, 17, 5, 18]
    mask = np.arange(41)[None] % 7 != 3
    ids = np.repeat([7, 2, 9, 2], lengths)[None]
    packed = np.asarray(
        layer(x, x, segment_ids=ids, query_mask=mask, value_mask=mask, use_causal_mask=causal)
    )
    for end, length in zip(np.cumsum(lengths), lengths, strict=True):
        real = np.arange(41)[end - length : end][mask[0, end - length : end]]
        alone = x[:, real]
        if len(real):
            expected = layer(alone, alone, use_causal_mask=causal)
            assert_close(packed[:, real], expected, 1e-5)


@both_ways
def test_there_is_room_for_the_summaries_of_any_packing(causal, rng):
    layer, x = build(segment_length=4, summaries="mean"), inputs(rng, 1, 41, WIDTH)
    parts = np.split(x, range(5, 41, 5), axis=1)  # of two segments each, one of a single step
    ids = np.repeat(np.arange(9), [part.shape[1] for part in parts])[None]
    packed = layer(x, x, segment_ids=ids, use_causal_mask=causal)
    alone = [layer(part, part, use_causal_mask=causal) for part in parts]
    assert_close(packed, np.concatenate(alone, axis=1), EXACT)


def test_two_runs_of_one_id_stay_two_when_what_parts_them_is_masked(rng):
    layer, x = build(segment_length=8), inputs(rng, 1, 9, WIDTH)
    ids, mask = np.repeat([[1, 5, 1]], 3, axis=1), np.repeat([[True, False, True]], 3, axis=1)
    found = layer(x, x, segment_ids=ids, query_mask=mask, value_mask=mask)
    assert_close(np.asarray(found)[:, :3], layer(x[:, :3], x[:, :3]), EXACT)
    assert_close(np.asarray(found)[:, 6:], layer(x[:, 6:], x[:, 6:]), EXACT)


def stream_in_pieces(stream, x, pieces):
    state, outputs, sizes = stream.initial_state(len(x)), [], set()
    for piece in np.split(x, np.cumsum(pieces)[:-1], axis=1):
        y, state = stream(piece, state)
        outputs.append(y)
        sizes.add(sum(np.asarray(s).nbytes for s in state.values()))
    return np.concatenate(outputs, axis=1), sizes


def model_of(layer):
    x = keras.Input((None, WIDTH))
    return keras.Model(x, layer(x, x, use_causal_mask=True))


def test_a_stream_without_summaries_has_a_bounded_window_and_no_end(rng):
    model = model_of(build(segment_length=4, look_back=2, position=Rotary()))
    stream, x = Streaming(model), inputs(rng, 2, 61, WIDTH)
    assert stream.max_steps is None
    # The last 12 steps, key and value of 2 heads, and the position.
    assert stream.state_bytes == 4 * (12 * 2 * (5 + 3) + 1)
    for pieces in ([1] * 61, [30, 1, 17, 13]):
        found, sizes = stream_in_pieces(stream, x, pieces)
        assert_close(found, model(x), 1e-5)
        assert sizes == {2 * stream.state_bytes}


@pytest.mark.parametrize("look_back", [0, 1])
def test_a_stream_with_summaries_holds_max_length_steps(look_back, rng):
    layer = build(
        segment_length=4, look_back=look_back, summaries="attention", max_length=30,
        position=T5Bias(),
    )  # fmt: skip
    model, x = model_of(layer), inputs(rng, 2, 33, WIDTH)
    stream = Streaming(model)
    assert stream.max_steps == 30
    for pieces in ([3, 1, 1, 1, 16, 8], [30]):
        found, _ = stream_in_pieces(stream, x[:, :30], pieces)
        assert_close(found, model(x[:, :30]), 1e-5)
    with scope.opened(scope.Stream()):
        beyond = np.asarray(model(x))
    assert_close(beyond[:, :30], model(x[:, :30]), 1e-5)
    assert np.all(np.isfinite(beyond))


def shapes_made(layer, length, causal, **masks):
    """The shapes of all that is computed in a call and its gradient."""
    x = np.zeros((1, length, WIDTH), "float32")

    def loss(x):
        return keras.ops.sum(pure(layer, x, x, use_causal_mask=causal, **masks) ** 2)

    if BACKEND == "jax":
        import jax

        return [
            var.aval.shape
            for eqn in _equations(jax.make_jaxpr(jax.grad(loss))(x).jaxpr)
            for var in eqn.outvars
        ]
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec(x.shape)])
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = loss(x)
        return tape.gradient(value, x)

    operations = run.get_concrete_function().graph.get_operations()
    return [y.shape.as_list() for op in operations for y in op.outputs if y.shape.rank is not None]


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in eqn.params.values():
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


def largest(*args, **masks):
    return max(int(np.prod([n or 1 for n in shape])) for shape in shapes_made(*args, **masks))


@both_ways
@pytest.mark.parametrize("packed", [False, True])
def test_its_largest_tensor_grows_with_the_length_only(packed, causal):
    layer = build(segment_length=16, look_back=1)
    sizes = []
    for n in (1024, 2048):
        ids = (np.arange(n)[None] // 100).astype("int32") if packed else None
        sizes.append(largest(layer, n, causal, segment_ids=ids))
    blocks = 5 if packed else 3
    # Scores of 4 heads in the blocks of 16 that a step's block can see; keys take no more.
    assert sizes[0] <= 1024 * 4 * 16 * blocks
    assert sizes[1] == 2 * sizes[0]
    assert largest(softmax_like(layer), 1024, causal) == 4 * 1024 * 1024


@both_ways
def test_with_summaries_it_grows_as_length_times_segments(causal):
    # Four heads; a summary for each segment of 32 = sqrt(1024), and what a step sees itself.
    layer = build(segment_length=32, summaries="attention")
    assert largest(layer, 1024, causal) <= 4 * 1024 * (32 + 32)


@both_ways
@pytest.mark.parametrize("summaries", [None, "mean"])
def test_cross_attention_is_aligned_by_position(summaries, causal, rng):
    layer = build(segment_length=4, look_back=1, summaries=summaries)
    x, y = inputs(rng, 2, 19, WIDTH), inputs(rng, 2, 7, WIDTH)
    arguments = {"segment_length": 4, "look_back": 1, "summaries": summaries}
    for query, value in ((x, y), (y, x)):
        expected = projected(
            "SegmentedAttention", layer_weights(layer), query, value,
            how=How(causal=causal), **arguments,
        )  # fmt: skip
        found = compiled_on_jax(lambda q, v: pure(layer, q, v, use_causal_mask=causal))(
            query, value
        )
        assert_close(found, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"segment_length": 0}, "`segment_length` must be .* segment_length=0"),
        ({"look_back": -1}, "`look_back` must be .* look_back=-1"),
        ({"look_back": 1.5}, "look_back=1.5"),
        ({"summaries": "max"}, r"`summaries` must be one of \(None, 'mean', .*summaries='max'"),
        ({"max_length": 5}, "`max_length` is for `summaries`.*max_length=5"),
        ({"summaries": "mean", "max_length": 0}, "`max_length` must be .* max_length=0"),
    ],
)
def test_a_bad_argument_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SegmentedAttention(2, 3, **arguments)


def test_a_stream_with_summaries_needs_their_number():
    layer = build(summaries="mean")
    assert "`max_length`" in layer.cannot["stream"]
    assert not build().cannot
