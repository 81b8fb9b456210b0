"""Every op equals the paper's sum, in values and gradients, in every form it has."""

from typing import NamedTuple

import keras
import numpy as np
import pytest
from references import REFERENCES, How, attention, attention_gradients, normalise
from support import (
    BACKEND,
    assert_close,
    compiled_on_jax,
    float64,
    random_mask,
    random_segments,
    traced,
    value_and_gradients,
)

from keras_cosattn import ops

B, SHARED, D, E = 2, 3, 5, 7


class Case(NamedTuple):
    """Sizes and masks of a call. `group` query heads share a key head."""

    t: int
    s: int | None = None  # None: self-attention
    causal: bool = False
    queries: str | None = None  # padding of the queries, see `random_mask`
    keys: str | None = None  # padding of the keys; "same": that of the queries
    packed: bool = False
    group: int = 1
    shared: int = SHARED
    chunk_size: int = 64


CASES = [
    Case(1),
    Case(13, group=2),
    Case(64, keys="right"),
    Case(257, queries="left", keys="same"),
    Case(1000, shared=1),
    Case(13, 64, group=2),
    Case(64, 13, queries="holes", keys="left"),
    Case(1, 257, keys="empty"),
    Case(257, 1),
    Case(13, packed=True, chunk_size=4),
    Case(64, packed=True, queries="holes", keys="same", group=2, chunk_size=7),
    Case(257, packed=True),
    Case(1000, packed=True, shared=1, group=2),
    Case(1, causal=True),
    Case(1, causal=True, packed=True),
    Case(13, causal=True, group=2, chunk_size=5),
    Case(64, causal=True),
    Case(64, causal=True, queries="left", keys="same", chunk_size=9),
    Case(257, causal=True, queries="right", keys="same", group=2),
    Case(257, causal=True, queries="holes", keys="same"),
    Case(64, causal=True, queries="empty", keys="same"),
    Case(1000, causal=True, group=2, shared=1),
    Case(13, 64, causal=True, group=2),
    Case(64, 13, causal=True, keys="right"),
    Case(13, causal=True, packed=True, chunk_size=4),
    Case(64, causal=True, packed=True, queries="left", keys="same", group=2, chunk_size=7),
    Case(257, causal=True, packed=True, queries="holes", keys="same"),
    Case(1000, causal=True, packed=True, shared=1),
]


def describe(case):
    default = Case(0)
    differs = {k: v for k, v in case._asdict().items() if v != getattr(default, k)}
    return "-".join(k if v is True else f"{k}={v}" for k, v in differs.items())


def example(case, rng):
    """q, k, v, the gradient of the output, and the masks.

    Queries and keys have both signs but stay apart from zero: where all positive features of a
    query nearly vanish its output does not depend on their size, and the gradient is 0 / 0.
    """
    t, s = case.t, case.s or case.t
    heads = case.shared * case.group
    shapes = (B, t, heads, D), (B, s, case.shared, D), (B, s, case.shared, E), (B, t, heads, E)
    arrays = [rng.normal(size=shape) for shape in shapes]
    for x in arrays[:2]:
        x += np.copysign(0.2, x)
    arrays = [x.astype("float32") for x in arrays]
    query_mask = random_mask(rng, case.queries, B, t)
    same = case.keys == "same"
    key_mask = query_mask if same else random_mask(rng, case.keys, B, s)
    ids = random_segments(rng, B, t) if case.packed else None
    return *arrays, How(query_mask, key_mask, ids, causal=case.causal)


def check(function, name, arrays, g, how, tolerance=1e-5, **arguments):
    """`function(q, k, v)` and its gradients against the reference `name`, on the real rows."""
    rows = 1.0 if how.query_mask is None else how.query_mask[:, :, None, None]
    g = g * np.float32(rows)
    out, actual = value_and_gradients(function, g, *arrays)
    assert_close(out * rows, attention(name, *arrays, how, **arguments), tolerance)
    expected = attention_gradients(name, *arrays, g, how, **arguments)
    # Together, for that of q and k is zero where a query sees one key only.
    assert [x.shape for x in actual] == [x.shape for x in expected]
    assert_close(flat(actual), flat(expected), tolerance)


def flat(arrays):
    return np.concatenate([np.ravel(x) for x in arrays])


def each(cases):
    """A test for each case; where every shape has to be compiled, most of them are slow."""
    every = 3 if BACKEND == "jax" else 1
    params = [
        pytest.param(case, id=describe(case), marks=[pytest.mark.slow] if i % every else [])
        for i, case in enumerate(cases)
    ]
    return pytest.mark.parametrize("case", params)


MAPS = {
    "elu+1": ops.elu_plus_one,
    "relu": ops.relu,
    "squared_relu": ops.squared_relu,
    "identity": ops.identity,
}


def linear(how, feature_map="elu+1", chunk_size=64):
    phi = MAPS[feature_map]
    options = {"causal": how.causal, "mask": how.key_mask, "segment_ids": how.segment_ids}
    return lambda q, k, v: ops.linear_attention(
        phi(q), phi(k), v, **options, chunk_size=chunk_size
    )[0]


def cosine(how, chunk_size=64, **length):
    options = {
        "query_mask": how.query_mask,
        "mask": how.key_mask,
        "segment_ids": how.segment_ids,
        "chunk_size": chunk_size,
        **length,
    }
    if how.causal:
        return lambda q, k, v: ops.causal_cosine_attention(q, k, v, **options)[0]
    return lambda q, k, v: ops.cosine_attention(q, k, v, **options)


def softmax(how, **more):
    options = {"query_mask": how.query_mask, "mask": how.key_mask, "causal": how.causal}
    options |= {"segment_ids": how.segment_ids, "attention_mask": how.attention_mask}
    return lambda q, k, v: ops.softmax_attention(q, k, v, **options, **more)[0]


@each(CASES)
@pytest.mark.sample(3)
def test_linear_attention_equals_the_sum(case, rng):
    *arrays, g, how = example(case, rng)
    check(linear(how, chunk_size=case.chunk_size), "LinearAttention", arrays, g, how)


@each(CASES)
@pytest.mark.sample(3)
def test_cosine_attention_of_fixed_length_equals_the_sum(case, rng):
    *arrays, g, how = example(case, rng)
    length = {"max_length": max(case.t, case.s or 1) + 3}
    function = cosine(how, case.chunk_size, **length)
    check(function, "CosFormerAttention", arrays, g, how, **length)


@each([case for case in CASES if not case.packed])
def test_cosine_attention_of_the_papers_length_equals_the_sum(case, rng):
    *arrays, g, how = example(case, rng)
    check(cosine(how, case.chunk_size), "CosFormerAttention", arrays, g, how)


@each([case for case in CASES if case.causal])
@pytest.mark.sample(3)
def test_horizon_equals_the_sum_over_its_halves(case, rng):
    *arrays, g, how = example(case, rng)
    for horizon in (10, 82):
        function = cosine(how, case.chunk_size, horizon=horizon)
        check(function, "CosFormerAttention", arrays, g, how, horizon=horizon)


@each([case for case in CASES if case.chunk_size == 64])
def test_softmax_attention_equals_the_sum(case, rng):
    *arrays, g, how = example(case, rng)
    check(softmax(how), "SoftmaxAttention", arrays, g, how)


@each([Case(13, group=2), Case(64, 13, queries="holes", keys="left"), Case(64, causal=True)])
def test_capped_softmax_attention_equals_the_sum(case, rng):
    *arrays, g, how = example(case, rng)
    cap = {"logit_soft_cap": 1.5}
    check(softmax(how, **cap), "SoftmaxAttention", arrays, g, how, **cap)


def test_a_bias_is_added_to_capped_scores(rng):
    q, k, v, _, how = example(Case(13, 17, group=2), rng)
    bias = rng.normal(size=(1, 2 * SHARED, 13, 17)).astype("float32")
    _, found = ops.softmax_attention(q, k, v, bias=bias, logit_soft_cap=1.5)
    capped = REFERENCES["SoftmaxAttention"](np.float64(q), np.float64(k), how, logit_soft_cap=1.5)
    assert_close(found, normalise(capped * np.exp(np.float64(bias))))


@pytest.mark.parametrize("shape", ["hts", "1ts", "h1s", "bts", "bt1", "ts", "s"])
def test_softmax_attention_takes_any_mask(shape, rng):
    case = Case(13, 17, group=2, keys="right")
    *arrays, g, how = example(case, rng)
    sizes = {"b": B, "h": case.shared * case.group, "t": case.t, "s": case.s, "1": 1}
    full = ("b" + shape) if shape[0] in "h1" else shape
    mask = rng.random([sizes[axis] for axis in full]) < 0.5
    how = how._replace(attention_mask=mask)
    check(softmax(how), "SoftmaxAttention", arrays, g, how)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("feature_map", ["relu", "squared_relu", "identity"])
def test_feature_maps_equal_their_formulas(feature_map, causal, rng):
    *arrays, g, how = example(Case(64, causal=causal, group=2, chunk_size=9), rng)
    if feature_map == "identity":
        # Weights of both signs could cancel, and their sum is divided by.
        arrays = [np.abs(x) for x in arrays]
    function = linear(how, feature_map, 9)
    check(function, "LinearAttention", arrays, g, how, feature_map=feature_map)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", [None, "left", "right", "holes", "empty"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [1, 2, 13, 64, 65, 128, 257])
def test_every_combination_equals_the_sum(length, causal, kind, packed, rng):
    for chunk_size in (3, 64):
        case = Case(length, None, causal, kind, "same", packed, 2, SHARED, chunk_size)
        *arrays, g, how = example(case, rng)
        check(linear(how, chunk_size=chunk_size), "LinearAttention", arrays, g, how)
        lengths = [{"max_length": 300}, {"horizon": 26}] if causal else [{"max_length": 300}]
        for span in lengths:
            function = cosine(how, chunk_size, **span)
            check(function, "CosFormerAttention", arrays, g, how, **span)


# The weights that are implied.

WEIGHT_CASES = [
    Case(13, group=2),
    Case(64, 13, queries="holes", keys="left"),
    Case(64, causal=True, queries="left", keys="same", group=2),
    Case(13, 64, causal=True, queries="holes", keys="right"),
    Case(64, packed=True, queries="holes", keys="same"),
    Case(257, causal=True, packed=True),
]


def check_weights(function, name, q, k, how, **arguments):
    options = how._asdict()
    options["mask"] = options.pop("key_mask")
    del options["attention_mask"], options["first_query"]
    weights = compiled_on_jax(lambda q, k: function(q, k, **options))(q, k)
    expected = normalise(REFERENCES[name](np.float64(q), np.float64(k), how, **arguments))
    assert_close(weights, expected)


@each(WEIGHT_CASES)
def test_linear_weights_are_what_the_sum_implies(case, rng):
    q, k, _, _, how = example(case, rng)

    def weights(q, k, **options):
        return ops.linear_weights(ops.elu_plus_one(q), ops.elu_plus_one(k), **options)

    check_weights(weights, "LinearAttention", q, k, how)


@each(WEIGHT_CASES)
def test_cosine_weights_are_what_the_sum_implies(case, rng):
    q, k, _, _, how = example(case, rng)
    lengths = [{"max_length": 300}, {"horizon": 26}] if case.causal else [{"max_length": 300}]
    for length in lengths if case.packed else [{}, *lengths]:

        def weights(q, k, length=length, **options):
            return ops.cosine_weights(q, k, **length, **options)

        check_weights(weights, "CosFormerAttention", q, k, how, **length)


@each(WEIGHT_CASES)
def test_softmax_weights_are_what_mixes_the_values(case, rng):
    q, k, v, _, how = example(case, rng)
    check_weights(
        lambda q, k, **options: ops.softmax_attention(q, k, v, **options)[1],
        "SoftmaxAttention", q, k, how,
    )  # fmt: skip


@pytest.mark.parametrize("length", [{"max_length": 70}, {"horizon": 26}])
def test_gradients_of_the_weights_are_those_of_the_outputs_they_mix(length, rng):
    q, k, v, g, _ = example(Case(64, causal=True, group=2), rng)

    def mixed(q, k):
        weights = ops.cosine_weights(q, k, causal=True, **length)
        return keras.ops.einsum("bhts,bshe->bthe", weights, np.repeat(v, 2, axis=2))

    _, actual = value_and_gradients(mixed, g, q, k)
    expected = attention_gradients("CosFormerAttention", q, k, v, g, How(causal=True), **length)
    assert_close(flat(actual), flat(expected[:2]))


# States.

PIECES = (1, 1, 6, 2, 29, 25)  # 64 steps; the halves of horizon 10 end inside and between them
FORMS = {
    "linear": ops.linear_attention,
    "max_length": ops.causal_cosine_attention,
    "horizon": ops.causal_cosine_attention,
}
LENGTHS = {"linear": {"causal": True}, "max_length": {"max_length": 64}, "horizon": {"horizon": 10}}


def run(form, q, k, v, how, state=None, chunk_size=7):
    options = {**LENGTHS[form], "mask": how.key_mask, "segment_ids": how.segment_ids}
    if form == "linear":
        q, k = ops.elu_plus_one(q), ops.elu_plus_one(k)
    else:
        options["query_mask"] = how.query_mask
    return FORMS[form](q, k, v, **options, state=state, chunk_size=chunk_size)


def cut(x, start, size):
    return None if x is None else x[:, start : start + size]


def run_in_pieces(form, q, k, v, how, pieces=PIECES):
    outputs, state, start = [], None, 0
    for size in pieces:
        arrays = (cut(x, start, size) for x in (q, k, v))
        masks = {name: cut(getattr(how, name), start, size) for name in ("query_mask", "key_mask")}
        out, state = run(form, *arrays, how._replace(**masks), state)
        outputs.append(out)
        start += size
    return keras.ops.concatenate(outputs, axis=1), state


@each([Case(64, causal=True, queries=x, keys=x and "same") for x in (None, "left", "right")])
@pytest.mark.parametrize("form", FORMS)
def test_pieces_equal_the_whole_in_outputs_and_state(form, case, rng):
    q, k, v, _, how = example(case, rng)
    out, state = compiled_on_jax(lambda *arrays: run_in_pieces(form, *arrays, how))(q, k, v)
    expected, expected_state = compiled_on_jax(lambda *arrays: run(form, *arrays, how))(q, k, v)
    assert_close(out, expected)
    assert state.keys() == expected_state.keys()
    for key in state:
        assert_close(state[key], expected_state[key])


@each([Case(64, causal=True, queries=x, keys="same", group=2) for x in ("holes", "empty")])
@pytest.mark.parametrize("form", FORMS)
def test_pieces_equal_the_sum_in_values_and_gradients(form, case, rng):
    *arrays, g, how = example(case, rng)

    def outputs(*arrays):
        return run_in_pieces(form, *arrays, how)[0]

    name = "LinearAttention" if form == "linear" else "CosFormerAttention"
    length = {} if form == "linear" else LENGTHS[form]
    check(outputs, name, arrays, g, how, **length)


@pytest.mark.parametrize("form", FORMS)
def test_a_state_belongs_to_the_first_segment(form, rng):
    *arrays, _, _ = example(Case(64, causal=True), rng)
    ids = np.repeat([[3, 8, 3]], B, axis=0).repeat([30, 14, 20], axis=1)

    def run_in_two(*arrays):
        _, state = run(form, *(x[:, :13] for x in arrays), How())
        return run(form, *(x[:, 13:] for x in arrays), How(segment_ids=ids[:, 13:]), state)

    out, state = compiled_on_jax(run_in_two)(*arrays)
    whole, whole_state = compiled_on_jax(lambda *x: run(form, *x, How(segment_ids=ids)))(*arrays)
    assert_close(out, whole[:, 13:])
    for key in whole_state:
        assert_close(state[key], whole_state[key])


def test_linear_attention_both_ways_sees_the_steps_of_a_state(rng):
    q, k, v, _, _ = example(Case(64), rng)
    phi = ops.elu_plus_one
    _, first = ops.linear_attention(phi(q[:, :13]), phi(k[:, :13]), v[:, :13])
    out, state = ops.linear_attention(phi(q[:, 13:]), phi(k[:, 13:]), v[:, 13:], state=first)
    assert_close(out, attention("LinearAttention", q[:, 13:], k, v))
    assert_close(state["sums"], ops.linear_attention(phi(q), phi(k), v)[1]["sums"])


@pytest.mark.parametrize("horizon", [10, 128])
@pytest.mark.sample(2)
def test_a_stream_of_100_000_steps_stays_near_the_sum(horizon, rng):
    length = 100_003
    q, k, v = (rng.normal(size=(1, length, 1, n)) for n in (D, D, E))
    # In a graph: 20,000 blocks of half a horizon, one by one, take minutes.
    attend = traced(lambda *arrays: ops.causal_cosine_attention(*arrays, horizon=horizon)[0])
    out = attend(*(x.astype("float32") for x in (q, k, v)))
    # No step sees beyond the half-horizon before its own, so the sum may begin at a boundary.
    half = horizon // 2
    start = (length // half - 4) * half
    last = (x.astype("float32")[:, start:] for x in (q, k, v))
    expected = attention("CosFormerAttention", *last, How(causal=True), horizon=horizon)
    assert_close(out[:, start + half :], expected[:, half:])


# Lengths.


@pytest.mark.parametrize("attend", [ops.cosine_attention, ops.causal_cosine_attention])
def test_more_than_max_length_steps_raise(attend, rng):
    q, k, v, _, _ = example(Case(13), rng)
    message = r"13 steps, but max_length=12.*is negative.*larger `max_length`.*with `horizon`"
    with pytest.raises(ValueError, match=message):
        attend(q, k, v, max_length=12)


def test_packed_both_ways_without_max_length_raises(rng):
    q, k, v, _, _ = example(Case(13), rng)
    with pytest.raises(ValueError, match=r"need `max_length`.*Received: max_length=None"):
        ops.cosine_attention(q, k, v, segment_ids=np.zeros((B, 13), "int32"))


def test_heads_that_do_not_divide_raise(rng):
    q, k, v, _, _ = example(Case(13), rng)
    with pytest.raises(ValueError, match="q with 3 heads, k with 2 heads"):
        ops.linear_attention(q, k[:, :, :2], v[:, :, :2])


def test_steps_of_a_stream_beyond_max_length_share_the_last_position(rng):
    q, k, v, _, how = example(Case(13, causal=True), rng)
    attend = ops.causal_cosine_attention

    def run_in_two(q, k, v):
        _, state = attend(q[:, :6], k[:, :6], v[:, :6], max_length=10)
        return attend(q[:, 6:], k[:, 6:], v[:, 6:], max_length=10, state=state)[0]

    out = keras.ops.convert_to_numpy(compiled_on_jax(run_in_two)(q, k, v))
    expected = attention("CosFormerAttention", q, k, v, how, max_length=10)
    assert_close(out[:, :4], expected[:, 6:10])
    assert np.all(np.isfinite(out))


def test_segments_up_to_max_length_may_be_longer_together(rng):
    *arrays, g, how = example(Case(64, causal=True), rng)
    how = how._replace(segment_ids=np.repeat([[0, 1], [5, 4]], 32, axis=1))
    check(cosine(how, max_length=32), "CosFormerAttention", arrays, g, how, max_length=32)


def test_nan_in_masked_keys_and_values_is_never_seen(rng):
    *_, how = case = example(Case(64, causal=True, queries="holes", keys="same"), rng)
    q, k, v = case[:3]
    hidden = ~how.key_mask[:, :, None, None]
    dirty = [np.where(hidden, np.float32("nan"), x) for x in (k, v)]
    clean = [np.where(hidden, np.float32(0), x) for x in (k, v)]
    masks = {"query_mask": how.query_mask, "mask": how.key_mask}
    calls = {
        "linear": lambda k, v: ops.linear_attention(q, k, v, mask=how.key_mask)[0],
        "causal": lambda k, v: ops.linear_attention(q, k, v, mask=how.key_mask, causal=True)[0],
        "cosine": lambda k, v: ops.cosine_attention(q, k, v, **masks),
        "max_length": lambda k, v: ops.causal_cosine_attention(q, k, v, max_length=64, **masks)[0],
        "horizon": lambda k, v: ops.causal_cosine_attention(q, k, v, horizon=10, **masks)[0],
        "softmax": lambda k, v: ops.softmax_attention(q, k, v, causal=True, **masks)[0],
        "weights": lambda k, v: ops.cosine_weights(q, k, causal=True, max_length=64, **masks),
    }
    for call in map(compiled_on_jax, calls.values()):
        expected = keras.ops.convert_to_numpy(call(*clean))
        np.testing.assert_array_equal(call(*dirty), expected)
        assert np.all(np.isfinite(expected))


@pytest.mark.parametrize("causal", [False, True])
def test_nan_in_masked_keys_and_values_does_not_reach_the_gradients(causal, rng):
    case = Case(64, causal=causal, queries="holes", keys="same")
    q, k, v, g, how = example(case, rng)
    hidden = ~how.key_mask[:, :, None, None]
    dirty = [q, *(np.where(hidden, np.float32("nan"), x) for x in (k, v))]
    clean = [q, *(np.where(hidden, np.float32(0), x) for x in (k, v))]
    # The slope of a feature map is the caller's: that of relu is zero at NaN.
    for function in (linear(how, "relu"), cosine(how, max_length=64), softmax(how)):
        _, actual = value_and_gradients(function, g, *dirty)
        _, expected = value_and_gradients(function, g, *clean)
        for x, y in zip(actual, expected, strict=True):
            assert_close(x, y)


def test_no_weight_is_negative_under_a_horizon(rng):
    q, k, _, _, _ = example(Case(257, causal=True, shared=1), rng)
    # A value for each key, so that the outputs are the weights.
    v = np.broadcast_to(np.eye(257, dtype="float32")[None, :, None], (B, 257, 1, 257))
    for horizon in (2, 82):

        def both(q, k, horizon=horizon):
            weights = ops.cosine_weights(q, k, horizon=horizon, causal=True)
            return weights, ops.causal_cosine_attention(q, k, v, horizon=horizon)[0]

        weights, out = map(keras.ops.convert_to_numpy, compiled_on_jax(both)(q, k))
        assert np.min(weights) >= 0
        assert_close(np.swapaxes(out, 1, 2), weights)


@pytest.mark.parametrize("causal", [False, True])
def test_float64_stays_float64(causal, rng):
    case = Case(257, causal=causal, queries="holes", keys="same", chunk_size=32)
    *arrays, g, how = example(case, rng)
    arrays = [x.astype("float64") for x in arrays]
    with float64():
        # On JAX keras.ops.cos gives the float32 cosine of float64 angles.
        cosines = 1e-7 if BACKEND == "jax" else 1e-12
        for name, function, tolerance, length in [
            ("LinearAttention", linear(how), 1e-12, {}),
            ("CosFormerAttention", cosine(how, max_length=300), cosines, {"max_length": 300}),
            ("SoftmaxAttention", softmax(how), 1e-12, {}),
        ]:
            assert compiled_on_jax(function)(*arrays).dtype == "float64"
            check(function, name, arrays, g.astype("float64"), how, tolerance, **length)
