"""The public masks: their pictures are what they compute, and what the layers do."""

import inspect

import numpy as np
import pytest
from references import How, allowed
from support import assert_close, random_mask, random_segments
from variants import WIDTH, inputs

from keras_cosattn import LinearAttention, SoftmaxAttention, masks


def pictures(function):
    """The pictures in a docstring, left and right, as bool arrays."""
    rows = [line.strip() for line in inspect.getdoc(function).splitlines()]
    rows = [line for line in rows if line and set(line) <= set("#. ")]
    columns = zip(*[[*line.split("        "), ""][:2] for line in rows], strict=True)
    return [
        np.array([[c == "#" for c in row.split()] for row in column if row]) for column in columns
    ]


def assert_pictured(function, *found):
    for picture, mask in zip(pictures(function), found, strict=False):
        np.testing.assert_array_equal(np.asarray(mask).reshape(picture.shape), picture)


def test_the_pictures_are_true():
    assert_pictured(
        masks.padding_mask, masks.padding_mask([3, 5], 5), masks.padding_mask([3, 5], 5, "left")
    )
    assert_pictured(masks.segment_mask, masks.segment_mask([[7, 7, 2, 2, 2]]))
    assert_pictured(masks.look_ahead_mask, masks.look_ahead_mask(4), masks.look_ahead_mask(3, 5))
    np.testing.assert_array_equal(masks.segment_ids([2, 3]), [[0, 0, 1, 1, 1]])
    ids, real = [[0, 0, 0, 1, 1, 1]], [[False, True, True, True, True, True]]
    options = {"query_mask": real, "value_mask": real, "segment_ids": ids}
    assert_pictured(
        masks.combined_mask,
        masks.combined_mask(6, causal=True, **options),
        masks.combined_mask(6, **options),
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sides", [("left", "holes"), (None, "right"), ("holes", None)])
def test_combined_masks_equal_the_reference(causal, sides, rng):
    query_mask, value_mask = (
        random_mask(rng, s, 2, n) for s, n in zip(sides, (9, 13), strict=True)
    )
    found = masks.combined_mask(9, 13, query_mask=query_mask, value_mask=value_mask, causal=causal)
    expected = allowed(9, 13, How(query_mask, value_mask, causal=causal))[:, 0]
    np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))
    assert masks.combined_mask(3).shape == (1, 3, 3)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("sides", [("holes", "left"), (None, "left"), ("holes", None)])
def test_factors_and_their_product_do_the_same(sides, packed, causal, rng):
    x, layer = inputs(rng, 2, 13, WIDTH), SoftmaxAttention(2, 3)
    query_mask, value_mask = (random_mask(rng, side, 2, 13) for side in sides)
    ids = random_segments(rng, 2, 13) if packed else None
    factors = {"query_mask": query_mask, "value_mask": value_mask, "segment_ids": ids}
    product = masks.combined_mask(13, causal=causal, **factors)
    assert_close(
        layer(x, x, attention_mask=product), layer(x, x, use_causal_mask=causal, **factors)
    )


def test_padded_steps_are_as_if_they_were_absent(rng):
    x = inputs(rng, 2, 13, WIDTH)
    linear = LinearAttention(2, 3)
    real = masks.padding_mask([4, 13], 13)
    alone = linear(x[:1, :4], x[:1, :4])
    assert_close(np.asarray(linear(x, x, value_mask=real))[:1, :4], alone)


@pytest.mark.parametrize("as_given", [list, tuple, np.asarray], ids=lambda kind: kind.__name__)
def test_masks_are_lists_or_arrays(as_given):
    assert np.asarray(masks.padding_mask(as_given([1, 2]), 2)).tolist() == [[1, 0], [1, 1]]
    assert np.asarray(masks.segment_ids(as_given([2, 0, 1]))).tolist() == [[0, 0, 2]]
    ids, mask = as_given([[4, 4, 1]]), as_given([[1, 0, 1]])
    assert np.asarray(masks.segment_mask(ids)).sum(axis=-1).tolist() == [[2, 2, 1]]
    found = masks.combined_mask(3, query_mask=mask, value_mask=mask, segment_ids=ids, causal=True)
    assert np.asarray(found).tolist() == [[[1, 0, 0], [0, 0, 0], [0, 0, 1]]]


def test_no_examples_and_no_steps_have_no_mask():
    assert masks.padding_mask([], 3).shape == (0, 3)
    assert masks.padding_mask([0, 0], 0).shape == (2, 0)
    ids = masks.segment_ids([])
    assert (ids.shape, np.asarray(ids).dtype) == ((1, 0), "int32")
    assert masks.segment_mask(np.zeros((2, 0), "int32")).shape == (2, 0, 0)
    assert masks.look_ahead_mask(0, 2).shape == (1, 0, 2)
    assert masks.combined_mask(0, query_mask=np.zeros((2, 0), bool), causal=True).shape == (2, 0, 0)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"side='top'"):
        masks.padding_mask([3], 5, "top")
    with pytest.raises(ValueError, match=r"shape \(b,\). Received: lengths.shape=\(1, 1\)"):
        masks.padding_mask([[3]], 5)
