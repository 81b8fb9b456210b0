"""What single layers promise beyond the contract: parity with Keras, and edges of their own."""

import keras
import numpy as np
import pytest
from support import BACKEND, assert_close
from variants import CASES, CAUSAL, PLAIN, WIDTH, build, inputs, layer_of, make

from keras_cosattn import CosFormerAttention, LinearAttention, SoftmaxAttention


@pytest.mark.parametrize("causal", [False, True])
def test_softmax_is_multi_head_attention(causal, rng):
    theirs = keras.layers.MultiHeadAttention(6, 5, value_dim=7, bias_initializer="normal")
    ours = SoftmaxAttention(6, 5, value_dim=7)
    x, y = inputs(rng, 2, 13, 11), inputs(rng, 2, 9, 8)
    expected, scores = theirs(x, y, return_attention_scores=True, use_causal_mask=causal)
    ours(x, y)
    ours.set_weights(theirs.get_weights())
    outputs, weights = ours(x, y, return_attention_scores=True, use_causal_mask=causal)
    assert_close(outputs, expected, 1e-5)
    assert_close(weights, scores, 1e-5)


@pytest.mark.parametrize(
    "case",
    [
        case
        for case, (cls, arguments) in CASES.items()
        if cls.__name__ in PLAIN and "use_query_key_norm" not in arguments
    ],
)
def test_weights_of_multi_head_attention_load(case):
    theirs = keras.layers.MultiHeadAttention(6, 5, value_dim=7)
    theirs.build((None, None, WIDTH), (None, None, WIDTH))
    ours = build(case, num_key_value_heads=None)
    ours.set_weights(theirs.get_weights())
    for mine, given in zip(ours.weights, theirs.weights, strict=True):
        assert (mine.name, mine.shape) == (given.name, given.shape)


def test_softmax_is_grouped_query_attention(rng):
    theirs = keras.layers.GroupQueryAttention(5, 6, 3, bias_initializer="normal")
    x = inputs(rng, 2, 13, 11)
    expected = theirs(x, x)
    ours = SoftmaxAttention(6, 5, num_key_value_heads=3)
    ours(x, x)
    ours.set_weights(theirs.get_weights())
    assert_close(ours(x, x), expected, 1e-5)


FIRST = {cls.__name__: case for case, (cls, _) in reversed(CASES.items())}
NOT_NORMED = {"LSHAttention", "ClusteredRoutingAttention", "HierarchicalAttention"}


@pytest.mark.parametrize(
    "variant",
    [case for name, case in FIRST.items() if name not in {*NOT_NORMED, "RoutedAttention"}]
    + ["RecurrentMemoryAttention-tokens"],
)
@pytest.mark.sample(3)
def test_queries_and_keys_that_are_normalised_have_no_scale(variant, rng):
    layer, x = build(variant, use_query_key_norm=True), 10 * inputs(rng, 2, 9, WIDTH)
    before = layer(x, x, use_causal_mask=variant in CAUSAL)
    for dense in (layer.query_dense, layer.key_dense):
        for weight in dense.weights:
            weight.assign(8 * weight)
    assert_close(layer(x, x, use_causal_mask=variant in CAUSAL), before)
    layer.query_norm.scale.assign(8 * layer.query_norm.scale)
    layer.key_norm.scale.assign(-layer.key_norm.scale)
    after = layer(x, x, use_causal_mask=variant in CAUSAL)
    assert np.abs(np.asarray(after - before)).max() > 1e-3


@pytest.mark.parametrize("name", sorted(NOT_NORMED))
def test_a_layer_without_a_projection_for_each_refuses_norms(name):
    with pytest.raises(ValueError, match=f"{name}: `use_query_key_norm`.*_norm=True"):
        make(FIRST[name], use_query_key_norm=True)


@pytest.mark.parametrize("cap", [0, -2.5, "x"])
def test_a_cap_of_scores_is_above_zero(cap):
    with pytest.raises(ValueError, match=f"`logit_soft_cap` must be.*={cap!r}"):
        SoftmaxAttention(2, 4, logit_soft_cap=cap)


def test_a_registered_feature_map_saves_and_streams(rng, tmp_path):
    @keras.saving.register_keras_serializable("test")
    def doubled(x):
        return keras.ops.concatenate([keras.ops.relu(x), keras.ops.relu(-x)], axis=-1)

    x = keras.Input((None, WIDTH))
    layer = LinearAttention(2, 3, feature_map=doubled)
    model = keras.Model(x, layer(x, x, use_causal_mask=True))
    model.save(tmp_path / "model.keras")
    data = inputs(rng, 2, 13, WIDTH)
    assert_close(keras.models.load_model(tmp_path / "model.keras")(data), model(data), 0)
    from keras_cosattn import Streaming

    stream = Streaming(model)
    assert stream.state_spec == {"linear_attention_0_sums": ((2, 6, 4), "float32")}


def test_within_the_first_half_a_horizon_is_a_max_length(rng):
    x = inputs(rng, 2, 8, WIDTH)
    bounded, endless = CosFormerAttention(2, 3, max_length=16), CosFormerAttention(2, 3, horizon=16)
    expected = bounded(x, x, use_causal_mask=True)
    endless(x, x, use_causal_mask=True)
    endless.set_weights(bounded.get_weights())
    assert_close(endless(x, x, use_causal_mask=True), expected, 1e-6)


def test_no_weight_is_negative_however_long_the_input(rng):
    layer, x = CosFormerAttention(2, 3, horizon=16), inputs(rng, 1, 200, WIDTH)
    _, weights = layer(x, x, use_causal_mask=True, return_attention_scores=True)
    assert np.asarray(weights).min() >= 0
    reach = np.subtract.outer(np.arange(200), np.arange(200))[np.asarray(weights)[0].any(axis=0)]
    assert reach.min() == 0
    assert 8 <= reach.max() < 16


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_200_steps_of_half_precision_at_length_4096(case, policy):
    train_in_half_precision(case, policy, length=4096, steps=200)


@pytest.mark.parametrize("case", ["CosFormerAttention-endless"])
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.sample(2)
def test_a_few_steps_of_half_precision(case, policy):
    train_in_half_precision(case, policy, length=512, steps=10)


def train_in_half_precision(case, policy, length, steps):
    """Large inputs, so that float16 sums and normalisers would overflow."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    cls, arguments = CASES[case]
    arguments = {**arguments, **({"max_length": length} if "max_length" in arguments else {})}
    x = keras.Input((length, 8), dtype="float32")
    layer = layer_of(cls, 2, 8, **arguments, dtype=policy)
    hidden = keras.layers.Dense(8, dtype=policy)(x)
    mixed = layer(hidden, hidden, use_causal_mask=case in CAUSAL)
    y = keras.layers.Dense(1, dtype="float32")(mixed)
    model = keras.Model(x, y)
    optimizer = keras.optimizers.Adam(1e-3)
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer, "mse", jit_compile=False)
    data = 30 * inputs(rng, 1, length, 8)
    losses = model.fit(
        np.repeat(data, steps, axis=0), np.repeat(np.sign(data[..., :1]), steps, axis=0),
        batch_size=1, verbose=0, epochs=1,
    ).history["loss"]  # fmt: skip
    assert np.isfinite(losses).all()
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


@pytest.mark.skipif(BACKEND != "tensorflow", reason="counts the nodes of a TensorFlow graph")
@pytest.mark.parametrize("case", [c for c in CASES if "Softmax" not in c])
@pytest.mark.sample(5)
def test_the_graph_is_the_same_for_every_length(case):
    import tensorflow as tf

    layer = build(case, **({"max_length": 65_536} if "max_length" in CASES[case][1] else {}))

    def nodes(length):
        def run(x):
            with tf.GradientTape() as tape:
                y = layer(x, x, use_causal_mask=case in CAUSAL)
            return tape.gradient(y, layer.trainable_variables)

        spec = tf.TensorSpec((1, length, WIDTH))
        traced = tf.function(run, autograph=False).get_concrete_function(spec)
        return len(traced.graph.as_graph_def().node)

    # Equal but for a sum of a few elements, which is made a constant.
    assert nodes(65_536) == pytest.approx(nodes(1_024), abs=4)


@pytest.mark.skipif(BACKEND != "jax", reason="jax.export is JAX's")
@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradient_lower_for_tpu(case):
    import jax
    from support import pure

    layer = build(case)

    def loss(x):
        return keras.ops.sum(pure(layer, x, x, use_causal_mask=case in CAUSAL) ** 2)

    x = jax.ShapeDtypeStruct((2, 130, WIDTH), "float32")
    exported = jax.export.export(jax.jit(jax.value_and_grad(loss)), platforms=["tpu"])(x)
    assert exported.platforms == ("tpu",)
