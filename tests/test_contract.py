"""What every attention layer promises, run over all of them."""

import contextlib
import itertools
import re

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from references import WHOLE, How, projected
from support import BACKEND, assert_close, call, compiled, gradients, layer_weights, pure, traced
from variants import (
    BIDIRECTIONAL,
    CANNOT,
    CASES,
    CAUSAL,
    CHUNKED,
    CROSS,
    DIRECTIONS,
    ONE_BUCKET,
    SPARSE,
    STREAMING,
    TOKENS,
    WIDTH,
    build,
    inputs,
    mask_of,
)

from keras_cosattn import Streaming, scope

EXACT = 1e-5  # the same sums in another order, divided by what relu may leave small
LENGTHS = (5, 9, 13)
SIDES = [("left", "left"), ("left", "right"), ("right", "left"), ("right", "right")]

every_case = pytest.mark.parametrize("case", CASES)
every_causal = pytest.mark.parametrize("case", CAUSAL)
every_direction = pytest.mark.parametrize(("case", "causal"), DIRECTIONS)


def model_of(layer, length=None):
    """Causal if the layer can be."""
    x = keras.Input((length, WIDTH))
    return keras.Model(x, layer(x, x, use_causal_mask="causal" not in layer.cannot))


@pytest.mark.parametrize("case", STREAMING)
@pytest.mark.parametrize("pieces", [[13], [1] * 13, [4, 1, 7, 1], [12, 1]], ids=str)
@pytest.mark.sample(15)
def test_whole_equals_pieces_equals_single_steps(case, pieces, rng):
    model = model_of(build(case))
    x = inputs(rng, 2, 13, WIDTH)
    stream = Streaming(model)
    _, state_after_all = stream(x, stream.initial_state(2))
    state, outputs = stream.initial_state(2), []
    for piece in np.split(x, np.cumsum(pieces)[:-1], axis=1):
        y, state = stream(piece, state)
        outputs.append(y)
    assert_close(np.concatenate(outputs, axis=1), call(model, x), EXACT)
    for name, value in state.items():
        assert_close(value, state_after_all[name], EXACT)


@pytest.mark.parametrize("case", CHUNKED)
def test_the_size_of_chunks_changes_nothing(case, rng):
    x = inputs(rng, 2, 13, WIDTH)
    layers = [build(case, chunk_size=n) for n in (64, 1, 5)]
    outputs = []
    for layer in layers:
        layer.set_weights(layers[0].get_weights())
        outputs.append(call(layer, x, x, use_causal_mask=True))
    assert_close(outputs[1], outputs[0], EXACT)
    assert_close(outputs[2], outputs[0], EXACT)


@every_direction
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.sample(3)
def test_padding_equals_truncation(case, causal, side, rng):
    layer, x, mask = build(case), inputs(rng, 3, 13, WIDTH), mask_of(LENGTHS, 13, side)
    padded = np.asarray(call(layer, x, x, query_mask=mask, value_mask=mask, use_causal_mask=causal))
    for i, real in enumerate(mask):
        alone = x[i : i + 1, real]
        expected = call(layer, alone, alone, use_causal_mask=causal)
        assert_close(padded[i : i + 1][:, real], expected, EXACT)
        one, real_one = x[i : i + 1], mask[i : i + 1]
        one = call(
            layer, one, one, query_mask=real_one, value_mask=real_one, use_causal_mask=causal
        )
        assert_close(np.asarray(one)[:, real], expected, EXACT)


@pytest.mark.parametrize(("case", "causal"), CROSS)
@pytest.mark.parametrize("sides", SIDES, ids=str)
@pytest.mark.sample(3)
def test_padding_equals_truncation_in_cross_attention(case, causal, sides, rng):
    layer = build(case, WIDTH, 9)
    x, y = inputs(rng, 3, 13, WIDTH), inputs(rng, 3, 17, 9)
    q_mask, k_mask = mask_of(LENGTHS, 13, sides[0]), mask_of((17, 3, 8), 17, sides[1])
    padded = np.asarray(
        call(layer, x, y, query_mask=q_mask, value_mask=k_mask, use_causal_mask=causal)
    )
    for i in range(3):
        expected = call(
            layer, x[i : i + 1, q_mask[i]], y[i : i + 1, k_mask[i]], use_causal_mask=causal
        )
        assert_close(padded[i : i + 1][:, q_mask[i]], expected, EXACT)


@every_causal
@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.sample(4)
def test_the_future_never_leaks(case, jit, rng):
    x, mask = inputs(rng, 2, 13, WIDTH), mask_of((12, 13), 13)
    layers = [build(case, dropout=rate, seed=1) for rate in (0.0, 0.4)]

    def run(x):
        outputs = []
        flags = itertools.product(layers, (False, True), (False, True))
        # Compiled by XLA, two of the eight: each is a program of its own.
        for layer, scores, masked in (
            [(layers[1], False, True), (layers[0], True, False)] if jit else flags
        ):
            found = pure(
                layer, x, x, query_mask=mask if masked else None,
                value_mask=mask if masked else None, return_attention_scores=scores,
                use_causal_mask=True, training=True,
            )  # fmt: skip
            outputs.append(found[0] if scores else found)
        return outputs

    run = compiled(run) if jit else run
    changed = x.copy()
    changed[:, 8:] += 5
    for before, after in zip(run(x), run(changed), strict=True):
        assert_close(after[:, :8], before[:, :8], EXACT)
        assert np.abs(np.asarray(after - before)[:, 8:12]).max() > 1e-3  # the present does count


@every_direction
@pytest.mark.parametrize("junk", [1e4, np.nan], ids=str)
@pytest.mark.sample(3)
def test_masked_keys_never_leak(case, causal, junk, rng):
    layer = build(case)
    x, y = inputs(rng, 2, 13, WIDTH), inputs(rng, 2, 13, WIDTH)
    mask = rng.random((2, 13)) < 0.6
    other = np.where(mask[..., None], y, np.float32(junk))
    before, after = (
        layer(v if "cross" in CANNOT[case] else x, v, value_mask=mask, use_causal_mask=causal)
        for v in (y, other)
    )
    assert_close(after, before, 0)


@every_direction
def test_nothing_to_attend_to_gives_zero(case, causal, rng):
    layer, x = build(case, use_bias=False), inputs(rng, 2, 13, WIDTH)
    mask = np.ones((2, 13), bool)
    mask[0] = False
    outputs, weights = call(
        layer, x, x, value_mask=mask, use_causal_mask=causal, return_attention_scores=True
    )
    assert not np.any(np.asarray(outputs)[0])
    assert not np.any(np.asarray(weights)[0])
    found = np.any(np.asarray(outputs)[1], axis=-1)
    assert np.mean(found) > 0.5 if case in SPARSE else np.all(found)  # sparse: chosen nowhere


@every_direction
@pytest.mark.sample(7)
def test_implicit_masks_count(case, causal, rng):
    layer, x = build(case), inputs(rng, 3, 13, WIDTH)
    mask = mask_of(LENGTHS, 13)
    x[~mask] = 0

    def implicit(x):
        masked = keras.layers.Masking()(x)
        return layer(masked, masked, use_causal_mask=causal)

    expected = call(layer, x, x, query_mask=mask, value_mask=mask, use_causal_mask=causal)
    assert np.abs(np.asarray(expected - call(layer, x, x, use_causal_mask=causal))).max() > 1e-3
    assert_close(implicit(x), expected, EXACT)
    assert_close(compiled(implicit)(x), expected, EXACT)
    functional = keras.Input((None, WIDTH))
    model = keras.Model(functional, implicit(functional))
    assert_close(model(x), expected, EXACT)


USES = {
    "both ways": {},
    "causal": {"use_causal_mask": True},
    "cross": {"key": np.ones((1, 3, WIDTH), "float32")},
    "packed": {"segment_ids": np.zeros((1, 3), "int32")},
    "stream": {"use_causal_mask": True},
}


@pytest.mark.parametrize(("case", "use"), [(c, use) for c, uses in CANNOT.items() for use in uses])
def test_what_a_layer_cannot_do_is_refused_with_the_reason(case, use, rng):
    layer, x = build(case), inputs(rng, 1, 3, WIDTH)
    causal = "both ways" in CANNOT[case] and use != "both ways"
    call = {"use_causal_mask": causal, **USES[use]}
    stream = scope.opened(scope.Stream()) if use == "stream" else contextlib.nullcontext()
    reason = CANNOT[case]["causal" if use == "stream" and "causal" in CANNOT[case] else use]
    with stream, pytest.raises(ValueError, match=f"cannot .*{re.escape(reason)}"):
        layer(x, x, **call)


@pytest.mark.parametrize(
    ("case", "causal"), [d for d in DIRECTIONS if "packed" not in CANNOT[d[0]]]
)
@pytest.mark.sample(3)
def test_packed_equals_alone(case, causal, rng):
    layer, x = build(case), inputs(rng, 1, 30, WIDTH)
    lengths = [1, 12, 3, 14]
    ids = np.repeat([7, 2, 2 + 5, 2], lengths)[None]
    packed = call(layer, x, x, segment_ids=ids, use_causal_mask=causal)
    alone = [
        call(layer, part, part, use_causal_mask=causal)
        for part in np.split(x, np.cumsum(lengths)[:-1], axis=1)
    ]
    assert_close(packed, np.concatenate(alone, axis=1), EXACT)


@pytest.mark.parametrize(
    ("case", "causal"),
    [d for d in DIRECTIONS if CASES[d[0]][0].__name__ not in WHOLE and d[0] not in TOKENS],
)
def test_weights_mix_the_values_to_the_output(case, causal, rng):
    layer, x = build(case), inputs(rng, 2, 13, WIDTH)
    mask = mask_of((13, 6), 13, "left")
    options = {"query_mask": mask, "value_mask": mask, "use_causal_mask": causal}
    outputs, weights = call(layer, x, x, return_attention_scores=True, **options)
    order = 1e-6 if BACKEND == "torch" else 0  # a kernel without weights sums in another order
    assert_close(outputs, call(layer, x, x, **options), order)
    assert weights.shape == (2, 6, 13, 13)
    values = np.repeat(np.asarray(layer.value_dense(x)), 2, axis=2)
    mixed = np.einsum("bhts,bshe->bthe", np.asarray(weights), values)
    assert_close(outputs, layer.output_dense(mixed), 1e-5)


@every_direction
@pytest.mark.sample(5)
def test_a_padding_mask_of_attention_shape_is_a_mask_of_the_values(case, causal, rng):
    layer, mask = build(case), mask_of(LENGTHS, 13, "left")
    x = keras.ops.convert_to_tensor(inputs(rng, 3, 13, WIDTH))
    expected = call(layer, x, x, value_mask=mask, use_causal_mask=causal)
    found = layer(
        query=x, value=x, attention_mask=mask[:, None].astype("int32"), use_causal_mask=causal
    )
    assert_close(found, expected, EXACT)
    if causal or "cross" in CANNOT[case]:  # then one mask serves both sides
        both = call(layer, x, x, query_mask=mask, value_mask=mask, use_causal_mask=causal)
        assert_close(found, both, EXACT)


@every_direction
@pytest.mark.sample(5)
def test_that_two_arguments_are_one_object_changes_nothing(case, causal, rng):
    layer, mask = build(case), mask_of(LENGTHS, 13, "left")
    x = keras.ops.convert_to_tensor(inputs(rng, 3, 13, WIDTH))
    for masks in ({"value_mask": mask}, {"query_mask": mask, "value_mask": mask}, {}):

        def run(query, value, masks=masks):
            return layer(query, value, use_causal_mask=causal, **masks)

        expected = run(x, x)
        assert_close(run(x, keras.ops.copy(x)), expected, EXACT)
        assert_close(traced(run)(x, x), expected, EXACT)


@every_direction
@pytest.mark.sample(3)
def test_symbolic_shapes_are_the_real_ones(case, causal, rng):
    cross = "cross" not in CANNOT[case]
    width = WIDTH if case in TOKENS else 8
    layer = build(case, WIDTH, 9 if cross else WIDTH, output_shape=width)
    pairs = []
    for x, y in [
        (keras.Input((13, WIDTH)), keras.Input((17, 9))),
        (inputs(rng, 2, 13, WIDTH), inputs(rng, 2, 17, 9)),
    ]:
        value = y if cross else x
        pairs.append(layer(x, value, use_causal_mask=causal, return_attention_scores=True))
    symbolic, real = pairs
    assert [s.shape[1:] for s in symbolic] == [r.shape[1:] for r in real]
    assert symbolic[0].shape[0] is None


@every_case
def test_saves_and_loads(case, rng, tmp_path):
    model = model_of(build(case, dropout=0.1, seed=3))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = inputs(rng, 2, 13, WIDTH)
    assert_close(call(loaded, x), call(model, x), 0)


@every_case
def test_from_config_gives_the_same_layer(case):
    width = WIDTH if case in TOKENS else 8
    layer = build(case, dropout=0.1, seed=3, output_shape=width, kernel_regularizer="l2")
    copy = type(layer).from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()


@every_case
@pytest.mark.parametrize(
    ("jit", "length"),
    [
        (True, 13),
        (False, None),
        pytest.param(True, None, marks=pytest.mark.slow),
        pytest.param(False, 13, marks=pytest.mark.slow),
    ],
)
@pytest.mark.sample(31)
def test_trains(case, jit, length, rng):
    model = keras.Sequential([model_of(build(case, dropout=0.1), length), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.03), "mse", jit_compile=jit)
    data = inputs(rng, 8, 13, WIDTH)
    losses = model.fit(data, data[..., :1], epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]


@every_case
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("length", [257, pytest.param(4096, marks=pytest.mark.slow)])
@pytest.mark.sample(3)
def test_half_precision_is_float32_to_its_precision(case, policy, length, rng):
    precision = {"mixed_float16": 2e-3, "mixed_bfloat16": 2e-2}[policy]  # 11 and 8 bits
    # With all features positive: where a relu is about to close, a rounding opens or closes it.
    positive = keras.initializers.Constant(3)
    longer = {"max_length": 4096} if "max_length" in CASES[case][1] else {}
    longer |= ONE_BUCKET.get(CASES[case][0].__name__, {})
    if "norm_epsilon" in build(case).get_config():
        # A norm divides by the size of a head, here 0.01 to 500. In a few of 8,192 steps the sums
        # cancel, and any rounding becomes large, also that of the inputs alone in float32.
        longer["norm_epsilon"] = 1e4
    layer, x = build(case, bias_initializer=positive, **longer), inputs(rng, 2, length, WIDTH)
    half = build(case, dtype=policy, **longer)
    half.set_weights(layer.get_weights())
    causal = case in CAUSAL
    outputs = call(half, x, x, use_causal_mask=causal)
    assert keras.backend.standardize_dtype(outputs.dtype) == policy.removeprefix("mixed_")
    outputs = keras.ops.cast(outputs, "float32")
    assert_close(outputs, call(layer, x, x, use_causal_mask=causal), 4 * precision)


@every_case
@pytest.mark.sample(5)
def test_lora_and_int8_reach_the_projections(case, rng):
    layer, x = build(case), inputs(rng, 2, 13, WIDTH)
    causal = case in CAUSAL
    before = layer(x, x, use_causal_mask=causal)
    dense = (part for part in layer._flatten_layers() if hasattr(part, "enable_lora"))
    next(dense).enable_lora(2)
    assert_close(layer(x, x, use_causal_mask=causal), before, EXACT)
    model = model_of(build(case, **ONE_BUCKET.get(CASES[case][0].__name__, {})))
    before = call(model, x)
    model.quantize("int8")
    after = call(model, x)
    assert_close(after, before, 0.1)  # int8 weights and activations in four projections
    assert np.any(np.asarray(after) != np.asarray(before))


@every_direction
@settings(max_examples=5, deadline=None, derandomize=True)
@given(data=st.data())
@pytest.mark.sample(3)
def test_any_shapes_and_masks_match_the_reference(case, causal, data):
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    b, t, s = (data.draw(st.integers(1, n)) for n in (3, 20, 20))
    masks = [
        np.array(data.draw(st.lists(st.booleans(), min_size=b * n, max_size=b * n))).reshape(b, n)
        if data.draw(st.booleans())
        else None
        for n in (t, s)
    ]
    x, y = inputs(rng, b, t, WIDTH), inputs(rng, b, s, 9)
    if causal and masks[0] is None and masks[1] is not None:
        masks[0] = np.ones((b, t), bool)  # without it the call is one of self-attention
    if "cross" in CANNOT[case]:
        y, masks = x, [masks[0], masks[0]]
    layer = build(case, WIDTH, y.shape[-1])
    found = call(layer, x, y, query_mask=masks[0], value_mask=masks[1], use_causal_mask=causal)
    how = How(query_mask=masks[0], key_mask=masks[1], causal=causal)
    name, arguments = type(layer).__name__, CASES[case][1]
    assert_close(found, projected(name, layer_weights(layer), x, y, how=how, **arguments), 1e-5)


@pytest.mark.parametrize("case", sorted(set(BIDIRECTIONAL) - SPARSE))
def test_every_key_matters_in_both_directions(case, rng):
    layer, x = build(case), inputs(rng, 1, 13, WIDTH)
    (slope,) = gradients(lambda x: keras.ops.sum(layer(x, x)[:, 6] ** 2), x)
    assert np.all(np.any(slope != 0, axis=-1))
