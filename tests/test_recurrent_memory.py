"""A memory of everything is softmax; what is remembered gives no gradient; streams stay small."""

import keras
import numpy as np
import pytest
import references
from references import How
from support import assert_close, compiled, gradients, layer_weights, value_and_gradients
from variants import inputs, mask_of

from keras_cosattn import RecurrentMemoryAttention, SoftmaxAttention, Streaming, positions, scope
from keras_cosattn.ops import timesteps, windows

B, HEADS, SHARED, D, E, WIDTH = 2, 4, 2, 5, 3, 7


def make(segment_length, memory_length, **options):
    layer = RecurrentMemoryAttention(
        HEADS, D, segment_length=segment_length, memory_length=memory_length, **options
    )
    layer.build((None, None, WIDTH), (None, None, WIDTH))
    return layer


def streamed(layer):
    x = keras.Input((None, WIDTH))
    return keras.Model(x, layer(x, x, use_causal_mask=True))


@pytest.mark.parametrize("length", [1, 13, 64, 257])
def test_a_memory_of_everything_is_softmax(length, rng):
    layer, x = make(16, 257), inputs(rng, B, length, WIDTH)
    softmax = SoftmaxAttention(HEADS, D)
    softmax.build(x.shape, x.shape)
    softmax.set_weights(layer.get_weights())
    assert_close(layer(x, x, use_causal_mask=True), softmax(x, x, use_causal_mask=True), 1e-6)


def test_only_the_gradient_of_the_memory_is_missing(rng):
    """Queries of the first segment have no memory, so they have softmax's gradient."""
    layer, x = make(8, 32), inputs(rng, B, 32, WIDTH)
    softmax = SoftmaxAttention(HEADS, D)
    softmax.build(x.shape, x.shape)
    softmax.set_weights(layer.get_weights())

    def slope(layer, steps):
        def loss(x):
            return keras.ops.sum(layer(x, x, use_causal_mask=True)[:, steps] ** 2)

        return gradients(loss, x)[0]

    first, second = slice(0, 8), slice(8, 16)
    assert_close(slope(layer, first), slope(softmax, first), 1e-5)
    assert np.any(slope(softmax, second)[:, first])
    assert not np.any(slope(layer, second)[:, first])


@pytest.mark.parametrize(("memory", "jit"), [(3, False), (4, False), (9, False), (6, True)])
@pytest.mark.sample(5)
def test_values_before_the_segment_get_no_gradient(memory, jit, rng):
    layer, x, y = make(4, memory), inputs(rng, B, 13, WIDTH), inputs(rng, B, 13, WIDTH)
    for t in (3, 4, 7, 12):

        def loss(y, t=t):
            return keras.ops.sum(layer(x, y, use_causal_mask=True)[:, t] ** 2)

        (slope,) = gradients(compiled(loss) if jit else loss, y)
        sees = np.any(slope != 0, axis=(0, 2))
        assert np.flatnonzero(sees).tolist() == list(range(t // 4 * 4, t + 1))


def expected(q, k, v, still_k, still_v, how, size, memory):
    weights = references.normalise(
        references.recurrent_memory_weights(q, k, how, size, memory, still_k=still_k)
    )
    query, key = references._both_positions(q.shape[1], k.shape[1], how)
    own = key >= query // size * size
    return references.mix(weights * own, v) + references.mix(weights * ~own, still_v)


@pytest.mark.parametrize(("size", "memory"), [(4, 0), (4, 6), (5, 5), (1, 3), (16, 2)])
@pytest.mark.parametrize("kind", ["plain", "padded", "packed", "stream"])
def test_a_memory_of_its_own_has_gradients_of_its_own(kind, size, memory, rng):
    t = 13
    ids = np.repeat([[3, 1, 3]], [2, 6, 5], axis=1) + np.zeros((B, 1), "int32")
    mask = mask_of((13, 9), t) if kind == "padded" else None
    how = How(mask, mask, ids if kind == "packed" else None, causal=True)
    arrays = [inputs(rng, B, t, h, n) for h, n in ((HEADS, D), (SHARED, D), (SHARED, E))]
    segments = timesteps.segment_numbers(keras.ops.convert_to_tensor(ids))
    length = windows.window_length(size, memory)
    state = {
        "key": np.zeros((B, length, SHARED, D), "float32"),
        "value": np.zeros((B, length, SHARED, E), "float32"),
        "position": np.zeros(B, "int32"),
    }

    def window(q, k, v, memory_k, memory_v):
        return windows.window_attention(
            q, k, v, size=size, look_back=memory, causal=True, mask=mask,
            memory=(memory_k, memory_v),
            segments=segments if kind == "packed" else None,
            state=state if kind == "stream" else None,
        )[0] * (1 if mask is None else mask[:, :, None, None])  # fmt: skip

    arrays += arrays[1:]
    exact = [np.float64(x) for x in arrays]
    values = expected(*exact, how, size, memory)
    g = rng.normal(size=values.shape).astype("float32")
    found, derivatives = value_and_gradients(window, g, *arrays)
    assert_close(found, values)
    for i, derivative in enumerate(derivatives):
        along = rng.normal(size=derivative.shape)

        def at(change, i=i, along=along):
            moved = list(exact)
            moved[i] = exact[i] + change * along
            return np.sum(expected(*moved, how, size, memory) * g)

        slope = (at(1e-6) - at(-1e-6)) / 2e-6
        assert abs(np.sum(derivative * along) - slope) <= 1e-4 * np.abs(derivative * along).sum()


@pytest.mark.parametrize("kind", ["plain", "cross", "padded", "packed", "stream", "padded_stream"])
def test_kernels_learn_from_a_memory_whose_inputs_are_still(kind, rng):
    """`W_k SG(x)`: in the reference the inputs of the memory stay where they are."""
    t, size, memory = 13, 4, 6
    layer = make(size, memory, value_dim=E, num_key_value_heads=SHARED)
    for variable in layer.trainable_variables:
        variable.assign(rng.normal(size=variable.shape, scale=0.5))
    ids = np.repeat([[3, 1, 3]], [2, 6, 5], axis=1) + np.zeros((B, 1), "int32")
    mask = mask_of((13, 9), t, "left") if "padded" in kind else None
    options = {"query_mask": mask, "value_mask": mask, "use_causal_mask": True, "training": True}
    options["segment_ids"] = ids if kind == "packed" else None
    how = How(mask, mask, options["segment_ids"], causal=True)
    starts = [keras.ops.convert_to_numpy(w) for w in layer.trainable_variables]
    arrays = [inputs(rng, B, t, WIDTH) for _ in range(2 if kind == "cross" else 1)] + starts
    n = len(arrays) - len(starts)

    def run(*arrays):
        with scope.opened(scope.Stream() if "stream" in kind else None):
            x, y = arrays[0], arrays[n - 1]
            return layer.stateless_call(list(arrays[n:]), [], x, y, **options)[0]

    def reference(*moved):
        x, y, still = moved[0], moved[n - 1], np.float64(arrays[n - 1])
        weights = layer_weights(layer, moved[n:])

        def heads(x, name):
            kernel, bias = weights[name]
            return np.einsum("btm,mhd->bthd", x, kernel) + bias

        q, k, v = heads(x, "query"), heads(y, "key"), heads(y, "value")
        mixed = expected(q, k, v, heads(still, "key"), heads(still, "value"), how, size, memory)
        kernel, bias = weights["attention_output"]
        return np.einsum("bthe,hem->btm", mixed, kernel) + bias

    exact = [np.float64(x) for x in arrays]
    values = reference(*exact)
    g = rng.normal(size=values.shape).astype("float32")
    found, derivatives = value_and_gradients(run, g, *arrays)
    assert_close(found, values)
    directions = [rng.normal(size=x.shape) for x in arrays]
    slopes = []
    for i, along in enumerate(directions):
        ends = []
        for step in (1e-6, -1e-6):
            moved = list(exact)
            moved[i] = exact[i] + step * along
            ends.append(np.sum(reference(*moved) * g))
        slopes.append((ends[0] - ends[1]) / 2e-6)
    sums = [np.sum(np.float64(x) * y) for x, y in zip(derivatives, directions, strict=True)]
    assert_close(sums, slopes)


def test_the_memory_reaches_as_far_as_it_says(rng):
    layer, x = make(4, 3), inputs(rng, 1, 13, WIDTH)
    _, weights = layer(x, x, use_causal_mask=True, return_attention_scores=True)
    seen = np.asarray(weights)[0, 0] > 0
    for t in range(13):
        assert np.flatnonzero(seen[t]).tolist() == list(range(max(t // 4 * 4 - 3, 0), t + 1))


@pytest.mark.parametrize("kind", ["TransformerXL", "Rotary"])
def test_positions_in_the_memory_go_on(kind, rng):
    """Distances count across segments: pieces, and softmax with the same position, agree."""
    layer = make(4, 20, position=getattr(positions, kind)())
    softmax = SoftmaxAttention(HEADS, D, position=getattr(positions, kind)())
    softmax.build((None, None, WIDTH), (None, None, WIDTH))
    softmax.set_weights(layer.get_weights())
    x = inputs(rng, B, 20, WIDTH)
    expected = softmax(x, x, use_causal_mask=True)
    assert_close(layer(x, x, use_causal_mask=True), expected, 1e-5)
    stream = Streaming(streamed(layer))
    state, outputs = stream.initial_state(B), []
    for piece in np.split(x, [7, 8, 9, 15], axis=1):
        y, state = stream(piece, state)
        outputs.append(y)
    assert_close(np.concatenate(outputs, axis=1), expected, 1e-5)


def test_the_state_stays_as_large_as_it_was(rng):
    layer, x = make(4, 6), inputs(rng, 1, 2000, WIDTH)
    stream = Streaming(streamed(layer))
    step = compiled(lambda x, state: stream(x, state))
    state, sizes, outputs = stream.initial_state(1), [], []
    for i in range(2000):
        y, state = step(x[:, i : i + 1], state)
        outputs.append(np.asarray(y))
        if i % 500 == 499:
            sizes.append(sum(np.asarray(value).nbytes for value in state.values()))
    assert sizes == [stream.state_bytes] * 4
    assert_close(np.concatenate(outputs, axis=1), layer(x, x, use_causal_mask=True), 1e-6)


@pytest.mark.parametrize("tokens", [0, 2])
def test_what_is_beyond_the_memory_comes_through_the_tokens_only(tokens, rng):
    """From the first segment to the fourth, in values and in gradients."""
    layer, x = make(4, 0, num_memory_tokens=tokens), inputs(rng, B, 16, WIDTH)

    def loss(x):
        return keras.ops.sum(layer(x, x, use_causal_mask=True)[:, 12:] ** 2)

    (slope,) = gradients(loss, x)
    assert np.all(np.any(slope[:, :12], axis=2) == bool(tokens))
    changed = x.copy()
    changed[:, 0] += 1
    before, after = (np.asarray(layer(y, y, use_causal_mask=True)) for y in (x, changed))
    assert np.all(np.any(after[:, 12:] != before[:, 12:], axis=2) == bool(tokens))


def test_weights_of_steps_and_tokens_sum_to_one(rng):
    """In the first segment, whose tokens are known."""
    layer, x = make(16, 0, num_memory_tokens=3), inputs(rng, B, 13, WIDTH)
    _, weights = layer(x, x, use_causal_mask=True, return_attention_scores=True)
    parts = layer_weights(layer)
    q, k, own = (
        np.einsum("...tm,mhd->...thd", y, parts[name][0]) + parts[name][1]
        for y, name in ((x, "query"), (x, "key"), (parts["more"]["memory_tokens"], "key"))
    )
    logits = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(D)
    steps = np.exp(logits) * np.tri(13)
    tokens = np.exp(np.einsum("bthd,rhd->bhtr", q, own) / np.sqrt(D))
    total = steps.sum(axis=3, keepdims=True) + tokens.sum(axis=3, keepdims=True)
    assert_close(weights, steps / total, 1e-5)


def test_a_segment_reads_nothing_of_the_token_that_it_will_write(rng):
    """Tokens are written when a segment is finished, so within it they say nothing of it."""
    layer, x = make(4, 0, num_memory_tokens=2), inputs(rng, 1, 8, WIDTH)

    def loss(x):
        return keras.ops.sum(layer(x, x, use_causal_mask=True)[:, 5] ** 2)

    (slope,) = gradients(loss, x)
    assert np.flatnonzero(np.any(slope[0], axis=1)).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.slow
def test_tokens_learn_to_tell_what_was_long_ago(rng):
    """The first step says which of two outputs all steps of the last segment should give."""
    keras.utils.set_random_seed(3)
    x = np.tile(inputs(rng, 1, 20, WIDTH), (64, 1, 1))  # but for that step all are the same
    sign = np.sign(rng.normal(size=(64, 1))).astype("float32")
    x[:, 0, :2] = 3 * sign
    losses = {}
    for tokens in (0, 2):
        model = keras.Sequential(
            [
                streamed(make(4, 0, num_memory_tokens=tokens)),
                keras.layers.Lambda(lambda y: y[:, -4:]),
                keras.layers.Dense(1),
            ]
        )
        model.compile(keras.optimizers.Adam(0.02), "mse")
        target = np.broadcast_to(sign[:, None], (64, 4, 1))
        losses[tokens] = model.fit(x, target, epochs=25, verbose=0).history["loss"][-1]
    assert losses[2] < 0.1
    assert losses[0] > 0.9


@pytest.mark.parametrize("kind", ["ALiBi", "Rotary", "TransformerXL"])
def test_tokens_stand_at_no_position(kind, rng):
    """Each segment of a repeated one has the same outputs where the tokens stay as they were."""
    layer = make(4, 0, num_memory_tokens=2, position=getattr(positions, kind)())
    layer.output_dense.kernel.assign(layer.output_dense.kernel * 0)
    scale = np.sqrt(np.mean(np.square(layer.memory_tokens), axis=1, keepdims=True))
    layer.memory_tokens.assign(layer.memory_tokens / scale)
    layer.output_dense.bias.assign(layer.output_dense.bias * 0)
    x = np.tile(inputs(rng, B, 4, WIDTH), (1, 5, 1))
    _, weights = layer(x, x, use_causal_mask=True, return_attention_scores=True)
    weights = np.asarray(weights)
    for c in range(4, 20, 4):
        own = slice(c, c + 4)
        assert_close(weights[:, :, own, own], weights[:, :, :4, :4], 1e-5)
    assert np.all(weights.sum(axis=3) < 0.999)


@pytest.mark.parametrize("memory", [0, 3])
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.sample(3)
def test_tokens_go_on_by_each_examples_own_count_of_steps(size, memory, rng):
    """Pieces in which some examples have fewer steps, or none, or not the first of them."""
    layer = make(size, memory, num_memory_tokens=2)
    stream, x = Streaming(streamed(layer)), inputs(rng, 2, 12, WIDTH)
    expected = np.asarray(layer(x, x, use_causal_mask=True))
    state, taken = stream.initial_state(2), np.zeros(2, int)
    for first, second in zip(
        ["11110", "00000", "01011", "11111"], ["11000", "10101", "00001", "11111"], strict=True
    ):
        mask = np.array([[c == "1" for c in row] for row in (first, second)])
        steps = np.minimum(taken[:, None] + np.cumsum(mask, axis=1) - mask, 11)
        piece = np.where(mask[..., None], np.take_along_axis(x, steps[..., None], axis=1), np.nan)
        y, state = stream(piece.astype("float32"), state, mask=mask)
        for i in range(2):
            assert_close(np.asarray(y)[i, mask[i]], expected[i, steps[i, mask[i]]], 1e-5)
        taken += mask.sum(axis=1)
    assert taken.tolist() == [12, 11]


def test_tokens_stay_bounded_in_an_endless_stream(rng):
    layer, x = make(4, 0, num_memory_tokens=3), inputs(rng, 1, 800, WIDTH)
    stream = Streaming(streamed(layer))
    state, largest = stream.initial_state(1), []
    for piece in np.split(x, 4, axis=1):
        y, state = stream(piece, state)
        (tokens,) = (value for name, value in state.items() if name.endswith("tokens"))
        assert tokens.shape == (1, 3, WIDTH)
        assert np.all(np.isfinite(y))
        largest.append(np.abs(tokens).max())
    assert max(largest) <= np.sqrt(WIDTH)  # of a vector whose root mean square is 1


def test_without_tokens_there_is_no_trace_of_them(rng):
    layer = make(4, 3, num_memory_tokens=0)
    assert len(layer.weights) == 8  # kernel and bias of the four projections
    assert not any("token" in name for name in Streaming(streamed(layer)).state_spec)
    assert "cross" not in layer.cannot
    assert "packed" not in layer.cannot


def test_tokens_of_another_width_than_the_output_are_refused():
    with pytest.raises(ValueError, match=r"Leave out `output_shape`.*output_shape=\(8,\).*6"):
        RecurrentMemoryAttention(2, 3, num_memory_tokens=1, output_shape=8).build(
            (None, None, 6), (None, None, 6)
        )


def test_a_regularizer_of_what_the_projections_make_of_tokens_is_refused():
    with pytest.raises(ValueError, match=r"`activity_regularizer` must be None.*tokens=2"):
        RecurrentMemoryAttention(2, 3, num_memory_tokens=2, activity_regularizer="l2")
    RecurrentMemoryAttention(2, 3, activity_regularizer="l2")


@pytest.mark.parametrize(
    "options", [{"memory_length": -1}, {"segment_length": 0}, {"num_memory_tokens": -2}], ids=str
)
def test_lengths_that_cannot_be_are_refused(options):
    (name, value) = next(iter(options.items()))
    with pytest.raises(ValueError, match=f"`{name}` must be .*Received: {name}={value}"):
        RecurrentMemoryAttention(2, 3, **options)
