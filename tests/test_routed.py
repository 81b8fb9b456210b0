"""Routed attention: how much of each path every step takes, and what training adds."""

import re

import keras
import numpy as np
import pytest
from references import route_weights
from support import (
    BACKEND,
    assert_close,
    compiled,
    gradients,
    layer_weights,
    pure,
    value_and_gradients,
)
from variants import inputs, mask_of

from keras_cosattn import (
    CosFormerAttention,
    HierarchicalAttention,
    LinearAttention,
    RoutedAttention,
    SoftmaxAttention,
    Streaming,
    TransformerDecoder,
)
from keras_cosattn.ops import route as routing

B, T, M, HEADS = 2, 13, 11, 2
EXACT = 1e-6  # the same sums, at most in another order


def paths(**more):
    """Three that differ in mechanism and in the sizes of their heads."""
    return [
        CosFormerAttention(HEADS, 5, horizon=8, **more),
        LinearAttention(HEADS, 3, value_dim=4, **more),
        SoftmaxAttention(HEADS, 7, num_key_value_heads=1, max_length=40, **more),
    ]


def routed(given=None, scale=1.0, **options):
    """A built layer whose route weights are far from equal."""
    layer = RoutedAttention(paths() if given is None else given, **options)
    layer.build((None, None, M), (None, None, M))
    kernel = np.random.default_rng(1).normal(size=layer.route_kernel.shape)
    layer.route_kernel.assign(scale * kernel)
    return layer


def each_path(layer, x, **how):
    return np.stack([keras.ops.convert_to_numpy(path(x, x, **how)) for path in layer.paths])


@pytest.mark.parametrize("iterations", [0, 3])
def test_one_path_is_that_path(iterations, rng):
    path, x = SoftmaxAttention(HEADS, 5), inputs(rng, B, T, M)
    layer = routed([path], routing_iterations=iterations, top_k=1)
    path.build(x.shape, x.shape)
    layer.paths[0].set_weights(path.get_weights())
    masks = {"value_mask": mask_of((5, 13), T), "return_attention_scores": True}
    for found, expected in zip(layer(x, x, **masks), path(x, x, **masks), strict=True):
        assert_close(found, expected, EXACT)


def test_paths_are_copied_from_their_configs(rng):
    templates = paths()
    layer, x = routed(templates), inputs(rng, B, T, M)
    assert not any(template.built for template in templates)
    assert [path.name for path in layer.paths] == ["path_0", "path_1", "path_2"]
    assert {id(w) for path in layer.paths for w in path.weights} < {id(w) for w in layer.weights}
    assert layer(x, x, use_causal_mask=True).shape == x.shape
    twice = RoutedAttention([templates[1]] * 2)  # one template, two sets of weights
    twice.build(x.shape, x.shape)
    first, second = (path.query_dense.kernel for path in twice.paths)
    assert np.any(np.asarray(first) != np.asarray(second))


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"routing_iterations": 2}], ids=str)
def test_route_weights_sum_to_one_and_mix_the_paths(options, rng):
    layer, x = routed(**options), inputs(rng, B, T, M)
    routes = np.asarray(layer.route_weights(x, use_causal_mask=True))
    assert routes.shape == (B, T, 3)
    assert np.all(routes >= 0)
    assert_close(routes.sum(-1), np.ones((B, T)), EXACT)
    outputs = each_path(layer, x, use_causal_mask=True)
    expected = np.einsum("btp,pbtm->btm", routes, outputs)
    assert_close(layer(x, x, use_causal_mask=True), expected, EXACT)


def test_without_iterations_routes_are_the_softmax_of_the_queries(rng):
    layer, x = routed(), inputs(rng, B, T, M)
    logits = np.exp(x @ np.asarray(layer.route_kernel))
    routes = layer.route_weights(x, use_causal_mask=True)
    assert_close(routes, logits / logits.sum(-1, keepdims=True), EXACT)


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_agreement_equals_the_procedure_step_by_step(iterations, rng):
    layer, x = routed(routing_iterations=iterations), inputs(rng, B, T, M)
    outputs = each_path(layer, x, use_causal_mask=True)
    kernel = layer_weights(layer)["more"]["route_kernel"]
    expected = route_weights(x, kernel, np.float64(outputs), iterations)
    assert np.abs(expected - route_weights(x, kernel, np.float64(outputs))).max() > 0.05
    # Each round multiplies what came before, and its roundings, by the outputs' lengths.
    assert_close(layer.route_weights(x, use_causal_mask=True), expected, 1e-5)


def test_agreement_moves_weight_to_the_paths_that_agree():
    outputs = np.zeros((1, 1, 3, 4), "float32")
    outputs[..., :2, 0], outputs[..., 2, 1] = 1, 1  # two point one way, the third another
    last = 1 / 3
    for iterations in (1, 2, 3):
        weights = np.asarray(routing.route(np.zeros((1, 1, 3), "float32"), outputs, iterations))
        assert weights[0, 0, 2] < last
        assert weights[0, 0, 0] == weights[0, 0, 1]
        last = weights[0, 0, 2]


def test_agreement_has_slopes_where_all_outputs_are_zero():
    zeros = np.zeros((1, 2, 3, 4), "float32")
    logits = np.float32([[[1, 0, 2], [0, 0, 0]]])
    g = np.ones_like(logits)
    found = value_and_gradients(lambda *a: routing.route(*a, 2) ** 2, g, logits, zeros)
    assert all(np.all(np.isfinite(x)) for x in keras.tree.flatten(found))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_exactly_k_weights_are_not_zero(k, rng):
    layer, x = routed(top_k=k), inputs(rng, B, 64, M)
    every = np.asarray(routed().route_weights(x, use_causal_mask=True))
    kept = np.asarray(layer.route_weights(x, use_causal_mask=True))
    assert np.all(np.sum(kept != 0, axis=-1) == k)
    largest = np.sort(every, axis=-1)[..., -k:].sum(-1)
    assert_close(kept, np.where(kept != 0, every, 0) / largest[..., None], EXACT)
    assert np.all(np.min(np.where(kept != 0, every, 1), -1) >= np.max(every * (kept == 0), -1))
    layer.route_kernel.assign(np.zeros(layer.route_kernel.shape))  # all equal
    kept = np.asarray(layer.route_weights(x, use_causal_mask=True))
    assert np.all(np.sum(kept != 0, axis=-1) == k)


def load(routes, k, real):
    """`p sum_p f_p P_p`, counted step by step."""
    p, places, mean = routes.shape[-1], np.zeros(routes.shape[-1]), np.zeros(routes.shape[-1])
    for i, t in zip(*np.nonzero(real), strict=True):
        places[np.argsort(routes[i, t])[-k:]] += 1 / (k * real.sum())
        mean += routes[i, t] / real.sum()
    return p * np.sum(places * mean)


@pytest.mark.parametrize("k", [None, 1, 2])
@pytest.mark.parametrize("padded", [False, True])
def test_the_balancing_loss_is_its_formula(k, padded, rng):
    layer, x = routed(top_k=k, load_balancing=0.3), inputs(rng, B, T, M)
    mask = mask_of((5, 9), T) if padded else np.ones((B, T), bool)
    x[~mask] = 100  # padding that would count for much
    how = {"query_mask": mask, "value_mask": mask, "use_causal_mask": True}
    layer(x, x, **how)
    assert not layer.losses
    layer(x, x, training=True, **how)
    (loss,) = layer.losses
    every = np.asarray(routed().route_weights(x, use_causal_mask=True))
    assert_close(loss, 0.3 * load(every, k or 1, mask), EXACT)


def test_the_balancing_loss_of_nothing_is_zero():
    layer = routed(load_balancing=0.3)
    x = np.zeros((0, T, M), "float32")
    layer(x, x, use_causal_mask=True, training=True)
    assert_close(layer.losses[0], 0.0, 0)


def test_the_balancing_loss_is_least_at_balance(rng):
    def loss(routes, k=1):
        routes = np.float32(routes)
        return float(routing.load_balance(routes, routing.largest(routes, k)))

    balanced = np.tile(np.eye(4), (1, 5, 1))
    assert loss(balanced) == pytest.approx(1, abs=1e-6)
    assert loss(np.tile(np.eye(4)[:1], (2, 3, 1))) == pytest.approx(4, abs=1e-6)
    assert loss(np.tile([[0.4, 0.3, 0.2, 0.1]], (1, 5, 1))) == pytest.approx(1.6, abs=1e-6)
    for sharpness in (0.1, 1, 10):
        # Steps' weights and all their rotations: every path is used alike.
        weights = np.exp(sharpness * rng.normal(size=(1, 3, 4)))
        weights /= weights.sum(-1, keepdims=True)
        rotated = np.concatenate([np.roll(weights, i, -1) for i in range(4)], axis=1)
        assert loss(rotated) == pytest.approx(1, abs=1e-5)
        assert loss(weights) > 1


def test_the_balancing_loss_balances(rng):
    """Paths that start far from balance are used alike after training on the loss alone."""
    layer, x = routed(load_balancing=1.0, scale=3.0), inputs(rng, 8, T, M)
    x[..., 0] = 1  # lets W_r prefer a path whatever the step
    layer.route_kernel.assign_add(3.0 * np.eye(M, 3))

    def shares():
        return np.asarray(layer.route_weights(x, use_causal_mask=True)).mean((0, 1))

    def loss(kernel):
        logits = keras.ops.matmul(x, kernel)
        weights = keras.ops.softmax(logits)
        return routing.load_balance(weights, routing.largest(weights, 1))

    before = np.ptp(shares())
    for _ in range(150):
        kernel = keras.ops.convert_to_numpy(layer.route_kernel)
        layer.route_kernel.assign(kernel - 2.0 * gradients(loss, kernel)[0])
    assert np.ptp(shares()) < 0.25 * before


@pytest.mark.parametrize("top_k", [None, 2])
def test_gradient_reaches_every_path_and_the_router(top_k, rng):
    layer, x = routed(top_k=top_k, routing_iterations=1), inputs(rng, B, 64, M)
    starts = [keras.ops.convert_to_numpy(w) for w in layer.trainable_variables]
    g = rng.normal(size=x.shape).astype("float32")

    def outputs(*weights):
        state = [w.value for w in layer.non_trainable_variables]
        return layer.stateless_call(list(weights), state, x, x, use_causal_mask=True)[0]

    _, slopes = value_and_gradients(outputs, g, *starts)
    for variable, slope in zip(layer.trainable_variables, slopes, strict=True):
        if "path_2/key/bias" not in variable.path:  # softmax does not change with it
            assert np.abs(slope).max() > 1e-5, variable.path


@pytest.mark.parametrize(("jit", "options"), [(True, {"top_k": 1}), (False, {})], ids=str)
@pytest.mark.sample(2)
def test_trains_with_its_loss(jit, options, rng):
    layer = RoutedAttention(paths()[1:], load_balancing=0.1, routing_iterations=1, **options)
    x = keras.Input((T, M))
    model = keras.Model(x, layer(x, x, use_causal_mask=True))
    model.compile(keras.optimizers.Adam(0.02), "mse", jit_compile=jit)
    data = inputs(rng, 8, T, M)
    target = np.cumsum(data, axis=1) / np.arange(1, T + 1)[:, None]
    before = np.mean((keras.ops.convert_to_numpy(model(data)) - target) ** 2)
    losses = model.fit(data, target, epochs=15, verbose=0).history["loss"]
    assert before + 0.09 < losses[0] < before + 0.21  # 0.1 times 1, balanced, to 2 paths
    assert losses[-1] - 0.1 < 0.7 * before


def test_padding_in_the_router_never_leaks(rng):
    layer, x, mask = routed(routing_iterations=1), inputs(rng, B, T, M), mask_of((5, 9), T)
    how = {"query_mask": mask, "value_mask": mask, "use_causal_mask": True}
    broken = np.where(mask[..., None], x, np.float32(np.nan))
    assert_close(layer(broken, broken, **how), layer(np.where(mask[..., None], x, 0), x, **how), 0)


def test_scores_are_the_paths_scores_weighted_by_the_routes(rng):
    layer, x = routed(top_k=2), inputs(rng, B, T, M)
    how = {"use_causal_mask": True, "return_attention_scores": True}
    outputs, scores, routes = layer(x, x, return_route_weights=True, **how)
    assert_close(outputs, layer(x, x, use_causal_mask=True), EXACT)
    each = np.stack([np.asarray(path(x, x, **how)[1]) for path in layer.paths])
    assert_close(scores, np.einsum("btp,pbhts->bhts", np.asarray(routes), each), EXACT)
    # Every path's rows sum to one, so these do; a step that sees nothing of a path has less.
    sums = np.einsum("btp,pbht->bht", np.asarray(routes), each.sum(-1))
    assert_close(np.asarray(scores).sum(-1), sums, EXACT)


def test_a_full_mask_goes_to_all_paths_that_take_it(rng):
    layer = routed([SoftmaxAttention(HEADS, 5), SoftmaxAttention(HEADS, 3)])
    x, mask = inputs(rng, B, T, M), rng.random((B, T, T)) < 0.5
    scores = layer(x, x, attention_mask=mask, return_attention_scores=True)[1]
    assert not np.any(np.asarray(scores).max(1)[~mask])
    with pytest.raises(ValueError, match=r"cannot take an `attention_mask`"):
        routed()(x, x, attention_mask=mask, use_causal_mask=True)


@pytest.mark.parametrize(
    "options", [{"routing_iterations": 2}, {"top_k": 1, "load_balancing": 0.1}], ids=str
)
@pytest.mark.parametrize("pieces", [[1] * 13, [4, 1, 8]], ids=str)
@pytest.mark.sample(3)
def test_whole_equals_pieces(options, pieces, rng):
    block = TransformerDecoder(16, attention=RoutedAttention(paths(), **options))
    x = keras.Input((None, M))
    model, data = keras.Model(x, block(x)), inputs(rng, B, T, M)
    stream, outputs = Streaming(model), []
    assert {name.rsplit("_", 1)[0] for name in stream.state_spec} >= {"linear_attention_0"}
    assert stream.max_steps == 40  # that of the softmax path
    state = stream.initial_state(B)
    for piece in np.split(data, np.cumsum(pieces)[:-1], axis=1):
        y, state = stream(piece, state)
        outputs.append(y)
    # Agreement multiplies roundings.
    assert_close(np.concatenate(outputs, axis=1), model(data), 5e-6)


def test_a_path_that_cannot_stream_is_named_with_its_reason():
    layer = RoutedAttention([LinearAttention(HEADS, 3), SoftmaxAttention(HEADS, 3)])
    x = keras.Input((None, M))
    model = keras.Model(x, TransformerDecoder(16, attention=layer)(x))
    message = r"self_attention \(RoutedAttention\) cannot stream: its path 1, SoftmaxAttention: "
    with pytest.raises(ValueError, match=message + "it keeps every key"):
        Streaming(model)


def test_it_refuses_what_any_path_refuses(rng):
    layer, x = routed(), inputs(rng, B, T, M)
    assert set(layer.cannot) == {"both ways"}
    reason = "its path 0, CosFormerAttention: " + paths()[0].cannot["both ways"]
    with pytest.raises(ValueError, match=re.escape(reason)):
        layer(x, x)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_saves_and_loads_within_a_block(dtype, rng, tmp_path):
    attention = RoutedAttention(
        paths(dropout=0.1), routing_iterations=1, top_k=2, load_balancing=0.1, dtype=dtype
    )
    x = keras.Input((None, M))
    block = TransformerDecoder(16, attention=attention, dtype=dtype)
    model, data = keras.Model(x, block(x)), inputs(rng, B, T, M)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_close(*(keras.ops.cast(m(data), "float32") for m in (loaded, model)), 0)
    copy = loaded.layers[-1].self_attention
    assert (copy.routing_iterations, copy.top_k, copy.load_balancing) == (1, 2, 0.1)
    assert [path.dropout for path in copy.paths] == [0.1] * 3
    assert {path.dtype_policy.name for path in copy.paths} == {dtype}
    assert copy.route_kernel.dtype == "float32"


def test_a_path_with_a_functional_model_is_copied_again():
    x = keras.Input((None, M))
    largest = keras.Model(x, keras.layers.GlobalMaxPooling1D()(x))
    layer = routed([HierarchicalAttention(HEADS, 5, unit_sizes=(3,), aggregator=largest)])
    for _ in range(2):  # that a copy is made does not change the config of the next
        copy = RoutedAttention.from_config(layer.get_config())
    assert copy.paths[0].aggregator.output_shape == (None, M)


def test_symbolic_outputs_have_the_real_shapes(rng):
    layer, x = routed(), keras.Input((None, M))
    how = {"return_attention_scores": True, "return_route_weights": True, "use_causal_mask": True}
    model = keras.Model(x, layer(x, x, **how))
    assert [y.shape for y in model.outputs] == [
        (None, None, M), (None, HEADS, None, None), (None, None, 3)
    ]  # fmt: skip
    data = inputs(rng, B, T, M)
    for found, expected in zip(model(data), layer(data, data, **how), strict=True):
        assert_close(found, expected, 0)
    alone = keras.Model(x, layer.route_weights(x, use_causal_mask=True))
    assert_close(alone(data), layer.route_weights(data, use_causal_mask=True), 0)


def test_xla_gives_the_same(rng):
    layer, x = routed(routing_iterations=2, top_k=2), inputs(rng, B, T, M)

    def run(x):
        return pure(layer, x, x, use_causal_mask=True)

    assert_close(compiled(run)(x), run(x), 1e-5)  # agreement multiplies roundings


@pytest.mark.skipif(BACKEND != "tensorflow", reason="exports need TensorFlow")
def test_becomes_a_tflite_file(tmp_path):
    from keras_cosattn.export import to_tflite

    layer, x = RoutedAttention(paths(), routing_iterations=2, top_k=2), keras.Input((None, M))
    model = keras.Model(x, layer(x, x, use_causal_mask=True))
    report = to_tflite(model, tmp_path / "model.tflite")
    assert set(report.differences) == {"serve", "prefill", "step"}
    assert report.largest_difference < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"paths": []}, r"`paths` must be attention layers .* Received: paths=\[\]"),
        ({"paths": [keras.layers.Dense(2)]}, r"must be attention layers .* Received: .*Dense"),
        ({"paths": [RoutedAttention([LinearAttention(2, 3)])]}, "not routed themselves"),
        (
            {"paths": [LinearAttention(2, 3), LinearAttention(4, 3)]},
            r"must agree in `num_heads`. Received: num_heads=\[2, 4\]",
        ),
        (
            {"paths": [LinearAttention(2, 3), LinearAttention(2, 3, output_shape=4)]},
            r"must agree in `output_shape`. Received: output_shape=\[None, \(4,\)\]",
        ),
        ({"routing_iterations": -1}, "`routing_iterations` must be .*=-1"),
        ({"top_k": 0}, "`top_k` must be .*top_k=0"),
        ({"top_k": 4}, "`top_k` must be at most .*top_k=4, 3 paths"),
        ({"load_balancing": -0.1}, "`load_balancing` must be .*=-0.1"),
        ({"dropout": 0.1}, r"Give them to each path. Received: \['dropout'\]"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RoutedAttention(**{"paths": paths(), **arguments})
