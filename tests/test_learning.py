"""The commands that train on the tasks: what they ask for, repeat and write."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from support import BACKEND

if BACKEND != "tensorflow":
    pytest.skip("the tasks are trained on TensorFlow", allow_module_level=True)

sys.path.append(str(pathlib.Path(__file__).parent.parent / "benchmarks"))

import learn
import report
from measure import attentions, learned, learning_report, learning_runs, plan
from tasks import TASKS

ROOT = pathlib.Path(__file__).parent.parent


class Learner:
    """Finds in no time that a rate of 0.003 is the best, and that 0.01 diverges."""

    asked = []  # noqa: RUF012

    def __init__(self, task, attention, conv=False, verbose=1):
        self.task = task

    def run(self, given, name, start=None):
        Learner.asked.append((given["search"], given["seed"], given["rate"], start))
        accuracy = {0.003: 0.8}.get(given["rate"], 0.5) + 0.02 * given["seed"]
        points = [
            {"updates": 10 * n, "seconds": n, "loss": 1 - accuracy, "accuracy": accuracy * n / 4}
            for n in range(1, 5)
        ]  # fmt: skip
        ended = "all updates"
        if given["rate"] == 0.01:
            points[-1], ended = {**points[-1], "loss": None}, "diverged"
        found = {"validations": points, "ended": ended, "updates": 40, "seconds": 4.0,
                 "xla": False, "parameters": 1_000, "softmax_parameters": 1_000,
                 "feed_forward_units": 7}  # fmt: skip
        if not given["search"]:
            test = {"loss": points[-1]["loss"], "accuracy": accuracy}
            found |= {"test": test, "scores": {each.name: each.value(test)
                                               for each in self.task.scores}}  # fmt: skip
        return found


@pytest.fixture
def learner(monkeypatch):
    monkeypatch.setattr(Learner, "asked", [])
    monkeypatch.setattr(learned, "Learner", Learner)
    return Learner


def call(program, monkeypatch, *line):
    monkeypatch.setattr(sys, "argv", [program.__file__, *map(str, line)])
    program.main()


def learn_all(monkeypatch, folder, *more, task="listops_200", attention="cosformer"):
    line = "--task", task, "--attention", attention, "--updates", 40, "--output", folder, *more
    call(learn, monkeypatch, *line)


def test_the_best_of_three_rates_is_trained_longer(learner, monkeypatch, tmp_path):
    learn_all(monkeypatch, tmp_path, "--seed", 5)
    assert learner.asked == [
        (True, 0, 0.001, None),
        (True, 0, 0.003, None),
        (True, 0, 0.01, None),
        (False, 5, 0.003, None),
    ]
    given = [run["given"] for run in learning_runs.folder(tmp_path).kept()]
    assert {each["updates"] for each in given} == {10, 40}
    assert {each["minutes"] for each in given} == {None}


def test_minutes_can_end_a_run_in_place_of_updates(learner, monkeypatch, tmp_path):
    line = "--task=text", "--attention=linear", "--minutes=1", f"--output={tmp_path}"
    call(learn, monkeypatch, *line)
    given = [run["given"] for run in learning_runs.folder(tmp_path).kept()]
    assert {each["minutes"] for each in given} == {0.25, 1.0}
    assert {each["updates"] for each in given} == {None}


def test_finished_runs_are_not_repeated(learner, monkeypatch, tmp_path):
    learn_all(monkeypatch, tmp_path)
    learn_all(monkeypatch, tmp_path)
    assert len(learner.asked) == 4
    learn_all(monkeypatch, tmp_path, "--seed", 1)
    assert learner.asked[4:] == [(False, 1, 0.003, None)]
    learn_all(monkeypatch, tmp_path, "--fresh")
    assert len(learner.asked) == 9


def test_one_rate_needs_no_search(learner, monkeypatch, tmp_path):
    learn_all(monkeypatch, tmp_path, "--rates", 0.01)
    assert learner.asked == [(False, 0, 0.01, None)]


def test_fine_tuning_starts_from_a_trained_model(learner, monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"starts from a trained model of mlm.* Train that"):
        learn_all(monkeypatch, tmp_path, "--rates", 0.003, task="mlm_imdb")
    learn_all(monkeypatch, tmp_path, "--rates", 0.01, task="mlm")  # it diverges
    with pytest.raises(FileNotFoundError, match="whose loss stayed finite"):
        learn_all(monkeypatch, tmp_path, "--rates", 0.003, task="mlm_imdb")
    learn_all(monkeypatch, tmp_path, "--rates", 0.003, task="mlm")
    learn_all(monkeypatch, tmp_path, "--rates", 0.003, task="mlm_imdb")
    assert learner.asked[-1][3].startswith("mlm_cosformer_0_0.003_")


def test_weights_that_are_gone_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(learned, "CACHE", tmp_path)
    with pytest.raises(FileNotFoundError, match="Repeat the run mlm_x with `--fresh`"):
        learned.trained_weights("mlm_x")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--task=lm", "--attention=lsh"], "lm cannot have lsh. It can have: softmax, linear"),
        (["--task=text", "--attention=softmax", "--conv"], "--conv is for the causal tasks"),
        (["--task=texts", "--attention=softmax"], "invalid choice: 'texts'"),
        (["--task=lm", "--attention=softmax", "--updates=0"], "positive whole number. Received: 0"),
        (["--task=lm", "--attention=softmax", "--updates=2.5"], "whole number. Received: 2.5"),
        (["--task=lm", "--attention=softmax", "--rates=-1"], "positive number. Received: -1"),
        (["--task=lm", "--attention=softmax", "--minutes=0"], "positive number. Received: 0"),
        (["--task=lm", "--attention=softmax"], "give --updates or --minutes"),
    ],
)
def test_a_wrong_choice_is_named(line, message, capsys):
    with pytest.raises(SystemExit):
        learn.arguments_of(line)
    assert message in capsys.readouterr().err


def test_every_command_of_the_plan_is_understood():
    commands = list(plan.commands())
    assert len(set(commands)) == len(commands)
    for command in commands:
        found = learn.arguments_of(command.arguments())
        told = found.task, found.attention, found.conv, found.seed, found.updates
        assert told == (command.task, command.attention, command.conv, command.seed,
                        command.updates)  # fmt: skip


def test_what_starts_from_a_model_comes_after_it():
    before = set()
    for command in plan.commands():
        source = TASKS[command.task].starts_from
        if source is not None:
            assert (source, command.attention, command.conv, command.seed) in before
        before.add((command.task, command.attention, command.conv, command.seed))


def test_the_first_seed_of_all_comes_before_the_second():
    seeds = [command.seed for command in plan.commands()]
    assert seeds == sorted(seeds)


def listed(output):
    """What `--list` prints, in a process of its own."""
    call = [sys.executable, "-m", "benchmarks.queue", "--list", "--output", output]
    done = subprocess.run(call, cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def test_the_queue_lists_what_is_left(learner, monkeypatch, tmp_path):
    first, *others = plan.commands()
    call(learn, monkeypatch, *first.arguments(), "--output", tmp_path)
    *lines, last = listed(tmp_path)
    assert [line.split("min  ")[1] for line in lines] == [" ".join(c.arguments()) for c in others]
    assert last.startswith(f"{len(others)} commands, about ")
    assert 6 <= float(last.split()[-2]) <= 8


def test_programs_of_the_folder_find_the_standard_library():
    """A folder `queue` with an `__init__.py` would hide the module that many others import."""
    call = [sys.executable, "-c", "import queue; queue.Queue()"]
    subprocess.run(call, cwd=ROOT / "benchmarks", check=True)


@pytest.fixture
def runs(learner, monkeypatch, tmp_path):
    """A folder of runs of two attentions, one with two seeds, beside floors."""
    folder = tmp_path / "runs"
    for seed in (0, 1):
        learn_all(monkeypatch, folder, "--seed", seed)
    learn_all(monkeypatch, folder, attention="softmax")
    learn_all(monkeypatch, folder, "--rates", 0.01, attention="lsh")
    for conv in ([], ["--conv"]):
        learn_all(monkeypatch, folder, "--rates", 0.003 if conv else 0.001, *conv, task="lm")
    learn_all(monkeypatch, folder, attention="relu", task="mlm")
    floors = {"listops_200": {"majority": 0.171}, "lm": {"bz2": 2.0}, "mlm": {"any piece": 8.3}}
    (tmp_path / "floors.json").write_text(json.dumps(floors))
    return folder


def test_the_report_has_spread_floors_and_pictures(runs, monkeypatch, tmp_path):
    call(report, monkeypatch, "--runs", runs)
    written = (tmp_path / "report.md").read_text()
    assert "| *majority* | - | - | - | 17.1% |" in written
    assert "| cosformer | 1,000 | 0.003 | 2 | 81.0% ± 1.4% | 40 | 81.0% ± 1.4% |" in written
    assert "| softmax | 1,000 | 0.003 | 1 | 80.0% | 40 | 80.0% |" in written
    assert "| lsh | 1,000 | 0.01 | 1 | diverged |" in written
    assert "*cosformer, published* | 37.9 | 63.4 | 61.4 | 43.2 | 70.3 | 55.23 |" in written
    assert "| cosformer | 0.721 | 0.289 | 0.433 |" in written  # 0.5 and 0.2 nats
    assert "| *any piece* | 8.300 | - |" in written
    assert "| relu | 0.200 | - |" in written
    assert str(ROOT) not in written
    assert (tmp_path / "listops_200.png").stat().st_size > 10_000
    tables = [block.splitlines() for block in written.split("\n\n") if block.startswith("|")]
    for lines in tables:
        assert {line.count("|") for line in lines} == {lines[0].count("|")}


def test_runs_are_compared_after_equally_many_seconds(runs, monkeypatch, tmp_path):
    """Four validations with accuracies that rise evenly; softmax needs twice the time."""
    call(report, monkeypatch, "--runs", runs)
    assert "ms of an update" not in (tmp_path / "report.md").read_text()
    times = {"cosformer": 500.0, "softmax": 1000.0, "lsh": 4000.0}
    updates = {name: {"milliseconds": ms, "xla": False} for name, ms in times.items()}
    one = json.loads(next(iter(runs.iterdir())).read_text())
    kept = {"listops_200": {"run": one["run"], "updates": updates}}
    (tmp_path / "update_times.json").write_text(json.dumps(kept))
    call(report, monkeypatch, "--runs", runs)
    written = (tmp_path / "report.md").read_text()
    assert "| ms of an update | validation after 20 seconds |" in written
    assert "| 81.0% ± 1.4% | 500 | 81.0% ± 1.4% |" in written
    assert "| 80.0% | 1000 | 40.0% |" in written


def test_curves_are_compared_where_the_shortest_ends():
    def run(ends):
        points = [{"updates": n, "loss": 1.0, "accuracy": n / 100}
                  for n in range(10, ends + 1, 10)]  # fmt: skip
        return {"found": {"validations": points, "ended": "all updates"}}

    chosen, score = {"one": [run(50), run(30)], "other": [run(40)]}, TASKS["text"].scores[0]
    end = learning_report.common_end(chosen, score)
    assert end == 30
    assert learning_report.common_end(chosen, score, {"one": 2.0, "other": 0.5}) == 20
    points = learning_report.curve(chosen["other"][0], score)
    assert learning_report.at(points, end) == pytest.approx(0.3)
    assert learning_report.at(points, 35) == pytest.approx(0.35)
    assert learning_report.at(points, 5) is None
    text = learning_report.at_equal_cost(chosen["one"], score, 25)
    assert text == "25.0% ± 0.0%"


def test_a_report_without_runs_says_so(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="no finished runs"):
        call(report, monkeypatch, "--runs", tmp_path / "none")


def test_every_planned_attention_has_a_layer():
    for each in plan.EXPERIMENTS:
        assert set(each.attentions) <= set(attentions.names(TASKS[each.task].causal))


@pytest.mark.slow
def test_the_commands_work_from_the_root(tmp_path):
    """Two processes that compile, 40 seconds."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    line = ["--task=recall", "--attention=linear", "--updates=2"]
    for module, options in (("learn", [*line, f"--output={tmp_path / 'runs'}"]),
                            ("report", [f"--runs={tmp_path / 'runs'}"])):  # fmt: skip
        call = [sys.executable, "-m", f"benchmarks.{module}", *options]
        subprocess.run(call, cwd=ROOT, env=environment, check=True)
    assert np.isfinite(json.loads((tmp_path / "floors.json").read_text())["recall"].popitem()[1])
