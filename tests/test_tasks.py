"""The data of the tasks that models learn, against its specification."""

import pathlib
import statistics
import sys

import numpy as np
import pytest
from support import BACKEND

if BACKEND != "tensorflow":
    pytest.skip("the tasks are trained on TensorFlow", allow_module_level=True)

sys.path.append(str(pathlib.Path(__file__).parent.parent / "benchmarks"))

from made_up_data import cache, made_up  # noqa: F401  fixtures
from tasks import listops, lm, mlm, pairs, pathfinder, pieces, reviews, text
from tasks.task import chosen, in_three, rows

SIGMAS = 4
"""How many standard deviations of the sampling a share may be off."""


def error_of(share, count):
    return SIGMAS * np.sqrt(share * (1 - share) / count)


def solved(tokens):
    """The value of a tree, read from its text alone."""
    rest = iter(tokens)

    def read():
        token = next(rest)
        if token == 15:
            return None
        if token <= 10:
            return token - 1
        values = []
        while (value := read()) is not None:
            values.append(value)
        assert 2 <= len(values) <= 10
        return {
            11: min(values),
            12: max(values),
            13: int(statistics.median(values)),
            14: sum(values) % 10,
        }[token]

    found = read()
    assert next(rest, None) is None
    return found


@pytest.fixture(scope="module")
def trees():
    return listops.draw_trees(np.random.default_rng(5), 3_000, 500, 2000)


def test_an_independent_solver_agrees_with_the_values(trees):
    for tokens, value in list(trees[0].items())[:500]:
        assert solved(tokens) == value


def test_lengths_and_depths_of_trees(trees):
    for tokens in trees[0]:
        assert 500 < len(tokens) < 2000
        codes = np.array(list(tokens))
        steps = np.isin(codes, listops.OPERATORS).astype(int) - (codes == listops.CLOSE)
        depths = np.cumsum(steps)
        assert 1 <= depths.max() < listops.DEEPEST
        assert depths[-1] == 0


def test_about_eight_percent_of_the_trees_are_kept(trees):
    found, drawn = trees
    assert len(found) / drawn == pytest.approx(0.084, abs=error_of(0.084, drawn))


def test_a_node_is_an_operator_with_probability_a_quarter():
    rng, count = np.random.default_rng(3), 2_000
    drawn = [listops.tree(rng, 10**6)[0] for _ in range(count)]
    roots = [tokens[0] for tokens in drawn if len(tokens) > 1]
    assert len(roots) / count == pytest.approx(0.25, abs=error_of(0.25, count))
    for operator in listops.OPERATORS:
        share = roots.count(operator) / len(roots)
        assert share == pytest.approx(0.25, abs=error_of(0.25, len(roots)))


def test_the_floors_of_listops(trees):
    """The published floors are 17.1 % and 36.1 %; more of a tree tells more."""
    tokens = np.zeros((3_000, 2000), "uint8")
    for row, one in zip(tokens, trees[0], strict=True):
        row[: len(one)] = np.frombuffer(one, "uint8")
    examples = rows(tokens, list(trees[0].values()))
    train, test = chosen(examples, slice(2_000)), chosen(examples, slice(2_000, None))
    found = listops.floors_of(train, test)
    assert found["majority"] == pytest.approx(0.171, abs=error_of(0.171, 1_000))
    assert found["root operator"] == pytest.approx(0.361, abs=error_of(0.361, 1_000))
    assert found["and its own digits"] > found["root operator"] + 0.05
    assert found["and the operators of its own lists"] > found["and its own digits"] + 0.02


def test_kept_trees_are_drawn_once(capsys):
    sizes = 20, 5, 5
    first, again = (listops.split(20, 100, sizes) for _ in range(2))
    assert capsys.readouterr().out.count("making") == 1
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.inputs, other.inputs)
    assert [len(part.labels) for part in first] == list(sizes)


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(2)
    return [pathfinder.draw_scene(rng)[0] for _ in range(60)]


def flooded(ink, start, reach):
    """Where a flood from a point comes that crosses gaps of twice `reach` pixels."""
    near = int(reach) + 1
    steps = [(i, j) for i in range(-near, near + 1) for j in range(-near, near + 1)
             if i * i + j * j <= reach * reach]  # fmt: skip
    wet = np.zeros(np.add(ink.shape, 2 * near), bool)
    inside = slice(near, -near)
    wet[inside, inside] = ink
    for i, j in steps:  # each line grows by `reach`
        wet[inside, inside] |= np.roll(np.pad(ink, near), (i, j), (0, 1))[inside, inside]
    wet = wet[inside, inside]
    seen, waiting = np.zeros(ink.shape, bool), [tuple(start)]
    while waiting:
        i, j = waiting.pop()
        if 0 <= i < len(ink) and 0 <= j < len(ink) and wet[i, j] and not seen[i, j]:
            seen[i, j] = True
            waiting += [(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)]
    return seen


def test_a_flood_joins_the_markers_if_the_label_is_one(scenes):
    scale = 8
    assert {scene.label for scene in scenes[:24]} == {0, 1}
    for scene in scenes[:24]:
        ink = pathfinder.render(scene, scale, markers=False) > 127
        start, end = np.int64(scene.markers * scale)
        seen = flooded(ink, start, 0.7 * scale)
        assert seen[tuple(start)]
        assert seen[tuple(end)] == bool(scene.label)


def test_dashes_and_gaps_have_their_lengths(scenes):
    for scene in scenes:
        assert [len(curve) for curve in scene.curves] == [14, 14, 4, 4, 4, 4, 4]
        for dashes in scene.curves:
            lengths = np.linalg.norm(dashes[:, 1] - dashes[:, 0], axis=1)
            gaps = np.linalg.norm(dashes[1:, 0] - dashes[:-1, 1], axis=1)
            np.testing.assert_allclose(lengths, 2.0)
            np.testing.assert_allclose(gaps, 1.0)
            assert dashes.min() > 0
            assert dashes.max() < 32


def test_curves_do_not_come_near_each_other(scenes):
    for scene in scenes[:20]:
        points = [np.concatenate([pathfinder.points_of(*dash) for dash in dashes])
                  for dashes in scene.curves]  # fmt: skip
        for i, one in enumerate(points):
            for other in points[:i]:
                apart = np.linalg.norm(one[:, None] - other[None], axis=-1)
                assert apart.min() >= pathfinder.APART


def test_markers_are_at_ends_of_long_curves(scenes):
    labels = []
    for scene in scenes:
        ends = [{tuple(dashes[0, 0]), tuple(dashes[-1, 1])} for dashes in scene.curves[:2]]
        first, second = map(tuple, scene.markers)
        both = [{first, second} <= pair for pair in ends]
        assert any(both) == bool(scene.label)
        assert {first, second} <= ends[0] | ends[1]
        labels.append(scene.label)
    assert np.mean(labels) == pytest.approx(0.5, abs=error_of(0.5, len(labels)))


def test_the_distance_of_the_markers_tells_little(monkeypatch):
    monkeypatch.setattr(pathfinder, "TRAIN", 150)
    monkeypatch.setattr(pathfinder, "VALIDATION", 1)
    monkeypatch.setattr(pathfinder, "TEST", 1)
    found = pathfinder.floors()
    assert found["majority"] <= found["distance of the markers"] < 0.75


def test_turns_have_the_probability_of_the_specification():
    rng, count = np.random.default_rng(0), 4_000
    turns = np.abs([pathfinder.turn(rng) for _ in range(count)])
    assert turns.max() < np.pi / 2
    wanted = 0.5 + 1 / np.pi  # of cos^2 between -pi/4 and pi/4, of that between -pi/2 and pi/2
    assert (turns < np.pi / 4).mean() == pytest.approx(wanted, abs=error_of(wanted, count))


def test_a_picture_shows_the_markers(scenes):
    for scene in scenes[:5]:
        pixels = pathfinder.render(scene)
        assert pixels.shape == (32, 32)
        for i, j in np.clip(np.int64(scene.markers), 0, 31):
            assert pixels[i, j] > 200


def test_no_document_is_in_two_parts():
    documents = [f"document {i}".encode() for i in range(100)]
    train, validation, test = lm.parts(documents)
    assert train + validation + test == documents
    assert (len(validation), len(test)) == (lm.VALIDATION, lm.TEST)


def test_pieces_of_a_text_follow_each_other():
    ids = np.arange(3 * lm.LENGTH + 5)
    x, y, weights = lm.pieces(ids, 10)
    assert x.shape == y.shape == weights.shape == (3, lm.LENGTH)
    np.testing.assert_array_equal(x.ravel(), ids[: 3 * lm.LENGTH])
    np.testing.assert_array_equal(y.ravel(), ids[1 : 3 * lm.LENGTH + 1])


def test_words_are_lower_case_and_punctuation_is_a_word():
    assert lm.words(b"The Union's state, 1862.") == [
        "the", "union", "'", "s", "state", ",", "1862", "."]  # fmt: skip


def test_pieces_are_hidden_as_the_paper_does():
    rng, count = np.random.default_rng(0), 200
    tokens = rng.integers(5, 100, (count, mlm.LENGTH))
    inputs, labels, _ = mlm.hide(rng, tokens, 100)
    places, shown = inputs["places"], inputs["tokens"]
    assert places.shape == labels.shape == (count, round(0.15 * mlm.LENGTH))
    assert all(len(set(row)) == len(row) for row in places)
    np.testing.assert_array_equal(np.take_along_axis(tokens, places, 1), labels)
    restored = shown.copy()
    np.put_along_axis(restored, places, labels, axis=1)
    np.testing.assert_array_equal(restored, tokens)
    there = np.take_along_axis(shown, places, 1)
    masked, same = (there == pieces.MASK).mean(), (there == labels).mean()
    assert masked == pytest.approx(0.8, abs=error_of(0.8, labels.size))
    by_chance = 0.1 + 0.1 / 95  # another piece may happen to be the same
    assert same == pytest.approx(by_chance, abs=error_of(by_chance, labels.size))


def test_half_of_the_pairs_are_of_one_group():
    groups = np.random.default_rng(0).integers(0, 4, 200)
    index, same = pairs.draw_pairs(np.random.default_rng(1), groups, 300)
    np.testing.assert_array_equal(groups[index[:, 0]] == groups[index[:, 1]], same)
    assert (index[:, 0] != index[:, 1]).all()
    assert same.sum() == 150


def test_bytes_are_one_more_than_their_values_and_zero_is_padding():
    found = text.padded(["a\x00", "bcde"], 3)
    np.testing.assert_array_equal(found, [[98, 1, 0], [99, 100, 101]])


def test_three_parts_share_no_example():
    examples = rows(np.arange(50), np.arange(50))
    data = in_three(examples, 10, 15)
    drawn = set(data.draw(np.random.default_rng(0), 1_000).labels)
    parts = drawn, set(data.validation.labels), set(data.test.labels)
    assert [len(part) for part in parts] == [25, 10, 15]
    assert len(set.union(*parts)) == 50


@pytest.mark.usefixtures("made_up")
def test_reviews_are_split_without_duplicates():
    parts = reviews.split("imdb", 8, 8)
    assert [len(texts) for texts, _ in parts] == [96, 8, 8]
    assert len({one for texts, _ in parts for one in texts}) == 112
    with pytest.raises(ValueError, match="no reviews of the source 'imbd'"):
        reviews.split("imbd", 8, 8)
