"""The command line: what each subcommand prints, and one line where the library refuses."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from support import BACKEND, assert_close

from keras_cosattn import CosFormerAttention, export
from keras_cosattn.export import describe
from keras_cosattn.export.cli import compare, main
from keras_cosattn.export.cli.internals import TFLiteGraph

ROOT = pathlib.Path(__file__).parent.parent
WITHOUT_MODULES = pathlib.Path(__file__).parent / "programs" / "without_modules.py"
CHANNELS = 6

pytestmark = pytest.mark.skipif(BACKEND != "tensorflow", reason="exports need TensorFlow")


tf = pytest.importorskip("tensorflow")


def command(folder, *arguments):
    """The command line in a process of its own, in a folder: what it printed."""
    return subprocess.run(
        [sys.executable, "-m", "keras_cosattn.export", *map(str, arguments)],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
        stdout=subprocess.PIPE, text=True,
    ).stdout  # fmt: skip


@pytest.fixture(scope="module")
def model():
    x = keras.Input((None, CHANNELS))
    y = CosFormerAttention(2, 4, horizon=8)(x, x, use_causal_mask=True)
    return keras.Model(x, keras.layers.Dense(3)(y), name="causal")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """A folder with `model.keras`, `x.npy`, `model.tflite` and what its export printed."""
    folder = tmp_path_factory.mktemp("recipes")
    model.save(folder / "model.keras")
    x = np.random.default_rng(0).standard_normal((2, 20, CHANNELS)).astype("float32")
    np.save(folder / "x.npy", x)
    options = "--prefill-chunk", 8, "--batch-size", 2, "--length", 20
    (folder / "said").write_text(command(folder, "tflite", "model.keras", "model.tflite", *options))
    return folder


@pytest.fixture
def here(folder, monkeypatch, capsys):
    """The command line in this process, for speed, in the same folder: what it printed."""
    monkeypatch.chdir(folder)

    def run(*arguments):
        main([*map(str, arguments)])
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(here):
    """What a subcommand says when it ends with an error."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            here(*arguments)
        assert "\n" not in ended.value.code  # a message as the code is printed, with status 1
        return ended.value.code

    return run


def test_a_tflite_file_is_written_as_asked_and_streams_on_the_runner(folder, here, model):
    said = (folder / "said").read_text().splitlines()
    size = (folder / "model.tflite").stat().st_size
    assert said[0].startswith(f"model.tflite: {size:,} bytes for litert, ")
    assert [line.split()[0] for line in said[3:6]] == ["serve", "prefill", "step"]
    signatures = describe(folder / "model.tflite")["signatures"]
    assert signatures["serve"]["inputs"] == {"x": [[2, 20, CHANNELS], "float32"]}
    assert signatures["prefill"]["inputs"]["x"] == [[2, 8, CHANNELS], "float32"]
    x = np.load(folder / "x.npy")
    said = here("run", "model.tflite", "x.npy", "y.npy", "--threads", 2)
    assert said == "x.npy (2, 20, 6) -> y.npy (2, 20, 3)\n"
    assert_close(np.load(folder / "y.npy"), np.asarray(model(x)), 1e-5)


def test_a_saved_model_is_written(folder, here):
    said = here("saved-model", "model.keras", "saved", "--signatures", "serve")
    assert said.splitlines()[-1].split()[0] == "serve"
    assert list(describe(folder / "saved")["signatures"]) == ["serve"]


def test_sizes_can_be_left_open_and_ranges_taken_from_data(monkeypatch, here):
    """What `to_tflite` is given, without an export."""
    given = {}
    monkeypatch.setattr(export, "to_tflite", lambda *_, **options: given.update(options))
    options = "--batch-size", "any", "--prefill-chunk", "any", "--representative", "x.npy"
    here("tflite", "model.keras", "m.tflite", *options)
    assert given["batch_size"] is given["prefill_chunk"] is given["length"] is None
    assert [x.shape for x in given["representative_data"]] == [(1, 20, CHANNELS)] * 2


def test_a_file_is_shown_with_its_ops_memory_and_targets(folder, here):
    said = here("show", "model.tflite")
    about = describe(folder / "model.tflite")
    assert f"state {about['state_bytes']:,} bytes as tensors, endless" in said
    assert f"keras {keras.__version__}" in said
    serve = said[said.index("\nserve\n") : said.index("\nstep\n")]
    assert f"in  x [2, 20, {CHANNELS}] float32" in serve
    assert f"at most {about['peak_bytes']['serve']:,} bytes in use at once" in serve
    assert f"XNNPACK partitions: {about['partitions']['serve']}" in serve
    counts = [int(line.split()[0]) for line in said.splitlines() if " ops: " in line]
    assert sum(counts) == sum(count for _, count in about["ops"].values())
    lines = said[said.index("runs on") :].splitlines()[1:]
    targets = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}
    assert targets["litert"] == targets["tflite-runtime"] == "yes"
    assert targets["micro"] == "no: it can run one signature in a file, and there are 4"


def test_a_file_of_others_without_signatures_is_shown(folder, here):
    x = keras.Input((None, CHANNELS))
    y = keras.layers.Dense(3)(keras.layers.Dense(8, activation="relu")(x))
    content = tf.lite.TFLiteConverter.from_keras_model(keras.Model(x, y)).convert()
    graph = TFLiteGraph(content)
    graph.model.signatureDefs = None
    (folder / "foreign.tflite").write_bytes(graph.pack())
    said = here("show", "foreign.tflite", "--length", 10)
    assert "no metadata: not written by keras_cosattn" in said
    assert "\nmain\n  in  serving_default" in said
    assert f"[any, any, {CHANNELS}] float32" in said
    assert " 320 bytes for" in said  # 10 steps of 8 numbers


def test_the_limits_of_a_file_are_shown():
    from keras_cosattn.export.cli.show import origin

    about = {
        "target": "litert", "quantize": None, "state_bytes": 64, "state_form": "tensors",
        "max_steps": 4096, "max_whole_steps": 1024, "versions": {"keras": "3"},
    }  # fmt: skip
    assert origin(about) == (
        "for litert, float32; state 64 bytes as tensors, up to 4,096 steps; "
        "whole inputs up to 1,024 steps; by keras 3"
    )


def test_damaged_files_are_not_shown(folder, refused):
    whole = (folder / "model.tflite").read_bytes()
    about = describe(folder / "model.tflite")
    model = whole[: about["content"]["bytes"]]
    (folder / "cut.tflite").write_bytes(model[: len(model) // 2])
    (folder / "junk.tflite").write_bytes(b"no model at all")
    middle = len(model) // 2
    changed = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    (folder / "changed.tflite").write_bytes(changed)
    assert "damaged" in refused("show", "cut.tflite")
    assert "damaged" in refused("show", "junk.tflite")
    assert "changed.tflite is damaged" in refused("show", "changed.tflite")
    assert "No such file" in refused("show", "missing.tflite")


def test_model_explorer_is_asked_for_where_it_is_missing(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "model_explorer", None)
    said = refused("show", "model.tflite", "--explore")
    assert said.endswith(
        "show: Model Explorer is not installed: pip install ai-edge-model-explorer"
    )


@pytest.mark.slow
def test_the_formats_of_a_model_are_compared_in_processes_of_their_own(here):
    options = "--formats", "tflite", "tflite_runtime", "--steps", 8, "--length", 12
    lines = here("compare", "model.keras", *options).splitlines()
    assert f"x [1, 12, {CHANNELS}], 8 steps, quantize None" in lines[1]
    keras_row, litert, runtime = lines[3:]
    assert keras_row.startswith(f"Keras, TensorFlow {tf.__version__}")
    assert keras_row.count("(1)") == 5
    assert litert.startswith("LiteRT")
    assert close_to_keras(litert)
    assert runtime.endswith("give --tflite-runtime the Python of an environment that has it")


@pytest.mark.slow
def test_a_format_that_is_refused_stays_in_the_table_with_its_reason(folder):
    options = "--formats", "saved_model", "micro", "tflite_runtime", "--steps", 8, "--length", 12
    wrong = "--tflite-runtime", "nowhere/python"
    *_, saved, micro, runtime = command(
        folder, "compare", "model.keras", *options, *wrong
    ).splitlines()
    assert close_to_keras(saved)
    assert close_to_keras(micro)
    assert micro.split()[-4:-2] == ["-", "-"]  # its one signature is `step`
    assert runtime.startswith("tflite-runtime ")
    assert "No such file or directory: 'nowhere/python'" in runtime


def close_to_keras(line):
    difference, sqnr = map(float, line.split()[-2:])
    return difference < 1e-5 and sqnr > 90


def test_the_device_rows_import_neither_tensorflow_nor_keras(folder, tmp_path):
    for program in compare.PROGRAMS:
        shutil.copy(program, tmp_path)
    x = np.load(folder / "x.npy")
    np.savez(tmp_path / "x.npz", x=x)
    subprocess.run(
        [
            sys.executable, WITHOUT_MODULES, "tensorflow,keras,keras_cosattn",
            "measure_process.py", "tflite", folder / "model.tflite", "x.npz", "y.npz", "8",
        ],
        cwd=tmp_path, check=True,
    )  # fmt: skip
    outputs = np.load(tmp_path / "y.npz")
    assert_close(outputs["step/y"], outputs["serve/y"][:, :8], 1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tflite", "missing.keras", "m.tflite"], "File not found"),
        (["tflite", "model.keras", "nowhere/m.tflite"], "nowhere/m.tflite"),
        (
            ["tflite", "model.keras", "m.tflite", "--target", "gpu", "--quantize", "int8"],
            "`quantize` must be one of (None, 'float16') for the target 'gpu'",
        ),
        (
            ["tflite", "model.keras", "m.tflite", "--representative", "model.keras"],
            "model.keras holds no array. Write it with `numpy.save`.",
        ),
        (["saved-model", "missing.keras", "saved"], "File not found"),
        (["compare", "missing.keras"], "File not found"),
        (["compare", "model.keras", "--steps", 4], "at least 8 steps to be timed. Got: 4"),
        (["run", "model.keras", "x.npy", "y.npy"], "model.keras is damaged, or not from"),
        (["run", "model.tflite", "missing.npy", "y.npy"], "No such file"),
    ],
)
def test_what_is_refused_is_one_line(arguments, message, refused):
    said = refused(*arguments)
    assert said.startswith(f"keras-cosattn {arguments[0]}: ")
    assert message in said


def test_arguments_that_cannot_be_parsed_are_named(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["tflite", "model.keras", "m.tflite", "--batch-size", "all"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "argument --batch-size: must be a number or 'any', not 'all'" in said


def test_the_wheel_has_the_console_script_and_the_runner(tmp_path):
    pytest.importorskip("setuptools", minversion="77", reason="wheels need setuptools 77")
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "keras_cosattn", tmp_path / "keras_cosattn")
    build = [sys.executable, "setup.py", "-q", "bdist_wheel", "-d", "."]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = map(zipfile.ZipFile, tmp_path.glob("*.whl"))
    names = wheel.namelist()
    assert "keras_cosattn/export/run_on_device.py" in names
    assert "keras_cosattn/export/cli/measure_process.py" in names
    (scripts,) = [name for name in names if name.endswith("entry_points.txt")]
    assert b"keras-cosattn = keras_cosattn.export.cli:main" in wheel.read(scripts)
