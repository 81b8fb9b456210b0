"""Sums that fade and the delta rule: the parts, endless streams, and what the layers can do."""

import keras
import numpy as np
import pytest
import recurrent_references
from support import BACKEND, assert_close, gradients, pure, traced
from variants import inputs

from keras_cosattn import (
    CosFormerAttention,
    DecayedCosFormerAttention,
    DeltaRuleAttention,
    GatedLinearAttention,
    LinearAttention,
    Mamba2Attention,
    RetentionAttention,
    Rotary,
    Streaming,
)
from keras_cosattn.ops import decayed_attention
from keras_cosattn.ops.decays import SMALLEST_LOG_DECAY
from keras_cosattn.ops.triangular import unit_lower_inverse

B, HEADS, D, E = 2, 3, 4, 5


def steps(rng, length, channels=1, beta=False, strongest=1.0):
    """Queries, unit keys, values and gates, in float32."""
    q, k = (rng.normal(size=(B, length, HEADS, D)) for _ in "qk")
    made = {
        "q": q,
        "k": k / np.linalg.norm(k, axis=-1, keepdims=True),
        "v": rng.normal(size=(B, length, HEADS, E)),
        "log_decay": -strongest * rng.random((B, length, HEADS, channels)),
    }
    if beta:
        made["beta"] = 2 * rng.random((B, length, HEADS))
    return {name: x.astype("float32") for name, x in made.items()}


def zeros():
    return {"sums": np.zeros((B, HEADS, D, E), "float32")}


def expected(made):
    """The recurrence in float64."""
    exact = {name: np.float64(x) for name, x in made.items()}
    exact["log_decay"] = np.broadcast_to(exact["log_decay"], exact["k"].shape)
    return np.stack(
        [
            recurrent_references.recurrence(**{name: x[i] for name, x in exact.items()})
            for i in range(B)
        ]
    )


@pytest.mark.parametrize("size", [1, 2, 7, 16, 37])
def test_the_inverse_of_a_unit_lower_matrix(size, rng):
    lower = np.tril(rng.normal(size=(3, size, size)), -1)
    found = unit_lower_inverse(keras.ops.convert_to_tensor(lower.astype("float32")), 64)
    assert_close(found, np.linalg.inv(np.eye(size) + lower), 1e-4)


@pytest.mark.parametrize("beta", [False, True])
@pytest.mark.parametrize(
    ("channels", "strongest"), [(1, 0.1), (1, 40.0), (D, 0.1), (D, -SMALLEST_LOG_DECAY)]
)
@pytest.mark.parametrize("chunk_size", [7, 64])
@pytest.mark.sample(3)
def test_the_sums_are_the_recurrence(channels, strongest, beta, chunk_size, rng):
    # A sum of the log decays of a chunk keeps 24 bits.
    close = max(1e-5, chunk_size * strongest * 2**-24)
    made = steps(rng, 100, channels, beta, strongest)
    out, state = decayed_attention(made, zeros(), chunk_size=chunk_size)
    assert_close(out, expected(made), close)
    first = {name: x[:, :33] for name, x in made.items()}
    rest = {name: x[:, 33:] for name, x in made.items()}
    _, between = decayed_attention(first, zeros(), chunk_size=chunk_size)
    pieces, after = decayed_attention(rest, between, chunk_size=chunk_size)
    assert_close(pieces, out[:, 33:], close)
    assert_close(after["sums"], state["sums"], close)


@pytest.mark.parametrize("channels", [1, D])
def test_the_strongest_decay_has_finite_gradients(channels, rng):
    made = steps(rng, 70, channels, beta=True)
    made["log_decay"] = np.full_like(made["log_decay"], SMALLEST_LOG_DECAY)

    def loss(log_decay, k):
        out, _ = decayed_attention({**made, "log_decay": log_decay, "k": k}, zeros())
        return keras.ops.sum(out**2)

    for slope in gradients(loss, made["log_decay"], made["k"]):
        assert np.isfinite(slope).all()
        assert np.abs(slope).max() > 0


def test_masked_steps_leave_the_state_as_it_is(rng):
    made = steps(rng, 12, beta=True)
    _, state = decayed_attention({name: x[:, :9] for name, x in made.items()}, zeros())
    mask = np.arange(12)[None] < 9
    made["v"][:, 9:] = np.nan
    _, found = decayed_attention({**made, "mask": np.repeat(mask, B, axis=0)}, zeros())
    assert_close(found["sums"], state["sums"], 1e-6)


def test_equal_decays_of_all_channels_are_the_decay_of_a_head(rng):
    made = steps(rng, 100)
    channels = {**made, "log_decay": np.repeat(made["log_decay"], D, axis=3)}
    assert_close(decayed_attention(channels, zeros())[0], decayed_attention(made, zeros())[0], 1e-5)


def test_the_delta_rule_replaces_what_a_key_holds(rng):
    keys = np.eye(D, dtype="float32")[[0, 1, 2, 0, 1]]
    made = {
        "q": np.broadcast_to(keys[[0, 1, 2, 0, 2]][None, :, None], (B, 5, HEADS, D)),
        "k": np.broadcast_to(keys[None, :, None], (B, 5, HEADS, D)),
        "v": rng.normal(size=(B, 5, HEADS, E)).astype("float32"),
        "beta": np.ones((B, 5, HEADS), "float32"),
    }
    out, _ = decayed_attention(made, zeros())
    assert_close(out, made["v"][:, [0, 1, 2, 3, 2]], 1e-6)


ENDLESS = {
    # The slowest head of RetNet's schedule remembers thousands of steps.
    "retention": RetentionAttention(2, 4, chunk_size=128, decay=[0.9, 0.99], position=None),
    "gated_linear": GatedLinearAttention(2, 4, conv_size=3),
    "delta_rule": DeltaRuleAttention(2, 4, gated=True, allow_neg_eigval=True),
    "mamba2": Mamba2Attention(2, 4),
    "decayed_cosformer": DecayedCosFormerAttention(2, 4, horizon=32),
}


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch has no graph: the loop takes minutes there")
@pytest.mark.parametrize("name", ENDLESS)
@pytest.mark.sample(3)
def test_100_000_steps_end_as_the_last_of_them_alone(name, rng):
    layer, x = ENDLESS[name], inputs(rng, 1, 100_003, 6)
    layer.build(x.shape, x.shape)
    run = traced(lambda x: pure(layer, x, x, use_causal_mask=True))
    # Of a layer that forgets, the last steps do not depend on the first.
    last = 6_400 if name == "decayed_cosformer" else 4_096
    assert_close(run(x)[:, -100:], run(x[:, -last:])[:, -100:], 2e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RetentionAttention(2, 4, decay="slow"), r"`decay` must be one of.*'slow'"),
        (lambda: RetentionAttention(2, 4, decay=[0.5]), r"2 numbers above 0.*\[0.5\]"),
        (lambda: RetentionAttention(2, 4, decay=[0.5, 1.5]), r"up to 1.*1.5"),
        (lambda: RetentionAttention(2, 4, decay=0.5), r"2 numbers above 0.*decay=0.5"),
        (
            lambda: GatedLinearAttention(2, 4, gate_logit_normalizer=-1),
            r"`gate_logit_normalizer` must be.*above 0.*=-1",
        ),
        (lambda: DeltaRuleAttention(2, 4, gated="head"), r"`gated` must be.*'head'"),
        (lambda: Mamba2Attention(4, 4, num_groups=3), r"`num_groups` must divide.*num_groups=3"),
        (lambda: DeltaRuleAttention(4, 4, num_groups=0), r"`num_groups`.*at least 1"),
        (lambda: GatedLinearAttention(2, 4, gate_low_rank_dim=0), r"`gate_low_rank_dim`.*at least"),
        (lambda: DecayedCosFormerAttention(2, 4, horizon=0), r"`horizon`.*at least 1"),
        (lambda: LinearAttention(2, 4, conv_size=0), r"`conv_size`.*at least 1"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_lightning_decays_as_alibi_does_where_heads_are_no_power_of_two(rng):
    slopes = [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]  # Press et al., 2022, for 6 heads
    x = inputs(rng, 1, 9, 6)
    named = RetentionAttention(6, 2, decay="lightning")
    given = RetentionAttention(6, 2, decay=np.exp(np.negative(slopes)))
    found, _ = (layer(x, x, use_causal_mask=True) for layer in (named, given))
    given.set_weights(named.get_weights())
    assert_close(found, given(x, x, use_causal_mask=True), 1e-6)


@pytest.mark.parametrize("cls", [DeltaRuleAttention, Mamba2Attention])
def test_the_weights_of_a_layer_without_convolutions_are_those_of_convolutions_by_one(cls, rng):
    x = inputs(rng, 2, 7, 6)
    plain, by_one = cls(2, 4, conv_size=None), cls(2, 4, conv_size=1)
    for layer in (plain, by_one):
        layer.build(x.shape, x.shape)
    own = {w.path.split("/", 1)[1]: w for w in plain.weights}
    for weight in by_one.weights:
        name = weight.path.split("/", 1)[1]
        one = 0.0 if name.endswith("conv_bias") else 1.0
        weight.assign(own.get(name, one * np.ones(weight.shape)))
    options = {"use_causal_mask": True, "return_attention_scores": True}
    for found, expected in zip(plain(x, x, **options), by_one(x, x, **options), strict=True):
        assert_close(found, expected, 1e-6)


def test_the_initial_weights_of_a_layer_with_a_seed_are_independent():
    layer = Mamba2Attention(64, 4, seed=1)
    layer.build((1, 3, 8), (1, 3, 8))
    log_rates, biases = map(keras.ops.convert_to_numpy, (layer.log_rate, layer.step_bias))
    assert abs(np.corrcoef(log_rates, biases)[0, 1]) < 0.5
    layer = LinearAttention(2, 4, conv_size=4, seed=1)
    layer.build((1, 3, 8), (1, 3, 8))
    q, k, v = (keras.ops.convert_to_numpy(layer.convolutions.kernels[name]) for name in "qkv")
    assert not np.any(q == k)
    assert not np.any(q == v)


def test_retention_without_position_has_no_counter(rng):
    x = keras.Input((None, 6))
    for position, count in ((None, 0), (Rotary(), 1)):
        layer = RetentionAttention(2, 4, position=position)
        stream = Streaming(keras.Model(x, layer(x, x, use_causal_mask=True)))
        assert sum(name.endswith("position") for name in stream.state_spec) == count


@pytest.mark.filterwarnings("error::RuntimeWarning")  # said where a step cannot be compiled
@pytest.mark.parametrize(
    "make",
    [
        lambda: LinearAttention(2, 4, conv_size=3, chunk_size=3),
        lambda: LinearAttention(2, 4, position=Rotary(), chunk_size=3),
        lambda: CosFormerAttention(2, 4, max_length=64, conv_size=4, chunk_size=3),
        lambda: RetentionAttention(2, 4, conv_size=3, chunk_size=3),
    ],
)
@pytest.mark.sample(3)
def test_a_layer_with_more_than_sums_in_its_state_streams_by_blocks_and_packs(make, rng):
    layer = make()
    x = inputs(rng, 2, 13, 6)
    whole = layer(x, x, use_causal_mask=True)
    symbol = keras.Input((None, 6))
    stream = Streaming(keras.Model(symbol, layer(symbol, symbol, use_causal_mask=True)))
    state, found = stream.initial_state(2), []
    for piece in np.split(x, [1, 2, 9], axis=1):
        y, state = stream(piece, state)
        found.append(y)
    assert_close(np.concatenate(found, axis=1), whole, 1e-5)
    ids = np.repeat([[3, 1]], [5, 8], axis=1)
    packed = layer(x, x, segment_ids=np.repeat(ids, 2, axis=0), use_causal_mask=True)
    assert_close(packed[:, 5:], layer(x[:, 5:], x[:, 5:], use_causal_mask=True), 1e-5)
