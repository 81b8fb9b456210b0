"""The command-line recipes: what they print, and one line where the library refuses."""

import os
import pathlib
import runpy
import subprocess
import sys

import keras
import numpy as np
import pytest
from support import BACKEND, assert_close

from keras_cosattn import CosFormerAttention, export
from keras_cosattn.export import describe
from keras_cosattn.export.graph import Graph

RECIPES = pathlib.Path(__file__).parent.parent / "export"
CHANNELS = 6

pytestmark = pytest.mark.skipif(BACKEND != "tensorflow", reason="exports need TensorFlow")


tf = pytest.importorskip("tensorflow")


def recipe(folder, name, *arguments):
    """A recipe in a process of its own, in a folder: what it printed."""
    return subprocess.run(
        [sys.executable, RECIPES / name, *map(str, arguments)],
        cwd=folder, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}, check=True,
        stdout=subprocess.PIPE, text=True,
    ).stdout  # fmt: skip


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
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
    (folder / "said").write_text(
        recipe(folder, "to_tflite.py", "model.keras", "model.tflite", *options)
    )
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    """A recipe run in this process, for speed: the folder is as for `recipe`."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(RECIPES)
    monkeypatch.setenv("KERAS_BACKEND", BACKEND)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(RECIPES / name), run_name="__main__")

    return run


@pytest.fixture
def refused(here):
    """What a recipe says when it ends with a line in place of a result."""

    def run(name, *arguments):
        with pytest.raises(SystemExit) as ended:
            here(name, *arguments)
        assert "\n" not in ended.value.code  # a message as the code is printed, with status 1
        return ended.value.code

    return run


def test_a_tflite_file_is_written_as_asked_and_streams_on_the_runner(folder, model):
    said = (folder / "said").read_text().splitlines()
    size = (folder / "model.tflite").stat().st_size
    assert said[0] == f"model.tflite: {size:,} bytes for litert, not quantised"
    assert [line.split()[0] for line in said[3:6]] == ["serve", "prefill", "step"]
    signatures = describe(folder / "model.tflite")["signatures"]
    assert signatures["serve"]["inputs"] == {"x": [[2, 20, CHANNELS], "float32"]}
    assert signatures["prefill"]["inputs"]["x"] == [[2, 8, CHANNELS], "float32"]
    x = np.load(folder / "x.npy")
    assert "-> y.npy" in recipe(folder, "run_on_device.py", "model.tflite", "x.npy", "y.npy")
    assert_close(np.load(folder / "y.npy"), np.asarray(model(x)), 1e-5)


def test_a_saved_model_is_written(folder):
    said = recipe(folder, "to_saved_model.py", "model.keras", "saved", "--signatures", "serve")
    assert said.splitlines()[-1].split()[0] == "serve"
    assert list(describe(folder / "saved")["signatures"]) == ["serve"]


def test_sizes_can_be_left_open_and_ranges_taken_from_data(monkeypatch, here):
    """What `to_tflite` is given, without an export."""
    given = {}
    monkeypatch.setattr(export, "to_tflite", lambda *_, **options: given.update(options))
    options = "--batch-size", "any", "--prefill-chunk", "any", "--representative", "x.npy"
    here("to_tflite.py", "model.keras", "m.tflite", *options)
    assert given["batch_size"] is given["prefill_chunk"] is given["length"] is None
    assert [x.shape for x in given["representative_data"]] == [(1, 20, CHANNELS)] * 2


def test_a_file_is_shown_with_its_ops_memory_and_targets(folder):
    said = recipe(folder, "show.py", "model.tflite")
    about = describe(folder / "model.tflite")
    assert f"state {about['state_bytes']:,} bytes as tensors, endless" in said
    assert f"keras {keras.__version__}" in said
    serve = said[said.index("\nserve\n") : said.index("\nstep\n")]
    assert f"in  x [2, 20, {CHANNELS}] float32" in serve
    assert f"at most {about['peak_bytes']['serve']:,} bytes live at once" in serve
    assert f"XNNPACK partitions: {about['partitions']['serve']}" in serve
    counts = [int(line.split()[0]) for line in said.splitlines() if " ops: " in line]
    assert sum(counts) == sum(count for _, count in about["ops"].values())
    lines = said[said.index("runs on") :].splitlines()[1:]
    targets = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}
    assert targets["litert"] == targets["tflite-runtime"] == "yes"
    assert targets["micro"] == "no: it knows one signature a file, not 4"


def test_a_file_of_others_without_signatures_is_shown(folder, here, capsys):
    x = keras.Input((None, CHANNELS))
    y = keras.layers.Dense(3)(keras.layers.Dense(8, activation="relu")(x))
    content = tf.lite.TFLiteConverter.from_keras_model(keras.Model(x, y)).convert()
    graph = Graph(content)
    graph.model.signatureDefs = None
    (folder / "foreign.tflite").write_bytes(graph.pack())
    here("show.py", "foreign.tflite", "--length", 10)
    said = capsys.readouterr().out
    assert "no description: not written by keras_cosattn" in said
    assert "\nmain\n  in  serving_default" in said
    assert f"[any, any, {CHANNELS}] float32" in said
    assert " 320 bytes for" in said  # 10 steps of 8 numbers


def test_damaged_files_are_not_shown(folder, refused):
    whole = (folder / "model.tflite").read_bytes()
    about = describe(folder / "model.tflite")
    model = whole[: about["content"]["bytes"]]
    (folder / "cut.tflite").write_bytes(model[: len(model) // 2])
    (folder / "junk.tflite").write_bytes(b"no model at all")
    middle = len(model) // 2
    changed = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    (folder / "changed.tflite").write_bytes(changed)
    assert "no TFLite model, or it is damaged" in refused("show.py", "cut.tflite")
    assert "no TFLite model, or it is damaged" in refused("show.py", "junk.tflite")
    assert "changed.tflite is damaged" in refused("show.py", "changed.tflite")
    assert "No such file" in refused("show.py", "missing.tflite")


def test_model_explorer_is_asked_for_where_it_is_missing(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "model_explorer", None)
    said = refused("show.py", "model.tflite", "--explore")
    assert said == ("show.py: Model Explorer is not installed: pip install ai-edge-model-explorer")


def test_the_forms_of_a_model_are_compared_in_processes_of_their_own(folder):
    options = "--forms", "tflite", "tflite_runtime", "--steps", 8, "--length", 12
    lines = recipe(folder, "compare.py", "model.keras", *options).splitlines()
    assert f"x [1, 12, {CHANNELS}], 8 steps, quantize None" in lines[1]
    keras_row, litert, runtime = lines[3:]
    assert keras_row.startswith(f"Keras, TensorFlow {tf.__version__}")
    assert keras_row.count("(1)") == 5
    assert litert.startswith("LiteRT")
    assert close_to_keras(litert)
    assert runtime.endswith("give --tflite-runtime the Python of an environment that has it")


@pytest.mark.slow
def test_a_form_that_is_refused_stays_in_the_table_with_its_reason(folder):
    options = "--forms", "saved_model", "micro", "tflite_runtime", "--steps", 8, "--length", 12
    wrong = "--tflite-runtime", "nowhere/python"
    *_, saved, micro, runtime = recipe(
        folder, "compare.py", "model.keras", *options, *wrong
    ).splitlines()
    assert close_to_keras(saved)
    assert close_to_keras(micro)
    assert micro.split()[-4:-2] == ["-", "-"]  # its one signature is `step`
    assert runtime.startswith("tflite-runtime ")
    assert "No such file or directory: 'nowhere/python'" in runtime


def close_to_keras(line):
    difference, sqnr = map(float, line.split()[-2:])
    return difference < 1e-5 and sqnr > 90


def test_the_device_rows_import_neither_tensorflow_nor_keras(folder):
    program = f"""
import sys
for name in ("tensorflow", "keras", "keras_cosattn"):
    sys.modules[name] = None
sys.path.insert(0, {str(RECIPES)!r})
import measure_process
measure_process.main("tflite", "model.tflite", "x.npz", "y.npz", "8")
"""
    x = np.load(folder / "x.npy")
    np.savez(folder / "x.npz", x=x)
    subprocess.run([sys.executable, "-c", program], cwd=folder, check=True)
    outputs = np.load(folder / "y.npz")
    assert_close(outputs["step/y"], outputs["serve/y"][:, :8], 1e-5)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("to_tflite.py", ["missing.keras", "m.tflite"], "File not found"),
        ("to_tflite.py", ["model.keras", "nowhere/m.tflite"], "Its folder must exist"),
        (
            "to_tflite.py", ["model.keras", "m.tflite", "--target", "gpu", "--quantize", "int8"],
            "`quantize` must be one of (None, 'float16') for the target 'gpu'",
        ),
        (
            "to_tflite.py", ["model.keras", "m.tflite", "--representative", "model.keras"],
            "model.keras is no array",
        ),
        ("to_saved_model.py", ["missing.keras", "saved"], "File not found"),
        ("compare.py", ["missing.keras"], "File not found"),
    ],
)  # fmt: skip
def test_what_is_refused_is_one_line(name, arguments, message, refused):
    said = refused(name, *arguments)
    assert said.startswith(f"{name}: ")
    assert message in said
