"""Which attention masks are padding, or padding times a lower triangle."""

import numpy as np
import pytest

from keras_cosattn.attention.known_masks import known_factors

B, T, S, HEADS = 2, 5, 7, 3
RIGHT = np.array([[True] * 5, [True, True, True, False, False]])
LEFT = RIGHT[:, ::-1]
HOLE = np.array([[True] * 5, [True, False, True, False, True]])
TRIANGLE = np.tril(np.ones((T, T), bool))


def same(found, expected):
    return (found is None) == (expected is None) and np.array_equal(found, expected)


@pytest.mark.parametrize("valid", [RIGHT, LEFT, HOLE], ids=["right", "left", "hole"])
def test_padding_times_a_triangle_is_causal(valid):
    factors = known_factors(TRIANGLE & valid[:, None])
    assert factors.causal
    assert factors.query_mask is None
    assert same(factors.key_mask, valid)


@pytest.mark.parametrize("valid", [RIGHT, LEFT, HOLE], ids=["right", "left", "hole"])
def test_rows_of_padding_may_be_false(valid):
    factors = known_factors(TRIANGLE & valid[:, None] & valid[:, :, None])
    assert factors.causal
    assert same(factors.key_mask, valid)


def test_a_triangle_alone_is_causal_in_every_rank():
    for mask in (TRIANGLE, TRIANGLE[None], np.tile(TRIANGLE, (B, HEADS, 1, 1))):
        factors = known_factors(mask)
        assert factors.causal
        assert factors.key_mask.all()


def test_equal_rows_are_padding(rng):
    keys = rng.random((B, S)) < 0.5
    factors = known_factors(np.repeat(keys[:, None], T, axis=1))
    assert not factors.causal
    assert factors.query_mask is None
    assert same(factors.key_mask, keys)


def test_padding_of_both_sides_is_found(rng):
    queries, keys = rng.random((B, T)) < 0.5, rng.random((B, S)) < 0.5
    queries[:, 0] = keys[:, 0] = True
    factors = known_factors(queries[:, :, None] & keys[:, None])
    assert not factors.causal
    assert same(factors.query_mask, queries)
    assert same(factors.key_mask, keys)


def test_other_masks_have_no_factors(rng):
    one_more = TRIANGLE.copy()
    one_more[1, 3] = True
    one_less = TRIANGLE.copy()
    one_less[4, 1] = False
    row_of_padding_in_part = TRIANGLE & RIGHT[:, None]
    row_of_padding_in_part[1, 4, 1] = False
    heads = np.stack([TRIANGLE, np.ones((T, T), bool)])[None]
    random = rng.random((B, T, S)) < 0.5
    for mask in (one_more, one_less, row_of_padding_in_part, heads, random, TRIANGLE[:, :4]):
        assert known_factors(mask) is None
