"""Attention weights out of any model, and measures of matrices that can be checked by hand."""

import math
import sys

import keras
import numpy as np
import pytest
from support import assert_close
from variants import DIRECTIONS, WIDTH, build, inputs, mask_of

from keras_cosattn import (
    CosFormerAttention,
    LinearAttention,
    RoutedAttention,
    SoftmaxAttention,
    TransformerDecoder,
    TransformerEncoder,
    analysis,
)

EXACT = 1e-6
N = 8
IDENTITY = np.eye(N)[None, None]
UNIFORM = np.full((2, 3, N, N), 1 / N)
CAUSAL = np.tri(N)[None, None]
CAUSAL_UNIFORM = CAUSAL / CAUSAL.sum(-1, keepdims=True)
PAST = analysis.seen_keys(N, causal=True)
SIGNED = np.array([[[[1.0, 1, -1, 0], [2, -1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]]])


def test_what_is_seen_is_padding_and_the_past():
    assert analysis.seen_keys(3, 2).shape == (1, 1, 3, 2)
    assert np.all(analysis.seen_keys(3, 2))
    assert np.array_equal(PAST, CAUSAL == 1)
    mask = mask_of((2, 3), 3, "left")
    seen = analysis.seen_keys(3, causal=True, query_mask=mask)
    assert seen.sum(axis=-1).tolist() == [[[0, 1, 2]], [[1, 2, 3]]]
    assert analysis.seen_keys(2, 3, key_mask=mask).sum(axis=-1).tolist() == [[[2, 2]], [[3, 3]]]


def test_a_mask_of_the_keys_hides_the_same_from_the_past_as_in_a_layer(rng):
    layer, x, mask = SoftmaxAttention(1, 3), inputs(rng, 2, 3, 5), mask_of((2, 3), 3, "left")
    how = {"value_mask": mask, "use_causal_mask": True, "return_attention_scores": True}
    weights = np.asarray(layer(x, x, **how)[1])
    assert np.array_equal(analysis.seen_keys(3, causal=True, key_mask=mask), weights > 0)


def test_negative_weights_are_counted_among_those_seen():
    assert analysis.negative_share(UNIFORM).tolist() == [0, 0, 0]
    assert analysis.negative_share(SIGNED)[0] == 2 / 16
    assert analysis.negative_mass(SIGNED)[0] == 2 / 10
    past = analysis.seen_keys(4, causal=True)
    assert analysis.negative_share(SIGNED, past)[0] == 1 / 10  # one lies in the future
    assert analysis.negative_mass(SIGNED, past)[0] == 1 / 8


def test_random_signs_are_half_negative(rng):
    weights = rng.normal(size=(2, 3, 64, 64))
    # 8,192 draws for a head: the share deviates by 0.0055, thrice that is rare.
    assert_close(analysis.negative_share(weights), np.full(3, 0.5), 0.04)
    assert_close(analysis.negative_mass(weights), np.full(3, 0.5), 0.04)


def test_mass_within_a_distance():
    assert analysis.mass_within(IDENTITY, 0) == 1
    assert analysis.mass_within(UNIFORM, 0).tolist() == [1 / N] * 3
    # Two rows of uniform weights have one neighbour, the others two.
    found = analysis.mass_within(UNIFORM, [0, 1, N - 1])
    assert_close(found, [[1 / N, (2 * 2 + 6 * 3) / 64, 1]] * 3, EXACT)
    expected = np.mean([min(2, t + 1) / (t + 1) for t in range(N)])
    assert_close(analysis.mass_within(CAUSAL_UNIFORM, 1, PAST), [expected], EXACT)
    # In magnitudes, over the three rows that have some: 1/3, 1/3 and 1/4 on the diagonal.
    assert_close(analysis.mass_within(SIGNED, 0), [(1 / 3 + 1 / 3 + 1 / 4) / 3], EXACT)
    assert analysis.mass_within(UNIFORM, []).shape == (3, 0)


def test_entropy_is_one_where_all_are_alike_and_zero_at_one_key():
    assert_close(analysis.entropy(UNIFORM), np.ones((2, 3, N)), EXACT)
    assert_close(analysis.entropy(UNIFORM, relative=False), np.full((2, 3, N), math.log(N)), EXACT)
    assert not np.any(analysis.entropy(IDENTITY))
    found = analysis.entropy(CAUSAL_UNIFORM, PAST)[0, 0]
    assert np.isnan(found[0])  # one key
    assert_close(found[1:], np.ones(N - 1), EXACT)
    assert np.all(analysis.entropy(CAUSAL_UNIFORM)[0, 0, :-1] < 1)  # of all n keys
    found = analysis.entropy(SIGNED, relative=False)[0, 0]
    assert_close(found[[0, 3]], np.log([3, 4]), EXACT)
    assert found[1] == pytest.approx(math.log(3) - 2 / 3 * math.log(2))
    assert np.isnan(found[2])


@pytest.mark.parametrize("measure", [analysis.negative_share, analysis.negative_mass])
def test_padding_counts_nowhere(measure, rng):
    weights, junk = rng.normal(size=(2, 2, N, N)), rng.normal(size=(2, 2, N, N))
    seen = analysis.seen_keys(N, query_mask=mask_of((5, 5), N))
    junk = np.where(seen, weights, 100 * junk)
    alone = weights[:, :, :5, :5]
    assert_close(measure(junk, seen), measure(alone), EXACT)
    assert_close(analysis.entropy(junk, seen)[..., :5], analysis.entropy(alone), EXACT)
    assert_close(analysis.mass_within(junk, 1, seen), analysis.mass_within(alone, 1), EXACT)


def test_dilution_tells_uniform_weights_from_one_key():
    x = np.zeros((1, 64, 1))

    def alike(x):
        return np.full((1, 1, x.shape[1], x.shape[1]), 1 / x.shape[1])

    for n, row in zip((2, 8, 64), analysis.dilution(alike, x, [2, 8, 64]), strict=True):
        assert row == pytest.approx((n, 1 / n, 1, 0, 1))
    for row in analysis.dilution(lambda x: np.eye(x.shape[1])[None, None], x, [2, 8, 64]):
        n = row.length
        assert row == pytest.approx((n, 1, n, math.sqrt(n - 1), 0))


def test_softmax_of_bounded_scores_dilutes_and_the_layer_is_its_function(rng):
    layer, x = SoftmaxAttention(2, 3), inputs(rng, 2, 64, 5)
    rows = analysis.dilution(layer, x, [4, 16, 64])
    weights = layer(x[:, :16], x[:, :16], return_attention_scores=True)[1]
    assert analysis.dilution(lambda _: weights, x, [16])[0] == pytest.approx(rows[1])
    largest = [row.largest for row in rows]
    assert largest[0] > 1.5 * largest[1] > 1.5**2 * largest[2]
    assert rows[0].times_mean < rows[2].times_mean < 64 / 4
    causal = analysis.dilution(layer, x, [4, 64], use_causal_mask=True)
    assert all(0.8 < row.entropy < 1 for row in causal)
    with pytest.raises(ValueError, match=r"2 to the 64 steps of `inputs`. Received: 65 in"):
        analysis.dilution(layer, x, [2, 65])


@pytest.mark.parametrize("layer_class", [SoftmaxAttention, LinearAttention])
def test_dilution_leaves_padding_and_other_packed_sequences_out(layer_class, rng):
    layer, x = layer_class(2, 3), inputs(rng, 2, 9, 5)
    padded = np.concatenate([x, 100 * inputs(rng, 2, 4, 5)], axis=1)
    mask = mask_of((9, 9), 13)
    (alone,) = analysis.dilution(layer, x, [9], use_causal_mask=True)
    both = analysis.dilution(layer, padded, [9, 13], mask=mask.tolist(), use_causal_mask=True)
    assert both[0] == pytest.approx(alone, rel=1e-5)
    assert both[1] == pytest.approx((13, *alone[1:]), rel=1e-5)
    function = analysis.dilution(
        lambda x: layer(x, x, value_mask=mask[:, : x.shape[1]], return_attention_scores=True)[1],
        padded, [13], mask=mask,
    )  # fmt: skip
    assert function[0] == pytest.approx(analysis.dilution(layer, padded, [13], mask=mask)[0])
    ids = np.repeat([[0, 1]], [9, 4], axis=1).repeat(2, axis=0)
    parts = [analysis.dilution(layer, part, [part.shape[1]])[0] for part in (x, padded[:, 9:])]
    (packed,) = analysis.dilution(layer, padded, [13], segment_ids=ids)
    mean = (9 * parts[0].entropy + 4 * parts[1].entropy) / 13
    assert packed.entropy == pytest.approx(mean, rel=1e-5)


def test_nothing_without_mass_counts_and_nothing_warns(recwarn):
    nothing = np.zeros((2, 3, 4, 4))
    assert np.all(np.isnan(analysis.mass_within(nothing, [0, 1])))
    assert np.all(np.isnan(analysis.negative_mass(nothing)))
    assert np.all(np.isnan(analysis.entropy(nothing)))
    (row,) = analysis.dilution(lambda _: nothing, np.zeros((2, 4, 1)), [4])
    assert np.all(np.isnan(row[1:]))
    empty = np.zeros((0, 3, 4, 4))
    assert analysis.mass_within(empty, [0, 1]).shape == (3, 2)
    assert analysis.entropy(empty).shape == (0, 3, 4)
    assert not recwarn.list


def test_what_is_not_seen_may_be_anything(rng):
    weights, mask = rng.random((2, 3, N, N)), mask_of((5, 8), N)
    seen = analysis.seen_keys(N, query_mask=mask.tolist())
    unknown = np.where(seen, weights, np.nan)
    for measure in (analysis.negative_share, analysis.negative_mass, analysis.entropy):
        assert_close(
            np.nan_to_num(measure(unknown, seen)), np.nan_to_num(measure(weights, seen)), 0
        )
    assert_close(analysis.mass_within(unknown, 1, seen), analysis.mass_within(weights, 1, seen), 0)


def test_keys_of_other_packed_sequences_are_not_seen():
    seen = analysis.seen_keys(4, causal=True, segment_ids=[[5, 5, 2, 2]])
    assert seen[0, 0].sum(axis=-1).tolist() == [1, 2, 1, 2]


@pytest.mark.parametrize("layer_class", [SoftmaxAttention, LinearAttention, CosFormerAttention])
def test_a_model_that_masks_steps_shows_weights_of_valid_steps_only(layer_class, rng):
    x = inputs(rng, 2, 7, WIDTH)
    mask = mask_of((4, 7), 7)
    x[~mask] = 0
    features = keras.Input((None, WIDTH))
    y = keras.layers.Masking()(features)
    y = TransformerEncoder(8, attention=layer_class(2, 3), name="block")(y)
    model = keras.Model(features, layer_class(2, 3, name="last")(y, y))
    before = model(x)
    found = analysis.attention_weights(model, x)
    assert list(found) == ["block/self_attention", "last"]
    seen = np.broadcast_to(analysis.seen_keys(7, query_mask=mask), (2, 2, 7, 7))
    for weights in found.values():
        assert np.all(np.isfinite(weights))
        assert not np.any(weights[~seen])
    short = analysis.attention_weights(model, x[:1, :4])["last"]
    assert_close(found["last"][:1, :, :4, :4], short, 1e-5)
    assert_close(model(x), before, 0)


@pytest.mark.parametrize(("case", "causal"), DIRECTIONS)
def test_every_variant_shows_weights_that_respect_what_is_seen(case, causal, rng):
    layer, x, mask = build(case), inputs(rng, 2, 13, WIDTH), mask_of((13, 6), 13)
    how = {"query_mask": mask, "value_mask": mask, "use_causal_mask": causal}
    plain = layer(x, x, **how)
    (weights,) = (
        w for path, w in analysis.attention_weights(layer, x, **how).items() if path == layer.path
    )
    assert weights.shape == (2, 6, 13, 13)
    assert np.all(np.isfinite(weights))
    assert_close(layer(x, x, **how), plain, 0)
    seen = np.broadcast_to(analysis.seen_keys(13, causal=causal, query_mask=mask), weights.shape)
    assert not np.any(weights[~seen])
    near = analysis.mass_within(weights, [0, 12], seen)
    assert_close(near[:, 1], np.ones(6), EXACT)
    spread = analysis.entropy(weights, seen)
    assert np.nanmin(spread) > -EXACT
    assert np.nanmax(spread) < 1 + EXACT
    if type(layer).__name__ in {"SoftmaxAttention", "LinearAttention", "CosFormerAttention"}:
        sums, some = weights.sum(-1), np.any(weights != 0, axis=-1)
        assert_close(sums[some], np.ones(some.sum()), 1e-5)
        assert not np.any(analysis.negative_share(weights, seen))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="own")
        self.block = TransformerEncoder(8, attention=CosFormerAttention(2, 3), name="block")
        self.attention = LinearAttention(3, 2, name="attention")

    def call(self, x):
        x = self.block(x)
        x = self.attention(x, x)
        return self.attention(x, x)


def functional():
    x = keras.Input((None, WIDTH))
    y = TransformerDecoder(8, attention=SoftmaxAttention(2, 3), name="block")(x)
    routed = RoutedAttention([LinearAttention(2, 3), SoftmaxAttention(2, 3)], name="routed")
    return keras.Model(x, routed(y, y))


def test_every_layer_of_a_model_is_found_by_its_path(rng):
    x = inputs(rng, 2, 5, WIDTH)
    model = functional()
    before = model(x)
    found = analysis.attention_weights(model, x)
    assert list(found) == ["block/self_attention", "routed/path_0", "routed/path_1", "routed"]
    block = model.get_layer("block")
    expected = block.self_attention(x, x, use_causal_mask=True, return_attention_scores=True)[1]
    assert_close(found["block/self_attention"], expected, EXACT)
    assert_close(model(x), before, 0)  # nothing stays behind

    model = Subclassed()
    with pytest.raises(ValueError, match=r"'own' is not built. Call it once"):
        analysis.attention_weights(model, x)
    before = model(x)
    found = analysis.attention_weights(model, x)
    assert list(found) == ["own/block/self_attention", "own/attention", "own/attention:1"]
    assert [w.shape for w in found.values()] == [(2, 2, 5, 5), (2, 3, 5, 5), (2, 3, 5, 5)]
    assert np.any(found["own/attention"] != found["own/attention:1"])
    assert_close(model(x), before, 0)


def test_a_layer_that_was_asked_for_its_weights_still_gives_them(rng):
    block = TransformerEncoder(8, attention=SoftmaxAttention(2, 3))
    x = inputs(rng, 2, 5, WIDTH)
    _, expected = block(x, return_attention_scores=True)
    (found,) = analysis.attention_weights(block, x, return_attention_scores=True).values()
    assert_close(found, expected, 0)


def test_half_precision_weights_are_numbers(rng):
    layer, x = SoftmaxAttention(2, 3, dtype="mixed_bfloat16"), inputs(rng, 2, 5, WIDTH)
    layer(x, x)
    (found,) = analysis.attention_weights(layer, x).values()
    assert_close(found.sum(-1), np.ones((2, 2, 5)), 2e-2)  # bfloat16 keeps 8 bits


def test_a_model_without_attention_is_refused(rng):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="d")], name="dense")
    with pytest.raises(ValueError, match="'dense' called no attention layer"):
        analysis.attention_weights(model, np.ones((1, 3)))
    with pytest.raises(ValueError, match=r"\(b, h, t, s\). Received: shape \(8, 8\)"):
        analysis.entropy(np.eye(8))


def test_draws_a_panel_for_each_matrix_and_writes_only_when_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = {"one": IDENTITY, "two": CAUSAL_UNIFORM, "signed": SIGNED}
    figure = analysis.draw(weights, seen=None)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["one", "two", "signed", "mass within a distance"]
    assert not list(tmp_path.iterdir())
    rows = analysis.dilution(lambda x: np.eye(x.shape[1])[None, None], np.ones((1, 9, 1)), [2, 8])
    figure = analysis.draw({"one": IDENTITY}, head=0, dilutions={"one": rows}, path="w.png")
    assert len([axes for axes in figure.axes if axes.get_title()]) == 4
    assert [p.name for p in tmp_path.iterdir()] == ["w.png"]


def test_a_matrix_is_drawn_in_units_of_the_mean():
    figure = analysis.draw({"past": CAUSAL_UNIFORM}, seen=PAST)
    (image,) = (axes.images[0] for axes in figure.axes if axes.get_title() == "past")
    drawn = image.get_array()
    assert np.array_equal(np.ma.getmaskarray(drawn) | np.isnan(drawn.data), ~PAST[0, 0])
    assert_close(drawn.data[PAST[0, 0]], np.ones(36), EXACT)


def test_one_key_is_drawn():
    figure = analysis.draw({"one": np.ones((1, 1, 1, 1))})
    (line,) = (axes.lines[0] for axes in figure.axes if axes.lines)
    assert line.get_xydata().tolist() == [[1, 1]]


def test_without_matplotlib_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        analysis.draw({"one": IDENTITY})


def test_draws_how_much_of_each_path_a_step_takes(rng, tmp_path):
    layer, x = (
        RoutedAttention([LinearAttention(2, 3), SoftmaxAttention(2, 3)]),
        inputs(rng, 2, 9, 7),
    )
    layer(x, x)
    routes = np.asarray(layer.route_weights(x))
    figure = analysis.draw_routes(routes, ["linear", "softmax"], example=1, path=tmp_path / "r.png")
    top = figure.axes[0].collections[1].get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx(1, abs=1e-5)  # the bands fill everything
    lower = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1].max()
    assert lower == pytest.approx(routes[1, :, 0].max(), abs=1e-5)
    assert (tmp_path / "r.png").exists()
    with pytest.raises(ValueError, match=r"one for each path. Received: names=\['one'\]"):
        analysis.draw_routes(routes, ["one"])
    with pytest.raises(ValueError, match=r"Received: shape \(9, 2\)"):
        analysis.draw_routes(routes[0])
