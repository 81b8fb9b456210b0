"""The programs that measure: what they refuse to time, what they keep, and what they write."""

import contextlib
import json
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from variants import CANNOT, VARIANTS

sys.path.append(str(pathlib.Path(__file__).parent.parent / "benchmarks"))

import compact_state
import gpu
import precision
import profile_fit
import recall
import speed
import state_tracking
import train
from measure import (
    cells,
    limits,
    process,
    recall_data,
    reference,
    report,
    results,
    run,
    run_folder,
    run_report,
    side_keras,
)
from measure.process import FailedError

ROOT = pathlib.Path(__file__).parent.parent


class Worker:
    """Answers as a worker does, in this process; it computes what it should, times an error."""

    error = 0.0
    asked = ()
    failing = {}  # noqa: RUF012

    def __init__(self, cell):
        self.cell = cell

    def ask(self, do, seconds=None, memory=None, cell=None, **request):
        Worker.asked.append((do, cell and cell["key"]))
        why = self.failing.get((do, cell and cell["n"]))
        if why:
            raise FailedError(why, True)
        return getattr(self, f"do_{do}")(cell, **request)

    def do_peak(self, cell):
        return 1.5

    def do_prepare(self, cell):
        return 0.0

    def do_values(self, cell, path):
        told = {name: value for name, value in cell.items() if name not in ("xla", "key")}
        wanted = reference.expected(cells.Cell(**{**told, "options": ()}))
        factor = 1 + self.error if cell["side"] == "torch" else 1
        np.savez(path, *[factor * x for x in wanted])

    def do_time(self, cell, calls):
        return 1e-6 * cell["n"] ** 2

    def do_rates(self, cell):
        return {"flops": 1e9, "bytes": 1e9}

    def do_versions(self, cell):
        return {"package": "1.0"}

    def do_device(self, cell):
        return None

    def close(self):
        pass


class Settings(run.Settings):
    def worker(self, cell):
        return Worker(cell)


@pytest.fixture
def worker(monkeypatch):
    monkeypatch.setattr(Worker, "asked", [])
    return Worker


ARGUMENTS = [
    "--lengths", "8", "16", "--heads", "2", "--size", "3", "--levels", "core",
    "--sides", "tensorflow", "torch",
]  # fmt: skip


def measured(path, fresh=False, settings=None):
    """The arguments, cells and store of a small run."""
    arguments = speed.arguments_of(ARGUMENTS)
    chosen = speed.cells_of(arguments)
    store = results.Store(path, fresh)
    this_run = store.begin(arguments.seed)
    run.measure(chosen, store, this_run, settings or Settings(), log=lambda *_, **__: None)
    return arguments, chosen, store


def times_asked(worker):
    return [key for do, key in worker.asked if do == "time"]


def test_equal_sides_are_timed_in_turns(worker, tmp_path):
    _, chosen, store = measured(tmp_path / "speed.json")
    assert {store.cells[cell.key]["status"] for cell in chosen} == {"ok"}
    group = [cell.key for cell in chosen if cell.group == chosen[0].group]
    asked = times_asked(worker)
    assert asked[: len(group)] == asked[len(group) : 2 * len(group)] == group


@pytest.mark.parametrize("error", [0.01, -1.0, float("nan")])
def test_sides_with_different_values_are_not_timed(worker, tmp_path, monkeypatch, error):
    monkeypatch.setattr(worker, "error", error)
    with pytest.raises(run.DifferentValuesError, match=r"torch,.* differs from the float64"):
        measured(tmp_path / "speed.json")
    assert not times_asked(worker)


@pytest.mark.parametrize(
    ("found", "wanted", "apart"),
    [
        ([[1.0, 2.0]], [[1.0, 2.0]], 0),
        ([[1.0, 2.1]], [[1.0, 2.0]], 0.05),
        ([[1.0], [1e-5]], [[1.0], [0.0]], 0.01),
        ([[1.0, 2.0]], [[1.0]], np.inf),
        ([[np.nan], [1.0]], [[1.0], [1.0]], np.nan),
    ],
)
def test_a_difference_is_relative_to_the_largest_number(found, wanted, apart):
    found, wanted = ([np.array(x) for x in arrays] for arrays in (found, wanted))
    assert run.difference(found, wanted) == pytest.approx(apart, nan_ok=True)


def test_a_difference_may_be_that_of_the_root_mean_squares():
    found, wanted = ([np.array(x) for x in arrays] for arrays in ([[0.0], [4.0]], [[3.0], [4.0]]))
    assert run.difference(found, wanted, rms=True) == pytest.approx(0.6)
    assert np.isnan(run.difference([np.array([np.nan])], wanted[:1], rms=True))


def test_finished_cells_are_not_measured_again(worker, tmp_path):
    path = tmp_path / "speed.json"
    measured(path)
    kept = path.read_text()
    worker.asked.clear()
    measured(path)
    assert not worker.asked
    assert path.read_text() == kept
    measured(path, fresh=True)
    assert worker.asked


def test_an_interrupted_run_goes_on_where_it_stopped(worker, tmp_path, monkeypatch):
    path = tmp_path / "speed.json"
    with monkeypatch.context() as changed:
        changed.setattr(worker, "error", 0.01)
        with pytest.raises(run.DifferentValuesError):
            measured(path)
    peaks = [key for do, key in worker.asked if do == "peak"]
    worker.asked.clear()
    _, chosen, store = measured(path)
    assert not set(peaks) & {key for do, key in worker.asked if do == "peak"}
    assert all(store.done(cell.key) for cell in chosen)


def test_what_runs_out_of_memory_is_kept_and_longer_is_not_tried(worker, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "failing", {("peak", 8): "out of memory"})
    arguments, chosen, store = measured(tmp_path / "speed.json")
    for cell in chosen:
        before = "" if cell.n == 8 and not cell.gradient else " before"
        assert store.cells[cell.key]["status"] == f"out of memory{before}"
    assert {key for do, key in worker.asked if do == "peak"} == {
        cell.key for cell in chosen if cell.n == 8 and not cell.gradient
    }
    store.forget_failures([cell.key for cell in chosen])
    assert all(store.done(cell.key) for cell in chosen)
    speed.write(arguments, chosen, store, tmp_path / "speed.json")
    store.forget_failures([cell.key for cell in chosen], ran_out=True)
    assert not store.cells
    assert "| out of memory | out of memory before |" in (tmp_path / "speed.md").read_text()


def test_what_failed_is_tried_again(worker, tmp_path, monkeypatch):
    path = tmp_path / "speed.json"
    with monkeypatch.context() as changed:
        changed.setattr(worker, "failing", {("prepare", 16): "ValueError: a | b"})
        arguments, chosen, store = measured(path)
    speed.write(arguments, chosen, store, path)
    assert "fails [1]" in path.with_suffix(".md").read_text()
    _, chosen, store = measured(path)
    assert all(store.cells[cell.key]["status"] == "ok" for cell in chosen)


@pytest.mark.parametrize("do", ["prepare", "values", "time", "rates", "versions"])
def test_a_worker_that_ends_costs_its_own_cells_only(worker, tmp_path, monkeypatch, do):
    monkeypatch.setattr(worker, "failing", {(do, 16): "out of memory"})
    _, chosen, store = measured(tmp_path / "speed.json")
    found = {cell.n: store.cells[cell.key]["status"] for cell in chosen}
    assert found == {8: "ok", 16: "too little memory beside the other rows: choose fewer rows"}


def test_a_process_that_fails_says_why():
    started = process.Worker("nothing")
    with contextlib.closing(started), pytest.raises(FailedError) as failed:
        started.ask("device")
    assert failed.value.ended
    assert "No module named 'measure.side_nothing'" in failed.value.why


@pytest.mark.parametrize(
    ("guard", "why"), [({"seconds": 0}, "out of time"), ({"memory": 1000}, "out of memory")]
)
def test_a_process_that_takes_too_much_is_ended(guard, why):
    started = process.Worker("tensorflow")
    with pytest.raises(FailedError) as failed:
        started.ask("device", **guard)
    assert (failed.value.why, failed.value.ended) == (why, True)
    assert started.process.returncode is not None


def test_a_process_that_the_system_killed_is_closed():
    with contextlib.closing(process.Worker("nothing")) as started:
        started.process.kill()
        started.process.wait()
        with pytest.raises(FailedError, match="out of memory"):
            started.ask("device")


def test_the_tables_are_whole(worker, tmp_path):
    arguments, chosen, store = measured(tmp_path / "speed.json")
    speed.write(arguments, chosen, store, tmp_path / "speed.json")
    text = (tmp_path / "speed.md").read_text()
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert tables
    for lines in tables:
        assert {line.count("|") for line in lines} == {lines[0].count("|")}
    assert "seed 0" in text
    assert results.fingerprint() in text
    assert str(ROOT) not in text
    assert json.loads((tmp_path / "speed.json").read_text())["runs"][0]["versions"]
    assert (tmp_path / "speed.png").stat().st_size > 10_000


def test_rows_and_tables_that_say_nothing_are_left_out(worker, tmp_path):
    path = tmp_path / "speed.json"
    arguments, chosen, store = measured(path, settings=Settings(peak=False))
    speed.write(arguments, chosen, store, path)
    text = path.with_suffix(".md").read_text()
    assert "| time, ms |" in text
    assert "| peak memory, MiB |" not in text
    assert not re.search(r"^\|[^|]+(\| -? ?)+\|$", text, re.MULTILINE)


@pytest.mark.parametrize("program", [speed, gpu])
def test_a_row_that_is_not_there_is_named(program, capsys):
    with pytest.raises(SystemExit):
        program.arguments_of(["--rows", "cosformer", "FlashAttention"])
    assert "invalid choice: 'FlashAttention'" in capsys.readouterr().err


def test_the_slope_is_the_power_of_the_length():
    assert report.slope({n: 3e-9 * n**1.5 for n in (1024, 4096, 16384)}) == pytest.approx(1.5)
    assert report.slope({256: 1.0, 1024: 2.0}) is None


def test_the_limit_counts_each_product():
    sizes = {"batch": 1, "heads": 8, "size": 64, "seed": 0}
    found = {
        row.what: limits.operations(row.cells(4096, True, False, **sizes)[0])
        for row in cells.CORE
        if row.what in ("cosformer", "linear", "softmax")
    }
    n, d, c, h = 4096, 64, limits.CHUNK, 8
    assert found == {
        "cosformer": n * h * (2 * c * 2 * d // 2 + 2 * 2 * 2 * d * d),
        "linear": n * h * (2 * c * 2 * d // 2 + 2 * 2 * d * d),
        "softmax": n * h * (2 * n * 2 * d // 2),
    }


def test_every_layer_is_measured_in_every_direction_that_it_has():
    rows = {row.what: row for row in cells.LAYERS}
    for cls in VARIANTS:
        refused = [uses for name, uses in CANNOT.items() if name.startswith(f"{cls.__name__}-")]
        for causal, use in ((True, "causal"), (False, "both ways")):
            can = any(use not in uses for uses in refused)
            assert (causal in rows[cls.__name__].directions) == can, (cls, use)


def test_training_stands_beside_the_paper(worker, tmp_path):
    arguments = train.arguments_of(["--lengths", "1024"])
    chosen = train.cells_of(arguments)
    store = results.Store(tmp_path / "train.json")
    store.begin(0)
    for cell in chosen:
        store.put(cell.key, status="ok", median=2.0 if cell.what == "softmax" else 1.0, peak_mib=1)
    train.write(arguments, chosen, store, store.path)
    text = (tmp_path / "train.md").read_text()
    assert "| the paper, on its GPU | 1.77 | 2.57 |" in text
    assert "| this run, TensorFlow + XLA | 2.00 | not measured |" in text


def test_without_a_gpu_the_table_says_so(worker, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.run, "Settings", Settings)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--quick", "--output", str(tmp_path)])
    gpu.main()
    assert {do for do, _ in worker.asked} == {"device"}
    text = (tmp_path / "gpu_quick.md").read_text()
    assert "not measured [1]" in text
    assert "there is no GPU" in text


def test_a_part_beside_its_components():
    medians = dict.fromkeys(set(profile_fit.SUMS) | PARTS, 1.0)
    ratios = {row[0]: row[3] for row in profile_fit.compared(medians, blocks=4)}
    assert ratios["compiled step"] == pytest.approx(1 / 7)
    assert ratios["norm"] is None


PARTS = {name for components in profile_fit.SUMS.values() for name in components}


@pytest.mark.parametrize(("name", "gradient"), [("fit", True), ("predict", False)])
def test_what_is_timed_reads_a_dataset_that_ends_at_once(monkeypatch, name, gradient):
    (cell,) = cells.Row("model", "linear", "", ("tensorflow",)).cells(
        8, False, gradient, batch=2, heads=1, size=4, seed=0,
        options=(("blocks", 1), ("hidden", 4), ("steps", 2)),
    )  # fmt: skip
    given = []
    original = getattr(keras.Model, name)

    def watched(model, data, *args, **kwargs):
        given.append(data.options().autotune.enabled)
        return original(model, data, *args, **kwargs)

    monkeypatch.setattr(keras.Model, name, watched)
    run, _ = side_keras.build_model(cell.request())
    run()
    assert given == [False]


def test_rounding_is_that_of_the_type():
    found = np.reshape(precision.errors("LinearAttention-elu", True, 16), (3, 3))
    (float32, bfloat16, float16), largest, middling = found.T
    assert np.all((middling > largest / 10) & (middling < 2 * largest))
    assert float32 < 1e-5 < float16 < bfloat16 < 0.1


def test_a_state_in_int8_loses_more_than_one_in_int16():
    streams = compact_state.streams(compact_state.LAYERS["`Mamba2Attention`"])
    (int16,), (int8,) = compact_state.measure(streams, 1_000).values()
    assert 30 < int8 < 60 < int16 < 120


@pytest.mark.parametrize(
    ("length", "pairs", "vocabulary"), [(8, 2, 12), (64, 4, 512), (65, 16, 40)]
)
def test_each_question_is_a_key_with_its_value(length, pairs, vocabulary):
    inputs, values, weights = recall_data.recall(
        np.random.default_rng(1), 50, length, pairs, vocabulary
    )
    tokens, places = inputs["tokens"], inputs["places"]
    assert tokens.shape == (50, length)
    assert places.shape == values.shape == weights.shape == (50, pairs)
    assert (weights == 1).all()
    for row, asked, answers in zip(tokens, places, values, strict=True):
        told = dict(row[: 2 * pairs].reshape(pairs, 2))
        assert len(told) == len(set(told.values())) == pairs
        assert [told[row[place]] for place in asked] == list(answers)
        assert len(set(asked)) == pairs
        assert min(asked) >= 2 * pairs
        assert not any(asked % 2)
        assert all(0 < key < vocabulary // 2 <= value < vocabulary for key, value in told.items())
        assert np.count_nonzero(row) == 3 * pairs


def test_most_questions_come_soon_and_some_late():
    inputs, _, _ = recall_data.recall(np.random.default_rng(1), 20_000, 64, 1, 64)
    found = np.bincount((inputs["places"][:, 0] - 2) // 2, minlength=31) / 20_000
    wanted = np.arange(1, 32) ** (0.01 - 1)
    wanted /= wanted.sum()
    np.testing.assert_allclose(found, wanted, atol=4 * np.sqrt(0.25 / 20_000))


def test_questions_need_room():
    with pytest.raises(ValueError, match="5 pairs and their questions need 20 steps, not 18"):
        recall_data.recall(np.random.default_rng(1), 1, 18, 5, 64)


def test_examples_are_those_of_the_seed_and_the_part():
    first, same, other = (
        recall_data.recall(recall_data.generator(1, part), 9, 64, 4, 512)[0]["tokens"]
        for part in (recall_data.TRAIN, recall_data.TRAIN, recall_data.TEST)
    )
    assert (first == same).all()
    assert (first != other).any(axis=1).all()


@pytest.mark.parametrize("first", [0, 7])
def test_parity_counts_the_ones_so_far(first):
    inputs, labels, weights = recall_data.parity(np.random.default_rng(1), 200, 32, 40, first)
    bits = inputs["tokens"]
    assert bits.shape == (200, 40)
    assert set(bits.ravel()) == {0, 1}
    for row, places, odd, weight in zip(bits, inputs["places"], labels, weights, strict=True):
        assert list(places) == list(range(first, 40))
        assert [sum(row[: place + 1]) % 2 for place in places] == list(odd)
        assert sorted(weight, reverse=True) == list(weight)
    assert set(first + weights.sum(1)) == set(range(32, 41))


@pytest.fixture
def trained(monkeypatch):
    """What was trained, as a list; a run's accuracy is 50 times its rate, and a rate of 1 fails."""
    given = []

    def run_program(_, text):
        given.append(json.loads(text)["given"])
        rate = given[-1]["rate"]
        if rate == 1:
            raise RuntimeError("Traceback\nValueError: no")
        ended = "out of time" if rate == 0.001 else "all updates"
        return {"accuracy": 50 * rate, "short_accuracy": 1.0, "validations": [0, 50 * rate],
                "updates": 7, "seconds": 1.0, "ended": ended, "state_bytes": 1000}  # fmt: skip

    monkeypatch.setattr(run_folder, "run_program", run_program)
    return given


def main_of(program, monkeypatch, *line):
    monkeypatch.setattr(sys, "argv", [program.__file__, *map(str, line)])
    with pytest.raises(SystemExit) as ended:
        program.main()
    return ended.value.code


CHOICE = ("--layers", "linear", "softmax", "--sizes", "64x4", "128x8", "--widths", 8)


def test_finished_trainings_are_not_repeated(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(run_report, "draw", lambda *_: None)  # it takes most of the time
    line = *CHOICE, "--rates", 0.001, 0.01, "--output", tmp_path
    assert main_of(recall, monkeypatch, *line) is None
    assert len(trained) == 8
    main_of(recall, monkeypatch, *line)
    assert len(trained) == 8
    main_of(recall, monkeypatch, *line, "--retry")
    assert [given["rate"] for given in trained[8:]] == 4 * [0.001]
    main_of(recall, monkeypatch, *line, "--fresh")
    assert len(trained) == 20
    main_of(recall, monkeypatch, *line, "--updates", 5)
    assert len(trained) == 28


def test_a_training_that_fails_costs_itself_only(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_report, "draw", lambda *_: None)  # it takes most of the time
    line = *CHOICE, "--rates", 1, 0.01, "--output", tmp_path
    assert main_of(recall, monkeypatch, *line) == "error: 4 runs failed"
    assert "fails: ValueError: no" in capsys.readouterr().err
    assert len(list((tmp_path / "recall").iterdir())) == 4
    main_of(recall, monkeypatch, *line)
    assert [given["rate"] for given in trained[8:]] == 4 * [1]


def test_the_table_shows_the_best_rate_beside_the_floors(trained, tmp_path, monkeypatch):
    main_of(recall, monkeypatch, *CHOICE, "--rates", 0.001, 0.01, "--output", tmp_path)
    text = (tmp_path / "recall.md").read_text()
    assert text.count("| linear | 8 | 50.0% | 1,000 | 0.01 | 2 | 7 | 1 | all updates |") == 2
    assert "| any value of the stream | - | 12.5% |" in text
    assert results.fingerprint() in text
    assert str(ROOT) not in text
    assert (tmp_path / "recall.png").stat().st_size > 10_000


def test_state_tracking_has_both_lengths(trained, tmp_path, monkeypatch):
    line = "--layers", "linear", "--rates", 0.01, "--output", tmp_path
    main_of(state_tracking, monkeypatch, *line)
    text = (tmp_path / "state_tracking.md").read_text()
    assert "| linear | 64 | 50.0% | 100.0% |" in text
    assert "| chance | - | 50.0% | - |" in text


def test_a_layer_that_is_not_there_is_named(trained, tmp_path, monkeypatch):
    line = "--layers", "mamba9", "--output", tmp_path
    assert "no layer ['mamba9']" in main_of(recall, monkeypatch, *line)
    assert not trained


@pytest.mark.slow
@pytest.mark.parametrize("name", ["recall", "state_tracking"])
def test_quick_trainings_end(tmp_path, name):
    command = [sys.executable, ROOT / "benchmarks" / f"{name}.py", "--quick", "--output", tmp_path]
    subprocess.run(command, check=True, cwd=ROOT)
    found = run_folder.RunFolder(tmp_path / f"{name}_quick").kept()
    assert [run["found"]["updates"] for run in found] == [3, 3]
    assert all(run["found"]["state_bytes"] for run in found)


@pytest.mark.slow
def test_the_quick_table_is_made_by_one_command(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "speed.py", "--quick", "--output", tmp_path]
    subprocess.run(command, check=True, cwd=ROOT)
    found = json.loads((tmp_path / "speed_quick.json").read_text())["cells"].values()
    assert sum(cell["status"] == "ok" for cell in found) >= 4
    assert all(cell["seconds"] for cell in found if cell["status"] == "ok")
    assert (tmp_path / "speed_quick.md").exists()
