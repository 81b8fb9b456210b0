"""The gate chooses between the segment and the memory, each of which is the paper's sum."""

import keras
import numpy as np
import pytest
import references
from references import How
from support import BACKEND, assert_close, compiled, gradients, layer_weights
from variants import inputs, mask_of

from keras_cosattn import CompressiveMemoryAttention, LinearAttention, Streaming, positions
from keras_cosattn.ops import compressive, windows

B, HEADS, SHARED, D, E, WIDTH = 2, 4, 2, 5, 3, 7
CLOSED, OPEN = -100.0, 100.0  # of the gate: its sigmoid is 0 or 1 in float32
both_rules = pytest.mark.parametrize("delta_rule", [False, True])


def make(segment_length, gate=None, **options):
    layer = CompressiveMemoryAttention(
        HEADS, D, value_dim=E, num_key_value_heads=SHARED, segment_length=segment_length, **options
    )
    layer.build((None, None, WIDTH), (None, None, WIDTH))
    if gate is not None:
        layer.gate.assign(np.full(HEADS, gate))
    return layer


def streamed(layer):
    x = keras.Input((None, WIDTH))
    return keras.Model(x, layer(x, x, use_causal_mask=True))


def heads(layer, x):
    weights = layer_weights(layer)
    return [
        np.einsum("btm,mhd->bthd", np.float64(x), weights[name][0]) + weights[name][1]
        for name in ("query", "key", "value")
    ]


def projected(layer, mixed):
    kernel, bias = layer_weights(layer)["attention_output"]
    return np.einsum("bthe,hem->btm", mixed, kernel) + bias


@both_rules
@pytest.mark.parametrize("length", [1, 13, 64])
def test_a_closed_gate_is_attention_inside_the_segment(length, delta_rule, rng):
    layer, x = make(8, CLOSED, delta_rule=delta_rule), inputs(rng, B, length, WIDTH)
    q, k, v = heads(layer, x)
    parts = []
    for start in range(0, length, 8):
        part = slice(start, start + 8)
        weights = references.softmax_weights(q[:, part], k[:, part], How(causal=True))
        parts.append(references.mix(references.normalise(weights), v[:, part]))
    expected = projected(layer, np.concatenate(parts, axis=1))
    assert_close(layer(x, x, use_causal_mask=True), expected, 1e-6)


@pytest.mark.parametrize("length", [13, 64])
def test_an_open_gate_is_linear_attention_to_the_segments_before(length, rng):
    layer, x = make(8, OPEN), inputs(rng, B, length, WIDTH)
    linear = LinearAttention(HEADS, D, value_dim=E, num_key_value_heads=SHARED, use_bias=False)
    linear.build((None, None, WIDTH), (None, None, WIDTH))
    for name in ("query", "key", "value", "output"):
        getattr(linear, f"{name}_dense").kernel.assign(getattr(layer, f"{name}_dense").kernel)
    found = np.asarray(layer(x, x, use_causal_mask=True))
    assert not np.any(found[:, :8])
    for start in range(8, length, 8):
        part = slice(start, start + 8)
        assert_close(found[:, part], linear(x[:, part], x[:, :start]), 1e-6)


def delta_memory(q, k, v, size):
    """The paper's loop, eq. 4-6 with the delta rule, for one head: `(t, d), (t, d), (t, e)`."""
    sigma = references.FEATURE_MAPS["elu+1"]
    memory, total = np.zeros((q.shape[1], v.shape[1])), np.zeros(q.shape[1])
    out = []
    for start in range(0, len(q), size):
        sq, sk, own = sigma(q[start : start + size]), sigma(k[start : start + size]), v[start:]
        out.append(sq @ memory / (sq @ total + (start == 0))[:, None])
        known = sk @ memory / (sk @ total + (start == 0))[:, None]
        memory, total = memory + sk.T @ (own[:size] - known), total + sk.sum(axis=0)
    return np.concatenate(out)


@pytest.mark.parametrize(("size", "length"), [(1, 13), (5, 64), (64, 257)])
def test_the_delta_rule_is_its_recurrence(size, length, rng):
    layer = make(size, OPEN, delta_rule=True)
    x = inputs(rng, B, length, WIDTH)
    q, k, v = heads(layer, x)
    expected = np.zeros((B, length, HEADS, E))
    for b, h in np.ndindex(B, HEADS):
        shared = h // (HEADS // SHARED)
        expected[b, :, h] = delta_memory(q[b, :, h], k[b, :, shared], v[b, :, shared], size)
    assert_close(layer(x, x, use_causal_mask=True), projected(layer, expected), 1e-5)


def test_the_delta_rule_writes_the_difference_to_what_the_memory_gives(rng):
    """For one key and one value: nothing is written to M the second time, but z counts the key."""
    k, v = inputs(rng, 1, 1, SHARED, D), inputs(rng, 1, 1, SHARED, E)
    k, v = np.repeat(k, 8, axis=1), np.repeat(v, 8, axis=1)
    out, _ = compressive.compressive_memory(k, k, v, size=2, delta_rule=True)
    shares = np.repeat([0, 1, 1 / 2, 1 / 2], 2)[None, :, None, None]
    assert_close(out, shares * v, 1e-6)


@both_rules
def test_gradients_come_through_the_memory(delta_rule, rng):
    layer, x = make(4, OPEN, delta_rule=delta_rule), inputs(rng, 1, 13, WIDTH)
    y = inputs(rng, 1, 13, WIDTH)

    def loss(y):
        return keras.ops.sum(layer(x, y, use_causal_mask=True)[:, 9] ** 2)

    (slope,) = gradients(loss, y)
    assert np.flatnonzero(np.any(slope != 0, axis=(0, 2))).tolist() == list(range(8))


@both_rules
def test_each_example_of_a_stream_finishes_its_own_segments(delta_rule, rng):
    """Real steps come at other times in each example, and each piece holds none or several ends."""
    layer, x = make(3, delta_rule=delta_rule), inputs(rng, 3, 20, WIDTH)
    model = streamed(layer)
    stream, whole = Streaming(model), np.asarray(model(x))
    state, taken, found = stream.initial_state(3), np.zeros(3, int), [[], [], []]
    while taken.min() < 15:
        mask = rng.random((3, rng.choice([1, 2, 7]))) < [[0.9], [0.4], [0.7]]
        mask &= taken[:, None] + np.cumsum(mask, axis=1) <= 20
        piece = np.full((*mask.shape, WIDTH), 1e3, "float32")
        for i, n in enumerate(mask.sum(axis=1)):
            piece[i, mask[i]] = x[i, taken[i] : taken[i] + n]
            taken[i] += n
        y, state = stream(piece, state, mask=mask)
        for i in range(3):
            found[i].extend(np.asarray(y)[i, mask[i]])
    assert len(set(taken)) > 1
    for i in range(3):
        assert_close(np.array(found[i]), whole[i, : taken[i]], 1e-5)


@both_rules
def test_packed_sequences_have_memories_of_their_own(delta_rule, rng):
    """Segments that end anywhere in a chunk, with padding, equal the sum."""
    t, size = 41, 4
    ids = np.repeat([[5, 2, 5, 1, 3, 9]], [1, 12, 3, 4, 4, 17], axis=1) + np.zeros((B, 1), "int32")
    mask = mask_of((41, 30), t, "left")
    layer, x = make(size, 0.3, delta_rule=delta_rule), inputs(rng, B, t, WIDTH)
    found = layer(x, x, segment_ids=ids, value_mask=mask, query_mask=mask, use_causal_mask=True)
    how = How(mask, mask, ids, causal=True)
    arguments = {"segment_length": size, "delta_rule": delta_rule}
    expected = references.projected(
        type(layer).__name__, layer_weights(layer), x, x, how=how, **arguments
    )
    assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("kind", ["TransformerXL", "Rotary"])
def test_positions_act_on_the_segment_alone(kind, rng):
    x = inputs(rng, B, 20, WIDTH)
    plain, placed = make(4), make(4, position=getattr(positions, kind)())
    names = [w.path.split("/", 1)[1] for w in plain.weights]
    for w in placed.weights:
        if w.path.split("/", 1)[1] in names:
            w.assign(plain.weights[names.index(w.path.split("/", 1)[1])])
    for gate, same in ((OPEN, True), (CLOSED, False)):
        outputs = []
        for layer in (plain, placed):
            layer.gate.assign(np.full(HEADS, gate))
            outputs.append(np.asarray(layer(x, x, use_causal_mask=True)))
        assert (np.abs(outputs[0] - outputs[1]).max() < 1e-6) == same


@both_rules
@pytest.mark.sample(2)
def test_the_state_stays_as_large_as_it_was(delta_rule, rng):
    layer, x = make(8, delta_rule=delta_rule), inputs(rng, 1, 2000, WIDTH)
    stream = Streaming(streamed(layer))
    step = compiled(lambda x, state: stream(x, state))
    state, sizes = stream.initial_state(1), []
    for i in range(2000):
        _, state = step(x[:, i : i + 1], state)
        if i % 500 == 499:
            sizes.append(sum(np.asarray(value).nbytes for value in state.values()))
    assert sizes == [stream.state_bytes] * 4
    columns = SHARED * (D + E) * windows.window_length(8, 0) + 2 * SHARED * D * (E + 1)
    assert sizes[0] == 4 * (columns + 1)


@pytest.mark.slow
@both_rules
def test_five_thousand_steps_do_not_drift(delta_rule, rng):
    layer, x = make(16, 0.0, delta_rule=delta_rule), inputs(rng, 1, 5000, WIDTH)
    stream = Streaming(streamed(layer))
    step = compiled(lambda x, state: stream(x, state))
    state, outputs = stream.initial_state(1), []
    for i in range(5000):
        y, state = step(x[:, i : i + 1], state)
        outputs.append(np.asarray(y))
    found = np.concatenate(outputs, axis=1)
    q, k, v = heads(layer, x)
    local = make(16, CLOSED)
    local.set_weights(layer.get_weights())
    local.gate.assign(np.full(HEADS, CLOSED))
    memory = np.zeros((1, 5000, HEADS, E))
    sigma = references.FEATURE_MAPS["elu+1"]
    for h in range(HEADS):
        shared = h // (HEADS // SHARED)
        arrays = q[0, :, h], k[0, :, shared], v[0, :, shared]
        if delta_rule:
            memory[0, :, h] = delta_memory(*arrays, 16)
            continue
        a, b, c = sigma(arrays[0]), sigma(arrays[1]), arrays[2]
        for start in range(16, 5000, 16):
            w = a[start : start + 16] @ b[:start].T
            memory[0, start : start + 16, h] = w @ c[:start] / w.sum(axis=1, keepdims=True)
    expected = (np.asarray(local(x, x, use_causal_mask=True)) + projected(layer, memory)) / 2
    assert_close(found, expected, 1e-5)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="needs a length that is not known")
@both_rules
@pytest.mark.sample(2)
def test_an_unknown_length_trains_compiled(delta_rule, rng):
    import tensorflow as tf

    layer, x = make(4, delta_rule=delta_rule), inputs(rng, B, 13, WIDTH)

    def slope(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = keras.ops.sum(layer(x, x, use_causal_mask=True) ** 2)
        return tape.gradient(loss, x)

    spec = [tf.TensorSpec((None, None, WIDTH))]
    unknown = tf.function(slope, jit_compile=True, input_signature=spec, autograph=False)
    assert_close(unknown(x), slope(tf.convert_to_tensor(x)), 1e-5)
