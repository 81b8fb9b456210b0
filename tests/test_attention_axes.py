"""Folding of several axes of steps to one, against the einsum equations of Keras's layer."""

import keras
import numpy as np
import pytest
from keras import ops
from support import assert_close

from keras_cosattn.attention.axes import AttentionAxes, Folding

HEADS, D, WIDTH = 2, 3, 5
# attention axes, axes of the queries, axes of the values
CASES = {
    "all of two": (None, (2, 3), (4, 1)),
    "the first of two": (1, (4, 3), (2, 3)),
    "the second of two": (2, (3, 4), (3, 2)),
    "the second of two from the end": (-2, (3, 4), (3, 2)),
    "two of three": ((2, 3), (5, 3, 4), (5, 2, 6)),
    "two of three in another order": ((3, 1), (4, 5, 3), (2, 5, 6)),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request, rng):
    attention_axes, *sizes = request.param
    query, value = (rng.standard_normal((2, *n, WIDTH)).astype("float32") for n in sizes)
    return attention_axes, query, value


def peer(attention_axes, query, value):
    layer = keras.layers.MultiHeadAttention(HEADS, D, attention_axes=attention_axes)
    layer.build(query.shape, value.shape)
    return layer


def folding(attention_axes, query, value):
    axes = AttentionAxes.of(attention_axes, len(query.shape))
    return Folding(axes, ops.shape(query), ops.shape(value))


def attend(layer, query, value, mask=None):
    """Attention of `(b, t, m)` inputs with the weights of `layer`."""
    q, k, v = (
        np.einsum("btm,mhd->bthd", x, ops.convert_to_numpy(dense.kernel))
        for x, dense in (
            (query, layer.query_dense),
            (value, layer.key_dense),
            (value, layer.value_dense),
        )
    )
    logits = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(D)
    if mask is not None:
        logits = np.where(mask, logits, -1e9)
    weights = ops.convert_to_numpy(ops.softmax(logits))
    mixed = np.einsum("bhts,bshd->bthd", weights, v)
    kernel = ops.convert_to_numpy(layer.output_dense.kernel)
    return np.einsum("bthe,hem->btm", mixed, kernel), weights


def test_outputs_and_scores_are_those_of_keras(case):
    attention_axes, query, value = case
    layer = peer(attention_axes, query, value)
    fold = folding(attention_axes, query, value)
    found, scores = attend(layer, *map(np.asarray, (fold.fold(query), fold.fold(value))))
    expected, expected_scores = layer(query, value, return_attention_scores=True)
    assert_close(fold.unfold(found), expected)
    assert_close(fold.unfold_scores(scores), expected_scores)
    assert fold.axes.scores_shape(query.shape, value.shape, HEADS) == tuple(expected_scores.shape)
    assert fold.axes.fold_shape(query.shape) == tuple(fold.fold(query).shape)


@pytest.mark.parametrize("leading", ["none", "batch", "batch and heads", "ones"])
def test_attention_masks_are_those_of_keras(case, leading, rng):
    attention_axes, query, value = case
    layer = peer(attention_axes, query, value)
    fold = folding(attention_axes, query, value)
    shape = fold.axes.scores_shape(query.shape, value.shape, HEADS)
    pairs = shape[2 + len(fold.axes.others) :]
    front = {
        "none": (),
        "batch": shape[:1],
        "batch and heads": shape[: 2 + len(fold.axes.others)],
        "ones": (1,) * (2 + len(fold.axes.others)),
    }[leading]
    mask = rng.random((*front, *pairs)) < 0.7
    mask = mask | (np.arange(pairs[-1]) == 0)  # every query sees a key
    folded = np.asarray(fold.fold_attention_mask(mask))
    found, _ = attend(layer, *map(np.asarray, (fold.fold(query), fold.fold(value))), mask=folded)
    assert_close(fold.unfold(found), layer(query, value, attention_mask=mask))


def test_masks_of_steps_fold_as_their_steps(case):
    attention_axes, query, value = case
    fold = folding(attention_axes, query, value)
    mask = query[..., 0] > 0
    np.testing.assert_array_equal(fold.fold(mask), np.asarray(fold.fold(query))[..., 0] > 0)


def test_one_axis_of_steps_is_single():
    assert AttentionAxes.of(None, 3).is_single
    assert AttentionAxes.of((1,), 3).is_single
    assert AttentionAxes.of(-2, 3).is_single
    assert not AttentionAxes.of(1, 4).is_single
    assert not AttentionAxes.of(None, 4).is_single


@pytest.mark.parametrize("attention_axes", [0, 3, -1, -4, (1, 1), (1, -3), 7])
def test_other_axes_are_refused(attention_axes):
    with pytest.raises(ValueError, match=r"different axes .* of \(1, 2\) for an input of rank 4"):
        AttentionAxes.of(attention_axes, 4)


@pytest.mark.parametrize("shape", [(4, 5), (7,), (2, 4, 1, 4, 2), (2, 3, 2, 4, 2, 1)])
def test_attention_masks_of_another_shape_are_refused(shape):
    fold = folding(2, np.zeros((2, 3, 4, 5)), np.zeros((2, 3, 2, 5)))
    with pytest.raises(ValueError, match=r"must broadcast to \(2, 3, 'h', 4, 2\)"):
        fold.fold_attention_mask(np.ones(shape, bool))


def test_unknown_sizes_stay_unknown():
    axes = AttentionAxes.of(2, 4)
    assert axes.fold_shape((None, 3, 4, 5)) == (None, 4, 5)
    assert axes.fold_shape((2, 3, None, 5)) == (6, None, 5)
    assert axes.scores_shape((None, 3, None, 5), (None, 3, 2, 5), 8) == (None, 3, 8, None, 2)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="graphs of TensorFlow only")
def test_sizes_that_only_the_graph_knows(case):
    import tensorflow as tf

    attention_axes, query, value = case
    axes = AttentionAxes.of(attention_axes, query.ndim)
    unknown = tf.TensorSpec([None] * (query.ndim - 1) + [WIDTH])

    @tf.function(input_signature=[unknown, unknown])
    def there_and_back(query, value):
        fold = folding(attention_axes, query, value)
        folded, keys = fold.fold(query), fold.fold(value)
        scores = tf.einsum("btm,bsm->bts", folded, keys)[:, None]
        mask = tf.ones([1] * (query.shape.rank + len(axes.steps)), "bool")
        mask = fold.fold_attention_mask(mask)
        return fold.unfold(folded), fold.unfold_scores(scores), mask

    back, scores, mask = there_and_back(query, value)
    assert_close(back, query, 0)
    assert tuple(scores.shape) == axes.scores_shape(query.shape, value.shape, 1)
    assert tuple(mask.shape) == (1, 1, 1, 1)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="graphs of TensorFlow only")
def test_attention_masks_whose_sizes_only_the_graph_knows(case, rng):
    import tensorflow as tf

    attention_axes, query, value = case
    known = folding(attention_axes, query, value)
    shape = list(known.axes.scores_shape(query.shape, value.shape, 1))
    shape[0] = 1
    mask = rng.random(shape) < 0.5
    inputs = [tf.TensorSpec([None] * (query.ndim - 1) + [WIDTH])] * 2
    masks = tf.TensorSpec([1, *[None] * (mask.ndim - 1)], "bool")

    @tf.function(input_signature=[*inputs, masks])
    def folded(query, value, mask):
        return folding(attention_axes, query, value).fold_attention_mask(mask)

    expected = np.broadcast_to(known.fold_attention_mask(mask), folded(query, value, mask).shape)
    np.testing.assert_array_equal(folded(query, value, mask), expected)
