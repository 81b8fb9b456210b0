"""A decoder goes on from a cache, and in a stream, with the outputs of the whole sequence."""

import keras
import numpy as np
import pytest
from support import BACKEND, assert_close, compiled
from variants import STREAMING, inputs, make, mask_of

from keras_cosattn import (
    CosFormerAttention,
    LinearAttention,
    LowRankAttention,
    NystromAttention,
    PerformerAttention,
    Rotary,
    SoftmaxAttention,
    TransformerDecoder,
    scope,
)

EXACT = 1e-5
STEPS, ENCODED = 7, 5
CROSS = {
    "linear": lambda: LinearAttention(2, 4),
    "norm": lambda: LinearAttention(2, 4, use_query_key_norm=True),
    "performer": lambda: PerformerAttention(2, 4, num_random_features=8, seed=3),
    "gated": lambda: LinearAttention(2, 4, use_gate=True),
}


def in_pieces(block, x, cache, cuts=(3, 4), **arguments):
    """The outputs for `x` in pieces, and the cache after them."""
    outputs, start = [], 0
    for piece in np.split(x, cuts, axis=1):
        y, cache = block(
            piece, self_attention_cache=cache, self_attention_cache_update_index=start, **arguments
        )
        outputs.append(y)
        start += piece.shape[1]
    return np.concatenate(outputs, axis=1), cache


@pytest.mark.parametrize("case", STREAMING)
def test_every_state_is_a_cache(case, rng):
    block, x = TransformerDecoder(9, attention=make(case)), inputs(rng, 2, STEPS, 11)
    whole = block(x)
    found, cache = in_pieces(block, x, block.initial_self_attention_cache(2))
    assert_close(found, whole, 1e-4)
    assert np.asarray(cache["steps"]).tolist() == [STEPS, STEPS]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"position": Rotary()},
        {"use_query_key_norm": True, "logit_soft_cap": 1.0},
        {"use_gate": True, "sliding_window": 3},
    ],
    ids=["plain", "rotary", "capped", "gated"],
)
def test_keys_and_values_are_a_cache(options, rng):
    attention = SoftmaxAttention(4, 3, num_key_value_heads=2, **options)
    block, x = TransformerDecoder(9, attention=attention), inputs(rng, 2, STEPS, 8)
    whole, empty = block(x), np.zeros((2, 2, 9, 2, 3), "float32")
    assert_close(block.initial_self_attention_cache(2, 9), empty, 0)
    once, full = block(x, self_attention_cache=empty, self_attention_cache_update_index=0)
    found, cache = in_pieces(block, x, empty)
    assert_close(once, whole, EXACT)
    assert_close(found, whole, EXACT)
    assert_close(cache, full, EXACT)
    again, same = block(
        x[:, -1:], self_attention_cache=full, self_attention_cache_update_index=STEPS - 1
    )
    assert_close(again, whole[:, -1:], EXACT)
    assert_close(same, full, EXACT)


@pytest.mark.parametrize(
    "options",
    [{}, {"position": Rotary()}, {"use_gate": True, "sliding_window": 3}],
    ids=["plain", "rotary", "gated"],
)
def test_keys_and_values_of_an_encoder_are_a_cache(options, rng):
    attention = SoftmaxAttention(2, 4, **options)
    block = TransformerDecoder(9, attention=attention)
    x, y = inputs(rng, 2, STEPS, 8), inputs(rng, 2, ENCODED, 7)
    mask = mask_of((ENCODED, 2), ENCODED)
    whole = block(x, y, encoder_padding_mask=mask)
    self_cache = block.initial_self_attention_cache(2, STEPS)
    cross_cache, index, outputs = block.initial_cross_attention_cache(2, ENCODED), 0, []
    for i in range(STEPS):
        output, self_cache, cross_cache = block(
            x[:, i : i + 1],
            y if i == 0 else np.zeros_like(y),
            encoder_padding_mask=mask,
            self_attention_cache=self_cache,
            self_attention_cache_update_index=i,
            cross_attention_cache=cross_cache,
            cross_attention_cache_update_index=index,
        )
        outputs.append(output)
        index = None
    assert_close(np.concatenate(outputs, axis=1), whole, EXACT)


@pytest.mark.parametrize("kind", CROSS)
def test_sums_of_an_encoder_are_a_cache(kind, rng):
    block = TransformerDecoder(9, attention=LinearAttention(2, 4), cross_attention=CROSS[kind]())
    x, y = inputs(rng, 2, STEPS, 8), inputs(rng, 2, ENCODED, 7)
    mask = mask_of((ENCODED, 2), ENCODED)
    whole = block(x, y, encoder_padding_mask=mask)
    caches = block.initial_self_attention_cache(2), block.initial_cross_attention_cache(2)
    size, index, outputs = sum(np.size(v) for v in caches[1].values()), 0, []
    for i in range(STEPS):
        output, *caches = block(
            x[:, i : i + 1],
            y if i == 0 else np.zeros_like(y),
            encoder_padding_mask=mask,
            self_attention_cache=caches[0],
            self_attention_cache_update_index=i,
            cross_attention_cache=caches[1],
            cross_attention_cache_update_index=index,
        )
        outputs.append(output)
        index = None
    assert_close(np.concatenate(outputs, axis=1), whole, EXACT)
    assert sum(np.size(v) for v in caches[1].values()) == size


def test_the_sums_of_an_encoder_are_dropped_in_training(rng):
    x, y = inputs(rng, 2, STEPS, 8), inputs(rng, 2, ENCODED, 7)
    cross = LinearAttention(2, 4, dropout=0.999)
    block = TransformerDecoder(9, attention=LinearAttention(2, 4), cross_attention=cross)
    block(x, y)

    def outputs(training):
        return block(
            x,
            y,
            self_attention_cache=block.initial_self_attention_cache(2),
            self_attention_cache_update_index=0,
            cross_attention_cache=block.initial_cross_attention_cache(2),
            cross_attention_cache_update_index=0,
            training=training,
        )[0]

    assert_close(outputs(False), block(x, y), EXACT)
    assert np.abs(np.asarray(outputs(True)) - outputs(False)).max() > 0.1


@pytest.mark.parametrize("bad", [0.0, np.nan])
def test_masked_steps_are_not_read_into_a_cache(bad, rng):
    x, mask = inputs(rng, 2, STEPS, 8), mask_of((STEPS, 4), STEPS, "left")
    x = np.where(mask[..., None], x, np.float32(bad))
    for attention, steps in ((LinearAttention(2, 4), None), (SoftmaxAttention(2, 4), STEPS)):
        block = TransformerDecoder(9, attention=attention)
        whole = block(x, decoder_padding_mask=mask)
        found, _ = block(
            x,
            decoder_padding_mask=mask,
            self_attention_cache=block.initial_self_attention_cache(2, steps),
            self_attention_cache_update_index=0,
        )
        assert_close(np.asarray(found)[mask], np.asarray(whole)[mask], EXACT)


def test_a_mask_of_the_slots_of_a_cache(rng):
    block, x = TransformerDecoder(9, num_heads=2), inputs(rng, 2, STEPS, 8)
    mask = mask_of((STEPS, 4), STEPS, "left")
    whole = np.asarray(block(x, decoder_padding_mask=mask))
    cache = block.initial_self_attention_cache(2, STEPS)
    found, _ = in_pieces(block, x, cache, decoder_padding_mask=mask)
    assert_close(found[mask], whole[mask], EXACT)
    with pytest.raises(ValueError, match=r"must cover all its slots, \(batch, 7\).*\(2, 3\)"):
        block(
            x[:, :3],
            decoder_padding_mask=mask[:, :3],
            self_attention_cache=cache,
            self_attention_cache_update_index=0,
        )


def test_a_mask_of_pairs_reaches_the_slots_of_a_cache(rng):
    block, x = TransformerDecoder(9, num_heads=2), inputs(rng, 2, STEPS, 8)
    band = np.tri(STEPS, dtype=bool) & ~np.tri(STEPS, k=-3, dtype=bool)
    band = band[None].repeat(2, axis=0)
    whole, cache = block(x, decoder_attention_mask=band), block.initial_self_attention_cache(2, 7)
    for i in range(STEPS):
        found, cache = block(
            x[:, i : i + 1],
            decoder_attention_mask=band[:, i : i + 1],
            self_attention_cache=cache,
            self_attention_cache_update_index=i,
        )
        assert_close(found, whole[:, i : i + 1], EXACT)


def test_a_cache_keeps_its_precision_in_a_block_of_mixed_precision(rng):
    block = TransformerDecoder(9, attention=LinearAttention(2, 4), dtype="mixed_float16")
    x = inputs(rng, 2, STEPS, 8)
    whole = block(x)
    found, cache = in_pieces(block, x, block.initial_self_attention_cache(2))
    assert_close(found.astype("float32"), np.asarray(whole, "float32"), 5e-3)  # 11 bits
    dtypes = {keras.backend.standardize_dtype(value.dtype) for value in cache.values()}
    assert dtypes == {"float32", "int32"}


def test_a_cache_in_a_compiled_loop(rng):
    block, x = TransformerDecoder(9, attention=LinearAttention(2, 4)), inputs(rng, 2, STEPS, 8)
    whole = block(x)

    def step(i, outputs, cache):
        y, cache = block(
            keras.ops.slice(x, (0, i, 0), (2, 1, 8)),
            self_attention_cache=cache,
            self_attention_cache_update_index=i,
        )
        return i + 1, keras.ops.slice_update(outputs, (0, i, 0), y), cache

    def run(outputs):
        cache = block.initial_self_attention_cache(2)
        return keras.ops.while_loop(lambda i, *_: i < STEPS, step, (0, outputs, cache))[1]

    assert_close(compiled(run)(np.zeros_like(x)), whole, EXACT)


def test_symbolic_caches_have_the_shapes_of_the_real_ones(rng):
    block, x = TransformerDecoder(9, attention=LinearAttention(2, 4)), inputs(rng, 2, 3, 8)
    block(x)
    cache = block.initial_self_attention_cache(2)
    symbols = {k: keras.Input(batch_shape=v.shape, dtype=v.dtype) for k, v in cache.items()}
    step = keras.Input(batch_shape=(2, 3, 8))
    outputs = block(step, self_attention_cache=symbols, self_attention_cache_update_index=0)
    model = keras.Model([step, symbols], outputs)
    found, expected = (
        model([keras.ops.convert_to_tensor(x), cache]),
        block(x, self_attention_cache=cache, self_attention_cache_update_index=0),
    )
    for name, value in expected[1].items():
        assert found[1][name].shape == model.output[1][name].shape == value.shape
    assert_close(found[0], expected[0], 0)


def test_a_state_does_not_read_a_step_twice(rng):
    block, x = TransformerDecoder(9, attention=LinearAttention(2, 4)), inputs(rng, 2, 3, 8)
    block(x)
    _, cache = block(
        x,
        self_attention_cache=block.initial_self_attention_cache(2),
        self_attention_cache_update_index=0,
    )
    with pytest.raises(ValueError, match=r"each step once and in order.*read 3 steps.*index=2"):
        block(x[:, :1], self_attention_cache=cache, self_attention_cache_update_index=2)


def test_a_full_state_reads_no_more_steps(rng):
    attention = CosFormerAttention(2, 4, max_length=4)
    block, x = TransformerDecoder(9, attention=attention), inputs(rng, 2, STEPS, 8)
    whole, cache = block(x[:, :4]), block.initial_self_attention_cache(2)
    found, cache = in_pieces(block, x[:, :4], cache)
    assert_close(found, whole, EXACT)
    with pytest.raises(ValueError, match=r"self_attention' is full: at most 4 steps.*: 5 steps"):
        block(x[:, 4:5], self_attention_cache=cache, self_attention_cache_update_index=4)


def test_a_cache_without_a_meaning_is_refused(rng):
    x, y = inputs(rng, 2, 3, 8), inputs(rng, 2, 3, 7)
    linear, softmax, cross = (
        TransformerDecoder(9, attention=layer)
        for layer in (LinearAttention(2, 4), SoftmaxAttention(2, 4), CosFormerAttention(2, 4))
    )
    with pytest.raises(ValueError, match="is not built"):
        linear.initial_self_attention_cache(2)
    linear(x), softmax(x), cross(x, y)
    state, pairs = linear.initial_self_attention_cache(2), np.zeros((2, 2, 3, 2, 4))
    other = {f"cos_former_attention_0_{name}": state["steps"] for name in ("sums", "position")}
    for block, cache, arguments, message in [
        (linear, pairs, {}, "has no cache of keys and values"),
        (linear, other, {}, r"must have 'steps'.*cache with \['cos_former_attention_0_sums', "),
        (linear, other | {"steps": state["steps"]}, {}, r"must have \['linear_attention_0_sums'\]"),
        (linear, state, {"self_attention_cache_update_index": None}, "the number of steps before"),
        (linear, state, {"use_causal_mask": False}, "leave `use_causal_mask` True"),
        (linear, state, {"decoder_attention_mask": np.ones((2, 1, 3))}, "keeps no single steps"),
        (linear, state, {"segment_ids": np.zeros((2, 3), "int32")}, "have no meaning with a cache"),
        (linear, state, {"cross_attention_cache": state}, "One without an encoder takes only"),
        (linear, None, {}, "is for a call with `self_attention_cache`"),
        (cross, state, {"encoder_sequence": y}, "takes `self_attention_cache` and"),
    ]:
        given = {"self_attention_cache_update_index": 0, "self_attention_cache": cache, **arguments}
        with pytest.raises(ValueError, match=message):
            block(x, **given)
    with pytest.raises(ValueError, match="Build it with `max_length`"):
        softmax.initial_self_attention_cache(2)
    with pytest.raises(ValueError, match="has no cross-attention"):
        softmax.initial_cross_attention_cache(2)
    with pytest.raises(ValueError, match=r"CosFormerAttention\) has no state that could be"):
        cross.initial_cross_attention_cache(2)
    convolved = TransformerDecoder(9, attention=LinearAttention(2, 4, conv_size=3))
    convolved(x, y)
    with pytest.raises(ValueError, match="without `position` and `conv_size`"):
        convolved.initial_cross_attention_cache(2)
    with (
        scope.opened(scope.Stream()),
        pytest.raises(ValueError, match="the state is that of the stream"),
    ):
        linear(x, self_attention_cache=state, self_attention_cache_update_index=0)


@pytest.mark.parametrize(
    "cross",
    [
        LinearAttention(2, 4),
        PerformerAttention(2, 4, num_random_features=8, seed=3),
        SoftmaxAttention(2, 4),
        LowRankAttention(2, 4, max_length=9, rank=3),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_decoder_with_an_encoder_streams(cross, rng):
    x, y = inputs(rng, 2, STEPS, 8), inputs(rng, 2, ENCODED, 7)
    mask = mask_of((ENCODED, 2), ENCODED)
    block = TransformerDecoder(
        9, attention=CosFormerAttention(2, 4, horizon=4), cross_attention=cross
    )
    whole, state, outputs = block(x, y, encoder_padding_mask=mask), None, []
    for piece in np.split(x, (3, 4), axis=1):
        with scope.opened(scope.Stream(state)) as stream:
            outputs.append(block(piece, y, encoder_padding_mask=mask))
        state = stream.next_state
    assert_close(np.concatenate(outputs, axis=1), whole, EXACT)


@pytest.mark.parametrize(
    "cross",
    [CosFormerAttention(2, 4), NystromAttention(2, 4), SoftmaxAttention(2, 4, position=Rotary())],
    ids=lambda layer: type(layer).__name__,
)
def test_a_decoder_whose_queries_depend_on_each_other_does_not_stream(cross, rng):
    x, y = inputs(rng, 2, STEPS, 8), inputs(rng, 2, ENCODED, 7)
    block = TransformerDecoder(9, attention=LinearAttention(2, 4), cross_attention=cross)
    block(x, y)
    with (
        scope.opened(scope.Stream()),
        pytest.raises(ValueError, match=r"cannot stream in cross-attention: its outputs depend"),
    ):
        block(x, y)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="reads the operations of a TensorFlow graph")
def test_masked_steps_of_a_stream_reach_no_gradient(rng):
    import tensorflow as tf

    block, x = TransformerDecoder(9, attention=LinearAttention(2, 4)), inputs(rng, 2, 3, 8)
    block(x)
    x[0, 2] = np.nan
    mask = tf.constant([[True, True, False], [True, True, True]])
    with tf.GradientTape() as tape, scope.opened(scope.Stream(mask=mask)):
        loss = tf.reduce_sum(tf.boolean_mask(block(x), mask))
    for gradient in tape.gradient(loss, block.trainable_variables):
        assert np.isfinite(gradient).all()
