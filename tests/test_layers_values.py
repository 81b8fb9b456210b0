"""Every layer equals the paper's sum between its projections, in values and all gradients."""

import keras
import numpy as np
import pytest
import references
from references import How, projected
from support import (
    BACKEND,
    assert_close,
    compiled_on_jax,
    layer_weights,
    pure,
    random_mask,
    random_segments,
    value_and_gradients,
)
from variants import PLAIN, layer_of

import keras_cosattn

B, HEADS, SHARED, D, E = 2, 6, 3, 5, 4
QUERY, VALUE, KEY, OUTPUT = 7, 11, 9, 10  # widths of the inputs and of the output

VARIANTS = {
    "softmax": ("SoftmaxAttention", {}),
    "softmax_capped": ("SoftmaxAttention", {"logit_soft_cap": 20.0}),
    "elu+1": ("LinearAttention", {"feature_map": "elu+1"}),
    "elu+1_norm": ("LinearAttention", {"use_query_key_norm": True}),
    "relu": ("LinearAttention", {"feature_map": "relu"}),
    "squared_relu": ("LinearAttention", {"feature_map": "squared_relu"}),
    "identity": ("LinearAttention", {"feature_map": "identity"}),
    "papers_length": ("CosFormerAttention", {}),
    "max_length": ("CosFormerAttention", {"max_length": 1003}),
    "horizon": ("CosFormerAttention", {"horizon": 26}),
    # With a memory gradients are not those of the sum: tests/test_recurrent_memory.py.
    "compressive": ("CompressiveMemoryAttention", {"segment_length": 5}),
    "compressive_delta": (
        "CompressiveMemoryAttention",
        {"segment_length": 8, "delta_rule": True},
    ),
    "no_memory": ("RecurrentMemoryAttention", {"segment_length": 5, "memory_length": 0}),
    "memory_tokens": (
        "RecurrentMemoryAttention",
        {"segment_length": 6, "memory_length": 0, "num_memory_tokens": 3},
    ),
    "routed": (
        "RoutedAttention",
        {
            "paths": [("SoftmaxAttention", {}), ("LinearAttention", {}), ("SoftmaxAttention", {})],
            "routing_iterations": 2,
        },
    ),
    "elu+1_conv": ("LinearAttention", {"feature_map": "elu+1", "conv_size": 3}),
    "max_length_conv": ("CosFormerAttention", {"max_length": 300, "conv_size": 4}),
    "low_rank": ("LowRankAttention", {"max_length": 300, "rank": 6, "share_heads": False}),
    "low_rank_shared": (
        "LowRankAttention",
        {"max_length": 64, "rank": 20, "share_key_value": True},
    ),
    "nystrom": ("NystromAttention", {"num_landmarks": 4}),
    "nystrom_conv": ("NystromAttention", {"num_landmarks": 3, "conv_kernel_size": 3}),
    "segmented": ("SegmentedAttention", {"segment_length": 5, "look_back": 1}),
    "segmented_mean": (
        "SegmentedAttention",
        {"segment_length": 4, "look_back": 1, "summaries": "mean"},
    ),
    "segmented_attention": ("SegmentedAttention", {"segment_length": 7, "summaries": "attention"}),
    "windowed_linear": ("WindowedLinearAttention", {"window": 6}),
    "windowed_linear_elu": (
        "WindowedLinearAttention",
        {"window": 5, "feature_map": "elu+1", "block_size": 9},
    ),
    "windowed_linear_chunks": ("WindowedLinearAttention", {"window": 9, "block_size": 200}),
    "windowed_linear_hedgehog": (
        "WindowedLinearAttention",
        {"window": 6, "feature_map": keras_cosattn.HedgehogFeatures()},
    ),
    "taylor": ("LinearAttention", {"feature_map": "taylor"}),
    "positive": ("PerformerAttention", {"num_random_features": 12, "seed": 3}),
    "trigonometric": (
        "PerformerAttention",
        {
            "num_random_features": 48,
            "features": keras_cosattn.TrigonometricFeatures(1.5),
            "seed": 5,
        },
    ),
    "lsh": (
        "LSHAttention",
        {"num_hashes": 3, "num_buckets": 4, "bucket_size": 5, "seed": 3},
    ),
    "clusters": ("ClusteredRoutingAttention", {"num_clusters": 3, "cluster_size": 5, "seed": 3}),
    "papers_clusters": (
        "ClusteredRoutingAttention",
        {"num_clusters": 5, "cluster_size": 4, "strict": False, "seed": 3},
    ),
    "decayed_cosformer": ("DecayedCosFormerAttention", {"horizon": 16}),
    "retention": ("RetentionAttention", {}),
    "retention_conv": ("RetentionAttention", {"decay": "lightning", "conv_size": 3}),
    "gated_linear": ("GatedLinearAttention", {"gate_low_rank_dim": 3}),
    "gated_linear_conv": ("GatedLinearAttention", {"gate_logit_normalizer": 0.5, "conv_size": 2}),
    "delta_net": ("DeltaRuleAttention", {}),
    "gated_delta_net": ("DeltaRuleAttention", {"gated": True, "allow_neg_eigval": True}),
    "kimi_delta": ("DeltaRuleAttention", {"gated": "channel", "conv_size": None}),
    "mamba2": ("Mamba2Attention", {"num_groups": 3}),
    "hierarchical_two": ("HierarchicalAttention", {"unit_sizes": (8,), "aggregator": "mean"}),
    "hierarchical_three": ("HierarchicalAttention", {"unit_sizes": (5, 4)}),
}

# t, s (None: self-attention), grouped heads, how it is called.
CALLS = {
    "self_1": (1, None, False, {}),
    "self_13": (13, None, True, {}),
    "self_padded_64": (64, None, False, {"queries": "left"}),
    "cross_13_64": (13, 64, True, {"key": True}),
    "cross_padded_64_13": (64, 13, False, {"queries": "right", "values": "holes"}),
    "packed_64": (64, None, True, {"packed": True}),
    "packed_padded_257": (257, None, False, {"packed": True, "queries": "holes"}),
    "causal_1": (1, None, False, {}),
    "causal_257": (257, None, True, {}),
    "causal_padded_64": (64, None, True, {"queries": "left"}),
    "causal_empty_13": (13, None, False, {"queries": "empty"}),
    "causal_cross_64_13": (64, 13, False, {"key": True}),
    "causal_cross_padded_13_64": (13, 64, True, {"queries": "holes", "values": "left"}),
    "causal_packed_64": (64, None, False, {"packed": True}),
    "causal_packed_padded_64": (64, None, True, {"packed": True, "queries": "right"}),
}

QUICK = {"self_padded_64", "cross_13_64", "causal_257", "causal_packed_padded_64"}
LOOPS = {("compressive_delta", "causal_257"), ("memory_tokens", "causal_257")}
"""Calls that would loop over dozens of segments, step by step."""


def can(variant, call):
    name, own = VARIANTS[variant]
    cannot = layer_of(getattr(keras_cosattn, name), HEADS, D, **own).cannot
    uses = {use for use in ("packed", "cross", "causal") if use in call} | (
        set() if "causal" in call else {"both ways"}
    )
    return uses.isdisjoint(cannot)


def each_call():
    """Every call of every variant; of the newer ones, and where JAX compiles, most are slow."""
    every = 4 if BACKEND == "jax" else 1
    pairs = [(v, c) for v in VARIANTS for c in CALLS if can(v, c)]
    for i, (variant, call) in enumerate(pairs):
        second = (list(VARIANTS).index(variant) + list(CALLS).index(call)) % 2
        quick = VARIANTS[variant][0] in PLAIN or (call in QUICK and not second)
        quick = quick and (variant, call) not in LOOPS
        marks = [] if quick and i % every == 0 else [pytest.mark.slow]
        yield pytest.param(variant, call, id=f"{variant}-{call}", marks=marks)


def build(variant, shapes, rng, grouped, **arguments):
    """A layer with random weights and biases, and its reference's name and arguments."""
    name, own = VARIANTS[variant]
    shared = SHARED if grouped else None
    cls = getattr(keras_cosattn, name)
    layer = layer_of(cls, HEADS, D, value_dim=E, num_key_value_heads=shared, **own, **arguments)
    layer.build(*shapes)
    for variable in layer.trainable_variables:
        variable.assign(rng.normal(size=variable.shape, scale=0.4))
    if layer.use_bias and name in {*PLAIN, "DecayedCosFormerAttention"}:
        # Two features are surely positive: with relu, the output jumps where none is. All are
        # with identity: weights of both signs could cancel, and their sum is divided by.
        positive = slice(None) if variant == "identity" else slice(2)
        for dense in (layer.query_dense, layer.key_dense):
            bias = keras.ops.convert_to_numpy(dense.bias).copy()
            bias[:, positive] += 5
            dense.bias.assign(bias)
    return layer, name, own


def example(t, s, called, rng):
    """The inputs `[query, value or None, key or None]`, the call's masks, and the reference's."""
    inputs = [rng.normal(size=(B, t, QUERY)), None, None]
    if s is not None:
        inputs[1] = rng.normal(size=(B, s, VALUE))
    if called.get("key"):
        inputs[2] = rng.normal(size=(B, s, KEY))
    inputs = [None if x is None else x.astype("float32") for x in inputs]
    query_mask = random_mask(rng, called.get("queries"), B, t)
    value_mask = query_mask if s is None else random_mask(rng, called.get("values"), B, s)
    ids = random_segments(rng, B, t) if called.get("packed") else None
    masks = {"segment_ids": ids, "use_causal_mask": called.get("causal", False)}
    masks |= {"value_mask": value_mask, "query_mask": query_mask}
    return inputs, masks, How(query_mask, value_mask, ids, causal=masks["use_causal_mask"])


def gradients_along(derivatives, directions):
    return [np.sum(np.float64(x) * along) for x, along in zip(derivatives, directions, strict=True)]


def slope(function, arrays, i, along, step=1e-6):
    """The derivative of `function(*arrays)` where array i moves along a direction."""

    def at(change):
        moved = list(arrays)
        moved[i] = arrays[i] + change * along
        return function(*moved)

    return (at(step) - at(-step)) / (2 * step)


def check(layer, name, own, inputs, masks, how, rng):
    """Values, and the derivatives along a random direction of each input and each weight."""
    present = [x for x in inputs if x is not None]
    starts = [keras.ops.convert_to_numpy(x) for x in layer.trainable_variables]

    def spread(arrays):
        """`[query, value, key]` and the weights, out of all that is differentiated."""
        given = iter(arrays[: len(present)])
        return [None if x is None else next(given) for x in inputs], arrays[len(present) :]

    def outputs(*arrays):
        (query, value, key), weights = spread(arrays)
        state = [x.value for x in layer.non_trainable_variables]
        value = query if value is None else value
        return layer.stateless_call(list(weights), state, query, value, key=key, **masks)[0]

    def expected(*arrays):
        (query, value, key), trainable = spread(arrays)
        value = query if value is None else value
        weights = layer_weights(layer, trainable)
        return projected(name, weights, query, value, key, how, **own)

    arrays = [*present, *starts]
    exact = [np.float64(x) for x in arrays]
    values = expected(*exact)
    g = rng.normal(size=values.shape).astype("float32")
    actual, derivatives = value_and_gradients(outputs, g, *arrays)
    assert_close(actual, values)
    directions = [rng.normal(size=x.shape) for x in arrays]
    slopes = [
        slope(lambda *arrays: np.sum(expected(*arrays) * g), exact, i, along)
        for i, along in enumerate(directions)
    ]
    # Together: softmax does not change with the key's bias, so that derivative is zero.
    assert_close(gradients_along(derivatives, directions), slopes)


@pytest.mark.parametrize(("variant", "call"), list(each_call()))
@pytest.mark.sample(3)
def test_layer_equals_the_sum(variant, call, rng):
    t, s, grouped, called = CALLS[call]
    called = {**called, "causal": "causal" in call}
    inputs, masks, how = example(t, s, called, rng)
    shapes = [x.shape for x in inputs if x is not None]
    layer, name, own = build(variant, shapes if s else shapes * 2, rng, grouped)
    check(layer, name, own, inputs, masks, how, rng)


@pytest.mark.parametrize("variant", ["softmax", "elu+1", "papers_length", "max_length", "horizon"])
def test_long_layer_equals_the_sum(variant, rng):
    inputs, masks, how = example(1000, None, {"causal": True}, rng)
    layer, name, own = build(variant, [(B, 1000, QUERY)] * 2, rng, True)
    x = inputs[0]
    out = compiled_on_jax(lambda x: pure(layer, x, x, **masks))(x)
    assert_close(out, projected(name, layer_weights(layer), x, x, how=how, **own))


@pytest.mark.parametrize("variant", ["softmax", "elu+1", "max_length"])
def test_layer_without_bias_and_with_another_width_equals_the_sum(variant, rng):
    inputs, masks, how = example(13, 17, {"key": True, "values": "right"}, rng)
    shapes = [x.shape for x in inputs]
    layer, name, own = build(variant, shapes, rng, True, use_bias=False, output_shape=OUTPUT)
    assert len(layer.get_weights()) == 4
    check(layer, name, own, inputs, masks, how, rng)


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_softmax_layer_with_any_mask_equals_the_sum(rank, rng):
    inputs, masks, how = example(13, 17, {"values": "right"}, rng)
    mask = rng.random((B, HEADS, 13, 17)[4 - rank :] if rank != 3 else (B, 13, 17)) < 0.6
    layer, name, own = build("softmax", [x.shape for x in inputs[:2]], rng, True)
    masks, how = masks | {"attention_mask": mask}, how._replace(attention_mask=mask)
    check(layer, name, own, inputs, masks, how, rng)


@pytest.mark.parametrize("variant", ["softmax", "softmax_capped", "elu+1", "max_length", "horizon"])
def test_scores_are_the_weights_of_the_sum(variant, rng):
    inputs, masks, how = example(13, None, {"causal": True, "queries": "holes"}, rng)
    x = keras.ops.convert_to_tensor(inputs[0])
    layer, name, own = build(variant, [x.shape] * 2, rng, True)
    _, scores = layer(x, x, return_attention_scores=True, **masks)
    weights = layer_weights(layer)
    q, k = (
        np.einsum("btm,mhd->bthd", np.float64(inputs[0]), weights[part][0]) + weights[part][1]
        for part in ("query", "key")
    )
    expected = references.normalise(references.REFERENCES[name](q, k, how, **own))
    assert_close(scores, expected)


@pytest.mark.parametrize("variant", ["elu+1", "max_length", "horizon"])
def test_packed_causal_layer_takes_a_mask_for_each_side(variant, rng):
    called = {"causal": True, "packed": True, "queries": "holes"}
    inputs, masks, how = example(64, None, called, rng)
    layer, name, own = build(variant, [(B, 64, QUERY)] * 2, rng, True)
    masks |= {"query_mask": how.query_mask, "value_mask": how.key_mask.copy()}
    check(layer, name, own, inputs, masks, how, rng)


@pytest.mark.parametrize("conversion", ["from_numpy", "to_bfloat16"])
def test_a_value_mask_is_for_both_sides_of_a_causal_call_after_conversion(conversion, rng):
    x, mask = rng.normal(size=(B, 13, QUERY)).astype("float32"), random_mask(rng, "left", B, 13)
    x = x if conversion == "from_numpy" else keras.ops.convert_to_tensor(x)
    dtype = "mixed_bfloat16" if conversion == "to_bfloat16" else "float32"
    layer = keras_cosattn.LinearAttention(2, D, dtype=dtype)
    out = layer(x, x, value_mask=mask, use_causal_mask=True)
    out = keras.ops.convert_to_numpy(keras.ops.cast(out, "float32"))
    assert not np.any(out[~mask])
    assert np.any(out[mask])


BESIDE = {
    "conv": (lambda: keras_cosattn.CausalConv1D(5, 4), references.causal_conv1d, {}),
    "dilated_conv": (
        lambda: keras_cosattn.CausalConv1D(5, 4, dilation_rate=3),
        references.causal_conv1d,
        {"dilation_rate": 3},
    ),
    "depthwise_conv": (
        lambda: keras_cosattn.CausalDepthwiseConv1D(4, depth_multiplier=3, dilation_rate=2),
        references.causal_depthwise_conv1d,
        {"dilation_rate": 2},
    ),
    "running_mean": (keras_cosattn.RunningMean, references.running_mean, {}),
    "position_embedding": (
        lambda: keras_cosattn.PositionEmbedding(15),
        references.position_embedding,
        {},
    ),
}


@pytest.mark.parametrize("kind", [None, "left", "right", "holes", "empty"])
@pytest.mark.parametrize("name", BESIDE)
def test_layers_beside_attention_equal_their_formulas(name, kind, rng):
    make, formula, arguments = BESIDE[name]
    x, mask = rng.normal(size=(B, 13, QUERY)).astype("float32"), random_mask(rng, kind, B, 13)
    real = np.ones((B, 13), bool) if mask is None else mask
    layer = make()
    layer.build(x.shape)
    layer.set_weights([rng.normal(size=w.shape) for w in layer.get_weights()])

    def outputs(x):
        # What a masked step gives is not read.
        return keras.ops.where(real[:, :, None], pure(layer, x, mask=mask), 0.0)

    def expected(x):
        out = formula(x, *map(np.float64, layer.get_weights()), **arguments, mask=mask)
        return np.where(real[:, :, None], out, 0.0)

    values = expected(x)
    g, directions = rng.normal(size=values.shape).astype("float32"), rng.normal(size=(8, *x.shape))
    actual, derivatives = value_and_gradients(outputs, g, x)
    assert_close(actual, values)
    slopes = [
        slope(lambda x: np.sum(expected(x) * g), [np.float64(x)], 0, along) for along in directions
    ]
    assert_close(gradients_along(derivatives * 8, directions), slopes)
