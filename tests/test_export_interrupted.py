"""An export that is killed, or finds the disk full, leaves the old file or the new one, whole."""

import errno
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from support import BACKEND

from keras_cosattn import atomic_write, export
from keras_cosattn.export.file_runners import saved_model_runner, tflite_runner

resource = pytest.importorskip("resource", reason="kills and limits as Unix has them")
pytestmark = pytest.mark.skipif(BACKEND != "tensorflow", reason="exports need TensorFlow")
linux = pytest.mark.skipif(
    sys.platform != "linux", reason="folders change places at one moment on Linux only"
)

OLD_FILE = b"\x1c\x00\x00\x00TFL3 old"

PROGRAMS = pathlib.Path(__file__).parent / "programs"


class Victim:
    """A process that exports in a loop. Stopped, it leaves on disk what it would if killed."""

    def __init__(self, program, folder):
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        self.process = subprocess.Popen(
            [sys.executable, PROGRAMS / program],
            cwd=folder, env=environment, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def wait(self):
        assert self.process.stdout.readline() == "exported\n"

    def stop(self):
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def check_both(folder):
    x = np.ones((1, 4, 3), "float32")
    about, content = export.describe(folder / "m.tflite"), (folder / "m.tflite").read_bytes()
    model = content[: about["content"]["bytes"]]
    assert hashlib.sha256(model).hexdigest() == about["content"]["sha256"]
    assert tflite_runner(folder / "m.tflite")("serve", {"x": x})["y"].shape == (1, 4, 2)
    assert export.describe(folder / "m")["target"] == "saved_model"
    assert saved_model_runner(folder / "m")("serve", {"x": x})["y"].shape == (1, 4, 2)
    leftovers = {p.name for p in folder.iterdir()} - {"m", "m.tflite"}
    assert all(name.startswith((".m.", ".m.tflite.")) for name in leftovers)


def killed_exports(folder, rng, stops):
    with Victim("export_again_and_again.py", folder) as victim:
        victim.wait()
        victim.wait()
        start = time.monotonic()
        victim.wait()
        victim.wait()
        both = time.monotonic() - start
        for wait in rng.uniform(0, both, stops):
            time.sleep(wait)
            victim.stop()
            check_both(folder)
            victim.go_on()
        time.sleep(rng.uniform(0, both))
    check_both(folder)


def test_an_export_killed_at_any_moment_leaves_whole_files(tmp_path, rng):
    killed_exports(tmp_path, rng, stops=6)
    x = keras.Input((None, 3))
    model = keras.Model(x, keras.layers.Dense(2)(x))
    export.to_tflite(model, tmp_path / "m.tflite", signatures=["serve"])
    export.to_saved_model(model, tmp_path / "m", signatures=["serve"])
    check_both(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_exports_killed_at_more_moments_leave_whole_files(seed, tmp_path):
    killed_exports(tmp_path, np.random.default_rng(seed), stops=40)


@linux
def test_there_is_no_moment_without_the_folder(tmp_path, rng):
    with Victim("replace_slowly.py", tmp_path) as victim:
        victim.wait()
        seen = set()
        for wait in rng.uniform(0, 0.03, 150):
            time.sleep(wait)
            victim.stop()
            files = [
                (tmp_path / "m" / name).read_text() for name in ("saved_model.pb", "variables")
            ]
            assert files[0] == files[1]
            seen.add(files[0])
            victim.go_on()
        assert len(seen) > 10


def replacing(path):
    return atomic_write.atomic_write(path, folder=True)


def without_exchange(folder, monkeypatch):
    monkeypatch.setattr(atomic_write, "_exchange", lambda *_: False)
    (folder / "m").mkdir()
    (folder / "m" / "saved_model.pb").write_text("old")


def test_a_system_without_exchange_replaces_folders_too(tmp_path, monkeypatch):
    without_exchange(tmp_path, monkeypatch)
    with replacing(tmp_path / "m") as new:
        (new / "saved_model.pb").write_text("new")
    assert (tmp_path / "m" / "saved_model.pb").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_system_without_exchange_puts_the_old_folder_back(tmp_path, monkeypatch):
    without_exchange(tmp_path, monkeypatch)
    scratch = tmp_path / ".m.killed"
    (scratch / "new").mkdir(parents=True)
    (tmp_path / "m").rename(scratch / "old")  # and then the process was killed

    with pytest.raises(RuntimeError, match="stop"), replacing(tmp_path / "m"):
        raise RuntimeError("stop")
    assert (tmp_path / "m" / "saved_model.pb").read_text() == "old"

    def replace(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pathlib.Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "m"):
        pass
    assert (tmp_path / "m" / "saved_model.pb").read_text() == "old"
    assert {p.name for p in tmp_path.iterdir()} == {"m", ".m.killed"}


class Limit:
    """No file may grow beyond so many bytes: writes end in the middle, as on a full disk."""

    def __init__(self, size):
        self.size = size

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


@pytest.fixture(scope="module")
def large():
    """A model of 160,000 bytes of weights."""
    x = keras.Input((None, 4))
    return keras.Model(x, keras.layers.Dense(4)(keras.layers.Dense(4_400)(x)))


@pytest.mark.parametrize("failing", [1, 2])
def test_a_full_disk_leaves_the_old_tflite_file_alone(failing, large, tmp_path, monkeypatch):
    path = tmp_path / "m.tflite"
    path.write_bytes(OLD_FILE)
    write, calls = pathlib.Path.write_bytes, []

    def limited(self, content):
        calls.append(self)
        with Limit(len(content) - 1 if len(calls) == failing else resource.RLIM_INFINITY):
            return write(self, content)

    monkeypatch.setattr(pathlib.Path, "write_bytes", limited)
    with pytest.raises(OSError, match=r"Cannot write .*m\.tflite: .* File too large") as caught:
        export.to_tflite(large, path, signatures=["serve"])
    assert caught.value.errno == errno.EFBIG
    assert len(calls) == failing
    assert path.read_bytes() == OLD_FILE
    assert [p.name for p in tmp_path.iterdir()] == ["m.tflite"]


def test_a_full_disk_leaves_the_old_saved_model_alone(large, tmp_path):
    path = tmp_path / "m"
    path.mkdir()
    (path / "assets.extra").mkdir()
    metadata = path / "assets.extra" / "keras_cosattn.json"
    metadata.write_text(json.dumps({"files": ["assets.extra/keras_cosattn.json"]}))
    old = metadata.read_text()
    with Limit(100_000), pytest.raises(OSError, match=r"Cannot write .*/m: .*File too large"):
        export.to_saved_model(large, path, signatures=["serve"])
    assert [p for p in path.rglob("*") if p.is_file()] == [metadata]
    assert metadata.read_text() == old
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
