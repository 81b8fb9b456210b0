"""What `keras.layers.MultiHeadAttention` takes, computes and refuses, and the same of ours."""

import inspect

import keras
import numpy as np
import pytest
from keras import ops
from support import BACKEND, assert_close, streamed
from variants import CASES, CAUSAL, STREAMING, TOKENS, VARIANTS, build, inputs

from keras_cosattn import (
    CosFormerAttention,
    LinearAttention,
    PerformerAttention,
    RecurrentMemoryAttention,
    RoutedAttention,
    SoftmaxAttention,
    Streaming,
)
from keras_cosattn.attention.constant_values import check_queries_are_independent

MHA = keras.layers.MultiHeadAttention
LINEAR = [cls for cls in VARIANTS if cls not in (SoftmaxAttention, RoutedAttention)]
ARGUMENTS = dict(reversed(CASES.values()))
WIDTH = 11


def pair(query_shape, value_shape=None, key_shape=None, **arguments):
    """Keras's layer and ours, made from its config, with the same random weights."""
    theirs = MHA(**{"num_heads": 3, "key_dim": 4, "bias_initializer": "normal", **arguments})
    ours = SoftmaxAttention.from_config(theirs.get_config())
    shapes = query_shape, value_shape or query_shape, key_shape
    for layer in (theirs, ours):
        layer.build(*shapes)
    ours.set_weights(theirs.get_weights())
    return theirs, ours


def assert_same(theirs, ours, *tensors, **arguments):
    expected = theirs(*tensors, return_attention_scores=True, **arguments)
    found = ours(*tensors, return_attention_scores=True, **arguments)
    for actual, wanted in zip(found, expected, strict=True):
        assert_close(actual, wanted)
    assert_close(ours(*tensors, **arguments), expected[0])


@pytest.mark.parametrize("cls", [SoftmaxAttention, *LINEAR], ids=lambda cls: cls.__name__)
def test_arguments_have_the_order_of_keras(cls):
    names = list(inspect.signature(MHA).parameters)[:-1]
    values = (2, 4, 5, 0.1, False, (6,), (1,), None, None, "zeros", "ones", "l1", "l2", "l1",
              "non_neg", "unit_norm", True, 7)  # fmt: skip
    own = {name: value for name, value in ARGUMENTS[cls].items() if name != "seed"}
    expected, config = MHA(*values).get_config(), cls(*values, **own).get_config()
    assert len(names) == len(values)
    for name in set(names) - {"flash_attention"}:
        assert config[name] == expected[name]


def test_call_arguments_have_the_order_of_keras():
    expected = list(inspect.signature(MHA.call).parameters)
    assert list(inspect.signature(SoftmaxAttention.call).parameters)[: len(expected)] == expected


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"value_dim": 7, "use_bias": False},
        {"use_gate": True},
        {"use_gate": True, "value_dim": 7, "use_bias": False, "output_shape": 6},
        {"output_shape": (9,)},
        {"output_shape": (4, 5), "use_gate": True},
        {"sliding_window": 1},
        {"sliding_window": 3},
        {"sliding_window": 100, "attention_axes": (1,)},
    ],
    ids=str,
)
@pytest.mark.parametrize("causal", [False, True])
def test_outputs_of_all_options_are_those_of_keras(arguments, causal, rng):
    query, value, key = inputs(rng, 2, 5, WIDTH), inputs(rng, 2, 7, 8), inputs(rng, 2, 7, 6)
    theirs, ours = pair(query.shape, value.shape, key.shape, **arguments)
    assert_same(theirs, ours, query, value, key, use_causal_mask=causal)
    mask = rng.random((2, 5, 7)) < 0.5
    mask[..., 0] = True  # theirs averages the values of a row that sees nothing
    if not causal and "sliding_window" not in arguments:
        assert_same(theirs, ours, query, value, key, attention_mask=mask)


@pytest.mark.parametrize("use_gate", [False, True])
@pytest.mark.parametrize(
    ("attention_axes", "queries", "values"),
    [
        (None, (2, 3), (4, 1)),
        (2, (3, 4), (3, 2)),
        (-2, (3, 4), (3, 2)),
        ((2, 1), (3, 4), (3, 2)),
        ((2, 3), (5, 3, 4), (5, 3, 2)),
    ],
)
def test_inputs_with_more_axes_are_those_of_keras(attention_axes, queries, values, use_gate, rng):
    query, value = inputs(rng, 2, *queries, WIDTH), inputs(rng, 2, *values, 8)
    options = {"attention_axes": attention_axes, "use_gate": use_gate, "output_shape": (4, 3)}
    theirs, ours = pair(query.shape, value.shape, **options)
    assert_same(theirs, ours, query, value)
    scores = theirs(query, value, return_attention_scores=True)[1]
    steps = len(theirs.attention_axes)
    mask = rng.random((2, *scores.shape[-2 * steps :])) < 0.5
    mask[..., 0] = True
    assert_same(theirs, ours, query, value, attention_mask=mask)
    shape = theirs.compute_output_shape(query.shape, value.shape)
    assert ours.compute_output_shape(query.shape, value.shape) == shape
    symbolic = [keras.Input(batch_shape=x.shape) for x in (query, value)]
    found = ours(*symbolic, return_attention_scores=True)
    assert [tuple(x.shape) for x in found] == [shape, tuple(scores.shape)]


@pytest.mark.parametrize("sliding_window", [None, 2])
def test_causal_attention_along_one_of_two_axes(sliding_window, rng):
    x = inputs(rng, 2, 6, 3, WIDTH)
    theirs, ours = pair(x.shape, attention_axes=1, sliding_window=sliding_window)
    assert_same(theirs, ours, x, x, use_causal_mask=True)


@pytest.mark.parametrize("side", ["right", "left"])
def test_masks_of_steps_with_more_axes(side, rng):
    """Rows of masked queries are zero in ours, so only the others are compared."""
    x, valid = inputs(rng, 2, 3, 5, WIDTH), np.arange(5) < rng.integers(1, 6, (2, 3, 1))
    valid = valid if side == "right" else valid[..., ::-1]
    theirs, ours = pair(x.shape, attention_axes=2)
    expected = theirs(x, x, attention_mask=valid[:, :, None, None, :] & np.ones((5, 1), bool))
    for masks in ({"value_mask": valid}, {"query_mask": valid, "value_mask": valid}):
        found = ours(x, x, **masks)
        assert_close(np.asarray(found)[valid], np.asarray(expected)[valid])


@pytest.mark.parametrize("cls", [LinearAttention, CosFormerAttention])
@pytest.mark.parametrize("causal", [False, True])
def test_each_row_of_another_axis_is_a_sequence(cls, causal, rng):
    x, valid = inputs(rng, 2, 3, 5, WIDTH), np.arange(5) < rng.integers(1, 6, (2, 3, 1))
    layer = cls(2, 4, attention_axes=2, use_gate=True)
    layer.build(x.shape, x.shape)
    masks = {"query_mask": valid, "value_mask": valid, "use_causal_mask": causal}
    found, scores = layer(x, x, return_attention_scores=True, **masks)
    for i in range(3):
        masks = {"query_mask": valid[:, i], "value_mask": valid[:, i], "use_causal_mask": causal}
        row = cls.from_config({**layer.get_config(), "attention_axes": None})
        row.build(x[:, i].shape, x[:, i].shape)
        row.set_weights(layer.get_weights())
        expected, weights = row(x[:, i], x[:, i], return_attention_scores=True, **masks)
        assert_close(np.asarray(found)[:, i], expected)
        assert_close(np.asarray(scores)[:, i], weights)


def test_routed_paths_share_their_axes(rng):
    x = inputs(rng, 2, 3, 5, WIDTH)
    paths = [cls(2, 4, attention_axes=2) for cls in (SoftmaxAttention, CosFormerAttention)]
    layer = RoutedAttention(paths)
    found = layer(x, x, return_attention_scores=True, return_route_weights=True)
    row = RoutedAttention([type(path)(2, 4) for path in paths])
    row.build((2, 5, WIDTH), (2, 5, WIDTH))
    row.set_weights(layer.get_weights())
    for i in range(3):
        one = x[:, i]
        alone = row(one, one, return_attention_scores=True, return_route_weights=True)
        for actual, expected in zip(found, alone, strict=True):
            assert_close(np.asarray(actual)[:, i], expected)
    symbolic = keras.Input(batch_shape=x.shape)
    spec = layer(symbolic, symbolic, return_attention_scores=True, return_route_weights=True)
    assert [tuple(y.shape) for y in spec] == [tuple(y.shape) for y in found]
    copy = RoutedAttention.from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    assert copy.attention_axes == (2,)
    with pytest.raises(ValueError, match=r"must agree in `attention_axes`.*\(2,\), \(1,\)"):
        RoutedAttention([paths[0], SoftmaxAttention(2, 4, attention_axes=1)])
    with pytest.raises(ValueError, match=r"one axis of features.*\(4, 3\)"):
        RoutedAttention([SoftmaxAttention(2, 4, output_shape=(4, 3))])


def test_other_axes_must_agree():
    layer = LinearAttention(2, 4, attention_axes=2)
    with pytest.raises(
        ValueError, match=r"axes that do not attend, must be equal.*\(2, 4, 5, 11\)"
    ):
        layer(np.zeros((2, 3, 5, WIDTH)), np.zeros((2, 4, 5, WIDTH)))
    with pytest.raises(ValueError, match=r"as many axes"):
        layer(np.zeros((2, 3, 5, WIDTH)), np.zeros((2, 5, WIDTH)))


def test_more_axes_cannot_stream(rng):
    model_input = keras.Input((None, 3, WIDTH))
    y = LinearAttention(2, 4, attention_axes=1)(model_input, model_input, use_causal_mask=True)
    with pytest.raises(ValueError, match=r"cannot stream: .*rank"):
        streamed(keras.Model(model_input, y), inputs(rng, 2, 4, 3, WIDTH), [2])


@pytest.mark.parametrize(
    "case", [case for case in CASES if "Routed" not in case and case not in TOKENS]
)
def test_a_gate_scales_what_is_mixed(case, rng):
    """A gate without kernel and bias is one half, and one with a large bias is one."""
    x, causal = inputs(rng, 2, 6, WIDTH), case in CAUSAL
    options = {"use_bias": True, "bias_initializer": "zeros", "use_gate": True}
    layer = build(case, **options)
    for w in layer.gate_dense.weights:
        w.assign(ops.zeros(w.shape))
    half = layer(x, x, use_causal_mask=causal)
    layer.gate_dense.bias.assign(ops.full(layer.gate_dense.bias.shape, 50.0))
    whole = layer(x, x, use_causal_mask=causal)
    assert_close(ops.multiply(half, 2), whole)


@pytest.mark.parametrize("case", [case for case in STREAMING if "Routed" not in case])
@pytest.mark.sample(7)
def test_a_gate_streams(case, rng):
    x = keras.Input((None, WIDTH))
    model = keras.Model(x, build(case, use_gate=True)(x, x, use_causal_mask=True))
    example = inputs(rng, 2, 9, WIDTH)
    assert_close(streamed(model, example, [1, 4, 5]), model(example), 1e-4)


@pytest.mark.parametrize("option", ["use_gate", "use_query_key_norm"])
@pytest.mark.parametrize("cls", [LinearAttention, PerformerAttention])
def test_gates_and_norms_stream_in_cross_attention(cls, option, rng):
    x, encoded = keras.Input((None, WIDTH)), keras.Input((None, 8), name="encoded")
    model = keras.Model([x, encoded], cls(2, 4, **{option: True})(x, encoded))
    queries, values = inputs(rng, 2, 6, WIDTH), inputs(rng, 2, 5, 8)
    stream = Streaming(model, [queries, values], constants=["encoded"])
    found, state = [], stream.initial_state(2, {"encoded": values})
    for piece in np.split(queries, [1, 4], axis=1):
        y, state = stream(piece, state)
        found.append(y)
    assert_close(np.concatenate(found, axis=1), model([queries, values]))


def test_a_sliding_window_does_not_stream_in_cross_attention():
    layer = SoftmaxAttention(2, 4, sliding_window=3)
    with pytest.raises(ValueError, match=r"cannot stream in cross-attention.*`sliding_window`"):
        check_queries_are_independent(layer)


@pytest.mark.parametrize("sliding_window", [1, 3, 50])
def test_a_sliding_window_streams(sliding_window, rng):
    x = keras.Input((None, WIDTH))
    layer = SoftmaxAttention(2, 4, sliding_window=sliding_window, max_length=12)
    model = keras.Model(x, layer(x, x, use_causal_mask=True))
    example = inputs(rng, 2, 9, WIDTH)
    assert_close(streamed(model, example, [1, 4, 5]), model(example))


def test_a_sliding_window_counts_valid_steps(rng):
    x, valid = inputs(rng, 2, 6, WIDTH), np.array([[1, 0, 1, 1, 0, 1], [0, 0, 1, 1, 1, 1]], bool)
    layer = SoftmaxAttention(2, 4, sliding_window=2)
    found = np.asarray(layer(x, x, query_mask=valid, value_mask=valid))
    for i, mask in enumerate(valid):
        alone = x[i : i + 1, mask]
        assert_close(found[i : i + 1, mask], layer(alone, alone))


@pytest.mark.parametrize("cls", LINEAR, ids=lambda cls: cls.__name__)
def test_sliding_windows_of_other_layers_are_refused_by_name(cls):
    with pytest.raises(ValueError, match=rf"{cls.__name__}.*`sliding_window`.*SegmentedAttention"):
        cls(2, 4, sliding_window=3, **ARGUMENTS[cls])


@pytest.mark.parametrize("sliding_window", [0, -3, 1.5, True])
def test_sliding_windows_are_positive_integers(sliding_window):
    with pytest.raises(ValueError, match="`sliding_window` must be"):
        SoftmaxAttention(2, 4, sliding_window=sliding_window)


def test_flash_attention_is_refused_by_name():
    for flash_attention in (None, False):
        SoftmaxAttention(2, 4, flash_attention=flash_attention)
    with pytest.raises(ValueError, match=r"LinearAttention: `flash_attention=True`"):
        LinearAttention(2, 4, flash_attention=True)


@pytest.mark.parametrize("cls", LINEAR, ids=lambda cls: cls.__name__)
def test_every_layer_takes_the_config_of_keras(cls, rng):
    theirs = MHA(2, 4, value_dim=5, attention_axes=1, activity_regularizer="l2", use_gate=True)
    x = inputs(rng, 2, 6, WIDTH)
    theirs(x, x)
    layer = cls.from_config({**theirs.get_config(), **ARGUMENTS[cls]})
    assert (layer.num_heads, layer.key_dim, layer.value_dim) == (2, 4, 5)
    assert layer.use_gate
    assert layer(x, x, use_causal_mask="causal" not in layer.cannot).shape == x.shape


def test_activity_is_regularised_as_in_keras(rng):
    x = inputs(rng, 2, 6, WIDTH)
    theirs, ours = pair(x.shape, activity_regularizer=keras.regularizers.L2(0.1), use_gate=True)
    theirs(x, x), ours(x, x)
    assert len(ours.losses) == len(theirs.losses) == 5
    assert_close(ops.stack(ours.losses), ops.stack(theirs.losses))


@pytest.mark.parametrize("case", [c for c in CASES if "Routed" not in c and c not in TOKENS])
def test_output_shapes_of_several_axes(case, rng):
    x, causal = inputs(rng, 2, 6, WIDTH), case in CAUSAL
    layer = build(case, output_shape=(4, 3))
    assert layer(x, x, use_causal_mask=causal).shape == (2, 6, 4, 3)
    assert layer.compute_output_shape(x.shape, x.shape) == (2, 6, 4, 3)


@pytest.mark.parametrize("output_shape", [8.0, 0, (4, 0), (), "8", True, (4, None)])
def test_other_output_shapes_are_refused(output_shape):
    with pytest.raises(ValueError, match="Invalid `output_shape`"):
        SoftmaxAttention(2, 4, output_shape=output_shape)


def test_sizes_are_integers_of_any_kind():
    layer = SoftmaxAttention(np.int64(2), np.int32(4), np.uint8(3), output_shape=np.int64(5))
    x = np.zeros((2, 6, WIDTH), "float32")
    assert layer(x, x).shape == (2, 6, 5)
    assert SoftmaxAttention.from_config(layer.get_config()).get_config() == layer.get_config()


@pytest.mark.parametrize("value", [0, -2, 1.5, True, "4", np.float32(3)])
@pytest.mark.parametrize("name", ["num_heads", "key_dim", "value_dim", "num_key_value_heads"])
def test_other_sizes_are_refused(name, value):
    with pytest.raises(ValueError, match=f"argument `{name}`.*Received: {name}="):
        SoftmaxAttention(**{"num_heads": 2, "key_dim": 4, name: value})


@pytest.mark.parametrize("case", CASES)
def test_masks_may_be_lists_and_variables(case, rng):
    x, causal = inputs(rng, 2, 6, WIDTH), case in CAUSAL
    layer, valid = build(case), np.arange(6) < np.array([[4], [6]])
    expected = layer(x, x, query_mask=valid, value_mask=valid, use_causal_mask=causal)
    as_list = valid.astype(int).tolist()
    found = layer(x, x, query_mask=as_list, value_mask=as_list, use_causal_mask=causal)
    assert_close(found, expected, 0)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        mask = tf.Variable(valid)
        found = layer(x, x, query_mask=mask, value_mask=mask, use_causal_mask=causal)
        assert_close(found, expected, 0)
    padding = valid[:, None]
    found = layer(x, x, attention_mask=padding.tolist(), use_causal_mask=causal)
    assert_close(found, layer(x, x, attention_mask=padding, use_causal_mask=causal), 0)


@pytest.mark.parametrize("cls", [SoftmaxAttention, LinearAttention])
def test_masks_may_be_positional_in_a_functional_model(cls, rng):
    x, mask = keras.Input((6, WIDTH)), keras.Input((6,), dtype="bool")
    layer = cls(2, 4)
    model = keras.Model([x, mask], layer(x, x, None, mask, mask))
    example, valid = inputs(rng, 2, 6, WIDTH), np.arange(6) < np.array([[4], [6]])
    expected = layer(example, example, query_mask=valid, value_mask=valid)
    assert_close(model([example, valid]), expected)
    assert_close(layer(example, example, None, valid, valid), expected, 0)


TRIANGLE = np.tril(np.ones((6, 6), bool))
LENGTHS = np.array([[4], [6]])
VALID = {
    "right": np.arange(6) < LENGTHS,
    "left": np.arange(6) >= 6 - LENGTHS,
    "holes": np.array([[1, 0, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1]], bool),
}


@pytest.mark.parametrize(
    ("case", "side"),
    [(case, "holes") for case in CAUSAL if "Softmax" not in case]
    + [("LinearAttention-elu", side) for side in ("right", "left")],
)
def test_a_known_mask_of_padding_and_causality_is_taken(case, side, rng):
    """As KerasHub's decoders pass it, as an array or as a tensor."""
    x, valid, layer = inputs(rng, 2, 6, WIDTH), VALID[side], build(case)
    expected = layer(x, x, query_mask=valid, value_mask=valid, use_causal_mask=True)
    mask = TRIANGLE & valid[:, None]
    for given in (mask, ops.convert_to_tensor(mask.astype("int32")), mask.tolist()):
        assert_close(layer(x, x, attention_mask=given), expected)
    assert_close(layer(x, x, attention_mask=mask, use_causal_mask=True), expected)
    both = mask & valid[:, :, None]
    assert_close(layer(x, x, attention_mask=both), expected)


@pytest.mark.parametrize("cls", [LinearAttention, CosFormerAttention])
def test_a_known_mask_with_equal_rows_is_padding(cls, rng):
    query, value, layer = inputs(rng, 2, 5, WIDTH), inputs(rng, 2, 6, WIDTH), cls(2, 4)
    mask = np.repeat(VALID["left"][:, None], 5, axis=1)
    assert_close(
        layer(query, value, attention_mask=mask), layer(query, value, value_mask=VALID["left"]), 0
    )


@pytest.mark.parametrize("cls", [LinearAttention, RecurrentMemoryAttention])
def test_a_known_mask_in_a_functional_model(cls, rng):
    x = keras.Input((6, WIDTH))
    layer = cls(2, 4)
    model = keras.Model(x, layer(x, x, attention_mask=TRIANGLE[None]))
    example = inputs(rng, 2, 6, WIDTH)
    expected = layer(example, example, use_causal_mask=True)
    assert_close(model(example), expected)
    assert_close(model.predict(example, verbose=0), expected)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="graphs of TensorFlow only")
def test_a_known_mask_is_known_in_a_graph(rng):
    import tensorflow as tf

    x, layer = inputs(rng, 2, 6, WIDTH), LinearAttention(2, 4)
    expected = layer(x, x, use_causal_mask=True)

    def call(mask):
        return tf.function(lambda x: layer(x, x, attention_mask=mask))(tf.constant(x))

    assert_close(call(TRIANGLE[None]), expected)
    assert_close(call(tf.constant(TRIANGLE[None])), expected)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="graphs of TensorFlow only")
def test_a_mask_that_only_the_graph_knows_is_refused(rng):
    import tensorflow as tf

    x, layer = inputs(rng, 2, 6, WIDTH), LinearAttention(2, 4)
    call = tf.function(lambda x, mask: layer(x, x, attention_mask=mask))
    with pytest.raises(ValueError, match=r"`use_causal_mask=True`.*SoftmaxAttention"):
        call(tf.constant(x), tf.constant(np.repeat(TRIANGLE[None], 2, axis=0)))


def test_shape_errors_of_keras():
    layer = SoftmaxAttention(2, 4)
    for value_shape, key_shape in [((2, 2, 7), (2,)), ((2, 2, 8), (2, 1, 7))]:
        with pytest.raises(ValueError, match="must be equal"):
            layer.compute_output_shape((2, 4, 8), value_shape, key_shape)
    assert layer.compute_output_shape([2, 4, 8], [2, 5, 8]) == (2, 4, 8)


def test_gates_axes_and_windows_are_saved(tmp_path, rng):
    x = keras.Input((3, 5, WIDTH))
    layer = SoftmaxAttention(
        2, 4, attention_axes=2, use_gate=True, sliding_window=2, output_shape=(4, 3)
    )
    model = keras.Model(x, layer(x, x))
    model.save(tmp_path / "model.keras")
    example = inputs(rng, 2, 3, 5, WIDTH)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_close(loaded(example), model(example), 0)
