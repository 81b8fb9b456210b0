"""The runner for devices computes what Keras does, and refuses anything else with a reason."""

import ast
import contextlib
import doctest
import errno
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from unittest import mock

import keras
import numpy as np
import pytest
from support import BACKEND, assert_close
from variants import inputs

from keras_cosattn import (
    CausalConv1D,
    CosFormerAttention,
    LinearAttention,
    PositionEmbedding,
    Rotary,
    Streaming,
    generate,
)
from keras_cosattn.export import describe, to_tflite
from keras_cosattn.export import run_on_device as runner

RUNNER = pathlib.Path(runner.__file__)
PROGRAMS = pathlib.Path(__file__).parent / "programs"
CHANNELS, CHUNK, LIMIT = 6, 16, 100

pytestmark = pytest.mark.skipif(BACKEND != "tensorflow", reason="exports need TensorFlow")


@pytest.fixture(scope="module")
def model():
    x = keras.Input((None, CHANNELS))
    y = CausalConv1D(8, 3)(PositionEmbedding(LIMIT)(x))
    y = LinearAttention(2, 4)(y, y, use_causal_mask=True)
    return keras.Model(x, keras.layers.Dense(3)(y))


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("device") / "model.tflite"
    to_tflite(model, path, prefill_chunk=CHUNK)
    return path


@pytest.fixture
def device(path):
    return runner.Device(path)


def two_inputs():
    """Integers and numbers in, two outputs."""
    ids, signal = keras.Input((None,), dtype="int32", name="ids"), keras.Input((None, 3), name="z")
    y = keras.layers.Concatenate()([keras.layers.Embedding(7, 3)(ids), signal])
    y = CausalConv1D(4, 3)(y)
    outputs = {name: keras.layers.Dense(n)(y) for name, n in (("b", 5), ("a", 2))}
    return keras.Model([ids, signal], outputs)


def convolution():
    x = keras.Input((None, CHANNELS))
    return keras.Model(x, CausalConv1D(3, 3)(x))


def test_a_stream_computes_what_keras_does_however_it_is_cut(model, device, rng):
    x = inputs(rng, 1, LIMIT, CHANNELS)
    expected = np.asarray(model(x))
    tensors = device.state.tensors.values()
    assert sum(tensor.nbytes for tensor in tensors) == device.metadata["state_bytes"] > 0
    for cuts in ([], [CHUNK], [1, 2, 60], [37]):
        outputs = [device.read(piece) for piece in np.split(x, cuts, axis=1)]
        assert_close(np.concatenate(outputs, axis=1), expected, 1e-5)
        assert device.steps == LIMIT
        device.reset()
        assert device.steps == 0
    assert_close(device.prefill(x[:, :CHUNK]), expected[:, :CHUNK], 1e-5)
    assert_close(device.whole(x), expected, 1e-5)  # the stream goes on after it
    assert_close(device.step(x[:, CHUNK : CHUNK + 1]), expected[:, CHUNK : CHUNK + 1], 1e-5)


@pytest.mark.parametrize("signatures", [["prefill", "step"], ["step"]])
@pytest.mark.sample(2)
def test_a_device_continues_a_prompt_as_keras_does(signatures, tmp_path):
    keras.utils.set_random_seed(1)
    ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(9, 8, embeddings_initializer="normal")(ids)
    x = LinearAttention(2, 4, position=Rotary())(x, x, use_causal_mask=True)
    model = keras.Model(ids, keras.layers.Dense(9, kernel_initializer="normal")(x))
    to_tflite(model, tmp_path / "m.tflite", prefill_chunk=4, signatures=signatures)
    device, prompt = runner.Device(tmp_path / "m.tflite"), [3, 1, 4, 1, 5]
    for choose, sampler in ((np.argmax, None), (np.argmin, lambda x: keras.ops.argmin(x, axis=-1))):
        expected = generate(Streaming(model), [prompt], 6, sampler=sampler)[0].tolist()
        assert list(itertools.islice(device.generate(prompt, choose), 6)) == expected
        assert device.steps == len(prompt) + 5  # the last token was not read
        device.reset()
    with pytest.raises(ValueError, match=r"`prompt` must hold at least one token"):
        next(device.generate([]))


def test_the_file_may_leave_the_batch_open(tmp_path, rng):
    model, path = convolution(), tmp_path / "m.tflite"
    to_tflite(model, path, batch_size=None, prefill_chunk=4, signatures=["prefill", "step"])
    x = inputs(rng, 3, 10, CHANNELS)
    for batch in (3, 2):
        device = runner.Device(path, batch_size=batch)
        assert_close(device.read(x[:batch]), model(x[:batch]), 1e-5)
        assert all(len(tensor) == batch for tensor in device.state.tensors.values())
    with pytest.raises(
        ValueError, match=r"shape \[2, None, 6\] and dtype float32. Received: \(3, 1, 6\)"
    ):
        device.step(x[:, :1])


def test_state_inside_the_file_stays_there(tmp_path, rng):
    model, path = convolution(), tmp_path / "m.tflite"
    to_tflite(model, path, state="variables", prefill_chunk=4, signatures=["prefill", "step"])
    device, x = runner.Device(path), inputs(rng, 1, 10, CHANNELS)
    for _ in range(2):
        assert_close(device.read(x), model(x), 1e-5)
        assert device.steps == 10
        device.reset()
    for use in (
        lambda: device.state,
        lambda: setattr(device, "state", runner.State("", 0, {})),
        lambda: device.save(tmp_path / "state.npz"),
    ):
        with pytest.raises(
            ValueError, match=r"keeps its state inside. Export with state='tensors'"
        ):
            use()
    assert [p.name for p in tmp_path.iterdir()] == ["m.tflite"]


def test_state_inside_a_file_without_reset_cannot_begin_again(tmp_path, rng):
    model, path, x = convolution(), tmp_path / "m.tflite", inputs(rng, 1, 10, CHANNELS)
    to_tflite(model, path, state="variables", target="micro", signatures=["step"])
    device = runner.Device(path)
    assert_close(device.read(x), model(x), 1e-5)
    with pytest.raises(ValueError, match=r"no 'reset'. Create a new `Device`"):
        device.reset()
    assert device.steps == 10


def test_read_prefers_prefill(device):
    calls = []
    for key, run in device._run.items():
        device._run[key] = lambda run=run, key=key, **x: calls.append(key) or run(**x)
    device.read(np.zeros((1, 2 * CHUNK + 3, CHANNELS), "float32"))
    assert calls == ["prefill"] * 2 + ["step"] * 3


def test_several_inputs_and_outputs_go_by_name(tmp_path, rng):
    model = two_inputs()
    to_tflite(model, tmp_path / "m.tflite", prefill_chunk=4, signatures=["prefill", "step"])
    device = runner.Device(tmp_path / "m.tflite")
    x = {"ids": rng.integers(0, 7, (1, 10)), "z": inputs(rng, 1, 10, 3)}
    expected = model([x["ids"], x["z"]])
    found = device.read(x)
    assert set(found) == {"a", "b"}
    for name, y in found.items():
        assert_close(y, expected[name], 1e-5)
    one = {name: array[:, :1] for name, array in x.items()}
    with pytest.raises(
        ValueError, match=r"'prefill' takes the inputs \['ids', 'z'\]. Received: \['x'\]"
    ):
        device.step(x["z"])
    with pytest.raises(ValueError, match=r"'ids' must .* int32. Received: \(1, 1\) float64"):
        device.step({**one, "ids": one["ids"] / 2})
    with pytest.raises(ValueError, match=r"at a time. Received: \((1, 10|10, 1)\)"):
        device.read({**x, "ids": one["ids"]})
    assert device.steps == 10


def test_one_device_serves_many_streams(model, path, device, rng):
    x = inputs(rng, 3, 40, CHANNELS)
    expected = np.asarray(model(x))
    states, start = {}, device.state
    outputs = {b: [] for b in range(3)}
    for b, t in [(b, t) for t in range(0, 40, 5) for b in rng.permutation(3)]:
        device.state = states.get(b, start)
        outputs[b].append(device.read(x[b : b + 1, t : t + 5]))
        states[b] = device.state
    for b in range(3):
        assert states[b].steps == 40
        assert_close(np.concatenate(outputs[b], axis=1), expected[b : b + 1], 1e-5)
    other = runner.Device(path)
    other.state = start
    assert_close(other.read(x[:1]), expected[:1], 1e-5)


def test_a_state_that_does_not_fit_is_refused_and_the_stream_stays(device, rng):
    device.read(inputs(rng, 1, 5, CHANNELS))
    state = device.state
    name, tensor = next(iter(state.tensors.items()))

    def changed(name, tensor):
        return state._replace(tensors={**state.tensors, name: tensor})

    wrong = {
        "belongs to another model or batch size": state._replace(weights="0" * 64),
        r"Received: .*, {}\)": state._replace(tensors={}),
        f"Received: .*'{name}': .*, 'int8'": changed(name, tensor.astype("int8")),
        rf"Received: .*'{name}': \(\[1, 1,": changed(name, tensor[None]),
        "Received: .*'more': ": changed("more", tensor),
    }
    for message, other in wrong.items():
        with pytest.raises(ValueError, match=message):
            device.state = other
    assert device.steps == 5
    assert all(device.state.tensors[key] is x for key, x in state.tensors.items())


def test_a_saved_state_goes_on_in_another_device(model, path, device, tmp_path, rng):
    x = inputs(rng, 1, 40, CHANNELS)
    device.read(x[:, :23])
    device.save(tmp_path / "state.npz")
    other = runner.Device(path)
    other.load(tmp_path / "state.npz")
    assert other.steps == 23
    assert_close(other.read(x[:, 23:]), np.asarray(model(x))[:, 23:], 1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["state.npz"]


def test_a_state_file_that_is_foreign_or_damaged_is_refused(device, tmp_path):
    path = tmp_path / "state.npz"
    with pytest.raises(FileNotFoundError):
        device.load(path)
    device.step(np.zeros((1, 1, CHANNELS), "float32"))
    device.save(path)
    whole = path.read_bytes()
    device.metadata["weights"] = "0" * 64
    with pytest.raises(ValueError, match=r"state\.npz is .* belongs to another model"):
        device.load(path)
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    foreign = (tmp_path / "other.npz").read_bytes()
    for content in (
        b"",
        b"junk",
        whole[:-1],
        whole[: len(whole) // 2],
        flipped(whole, 200),
        foreign,
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"state\.npz is damaged, or not from"):
            device.load(path)


def test_a_state_file_with_one_changed_byte_is_refused_or_says_the_same(device, tmp_path, rng):
    path = tmp_path / "state.npz"
    device.read(inputs(rng, 1, 3, CHANNELS))
    device.save(path)
    whole, state, refused = path.read_bytes(), device.state, 0
    for i in range(0, len(whole), 5):
        path.write_bytes(flipped(whole, i))
        try:
            device.load(path)
        except ValueError:
            refused += 1
        assert device.steps == 3
        assert device.state.weights == state.weights
        for name, tensor in device.state.tensors.items():
            np.testing.assert_array_equal(tensor, state.tensors[name])
    assert refused > len(whole) / 5 / 2


def test_a_save_killed_at_any_moment_leaves_a_whole_state(path, device, tmp_path, tmp_path_factory):
    state = tmp_path / "state.npz"
    device.save(state)
    folder, program = tmp_path_factory.mktemp("runner"), PROGRAMS / "save_states.py"
    shutil.copy(RUNNER, folder)
    command = [sys.executable, program, folder, path, state, CHANNELS, LIMIT]
    for i in range(5):
        process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(0.004 * i)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        device.load(state)
        assert {p.name for p in tmp_path.iterdir()} <= {"state.npz", "state.npz.tmp"}
    device.save(state)
    assert [p.name for p in tmp_path.iterdir()] == ["state.npz"]


def test_a_full_disk_leaves_the_old_state(device, tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    path = tmp_path / "state.npz"
    device.save(path)
    before = path.read_bytes()
    device.step(np.zeros((1, 1, CHANNELS), "float32"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most in (0, 100, len(before) - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large") as error:
                device.save(path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert error.value.errno == errno.EFBIG
        assert [p.name for p in tmp_path.iterdir()] == ["state.npz"]
        assert path.read_bytes() == before


def flipped(content, i):
    return content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :]


@pytest.fixture
def opened(monkeypatch):
    """What `Device` reads from a file, metadata and model, without an interpreter."""

    def read(path):
        monkeypatch.setattr(runner, "Interpreter", mock.Mock())
        about = runner.Device(path).metadata
        return about, runner.Interpreter.call_args.kwargs["model_content"]

    return read


def test_a_file_with_one_changed_byte_never_reaches_the_interpreter(opened, path, tmp_path):
    """In the archive of the metadata, a byte without a meaning, as of a date, may change."""
    whole, bad = path.read_bytes(), tmp_path / "bad.tflite"
    about, content = opened(path)
    archive = list(range(len(content), len(whole)))
    random = np.random.default_rng(0).integers(0, len(content), 100)
    refused = []
    for i in [*random, *archive[:120], *archive[-120:]]:
        bad.write_bytes(flipped(whole, i))
        with contextlib.suppress(ValueError):
            assert opened(bad) == (about, content)
            continue
        refused.append(i)
    assert set(random) <= set(refused)
    assert len(refused) > 200


def test_a_file_that_is_cut_or_foreign_is_refused(opened, path, tmp_path):
    whole, bad = path.read_bytes(), tmp_path / "bad.tflite"
    size = len(opened(path)[1])
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr("keras_cosattn.json", json.dumps({"signatures": {}}))
    without_content = bad.read_bytes()
    cuts = [whole[:n] for n in (0, 1, size // 2, size, len(whole) // 2, len(whole) - 1)]
    for content in (*cuts, whole[1:], b"TFL3 junk", without_content, b"x" + whole):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.tflite is damaged, or not from"):
            runner.Device(bad)
    with pytest.raises(FileNotFoundError):
        runner.Device(tmp_path / "missing.tflite")


def test_an_archive_said_to_be_encrypted_is_refused(path, tmp_path):
    whole, bad = path.read_bytes(), tmp_path / "bad.tflite"
    flags = whole.rindex(b"PK\1\2") + 8
    bad.write_bytes(flipped(whole, flags))
    with pytest.raises(ValueError, match=r"is damaged, or not from.*encrypted"):
        runner.Device(bad)


def test_what_does_not_fit_is_refused_and_the_stream_stays(model, device, rng):
    x = inputs(rng, 1, LIMIT, CHANNELS)
    device.read(x[:, :20])
    wrong = [
        (device.step, x[0, :1], r"'x' must have shape \[1, None, 6\] and .* Received: \(1, 6\)"),
        (device.whole, x[:, :0], r"Received: \(1, 0, 6\)"),
        (device.prefill, x[..., :5], r"\[1, None, 6\]"),
        (device.read, np.repeat(x, 2, axis=0), r"Received: \(2, 100, 6\)"),
        (device.whole, x[..., :5], r"'x' must have shape \[1, None, 6\]"),
        (device.step, x[:, :1].astype("complex64"), "float32. Received: .* complex64"),
        (device.step, [["text"]], "Received: "),
        (device.step, {"y": x[:, :1]}, r"takes the inputs \['x'\]. Received: \['y'\]"),
        (device.read, x, r"end after 100 steps. Call `reset\(\)` .* Received: 100 more after 20"),
    ]
    for method, argument, message in wrong:
        with pytest.raises(ValueError, match=message):
            method(argument)
    assert_close(device.read(x[:, 20:]), np.asarray(model(x))[:, 20:], 1e-5)
    with pytest.raises(ValueError, match=r"end after 100 steps. .* Received: 1 more after 100"):
        device.step(x[:, :1])


def test_a_file_without_a_stream_names_whole_and_one_without_serve_names_read(tmp_path):
    x = np.zeros((1, 1, CHANNELS), "float32")
    to_tflite(convolution(), tmp_path / "serve.tflite", signatures=["serve"])
    device = runner.Device(tmp_path / "serve.tflite")
    assert not device.can_stream
    for method in (device.step, device.prefill, device.read):
        with pytest.raises(ValueError, match=r"cannot stream.* Use `whole`.* has: \['serve'\]"):
            method(x)
    to_tflite(convolution(), tmp_path / "step.tflite", signatures=["step"])
    device = runner.Device(tmp_path / "step.tflite")
    assert device.can_stream
    with pytest.raises(ValueError, match=r"no 'serve'. Use `read`. It has: \['init', 'step'\]"):
        device.whole(x)


@pytest.mark.parametrize("chunk", [4, None])
def test_prefill_alone_reads_whole_chunks_or_any_number(chunk, tmp_path, rng):
    model, path = convolution(), tmp_path / "m.tflite"
    to_tflite(model, path, prefill_chunk=chunk, signatures=["prefill"])
    device, x = runner.Device(path), inputs(rng, 1, 10, CHANNELS)
    if chunk:
        with pytest.raises(ValueError, match=r"{'prefill': 4} at a time. Received: \(10,\) steps"):
            device.read(x)
        assert_close(device.read(x[:, :8]), model(x[:, :8]), 1e-5)
    else:
        assert_close(device.read(x), model(x), 1e-5)


def copied_runner(folder, *arguments, without="tensorflow,keras,keras_cosattn"):
    """The finished process of a copy of the runner, where some modules are not installed."""
    shutil.copy(RUNNER, folder)
    command = [sys.executable, PROGRAMS / "without_modules.py", without, RUNNER.name, *arguments]
    return subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True)


def test_the_runner_runs_alone(path, model, tmp_path, rng):
    """As a copy in a process without TensorFlow, Keras and this package."""
    x = inputs(rng, 1, 50, CHANNELS)
    np.save(tmp_path / "x.npy", x)
    to_tflite(model, tmp_path / "whole.tflite", signatures=["serve"])
    for file in (path, "whole.tflite"):
        found = copied_runner(tmp_path, file, "x.npy", "y.npy")
        assert "x.npy (1, 50, 6) -> y.npy (1, 50, 3)" in found.stdout, found.stderr
        assert_close(np.load(tmp_path / "y.npy"), np.asarray(model(x)), 1e-5)
        (tmp_path / "y.npy").unlink()


def test_the_runner_reports_an_error_in_one_line(path, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((1, LIMIT + 1, CHANNELS), "float32"))
    found = copied_runner(tmp_path, path, "x.npy", "y.npy")
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.startswith("run_on_device.py: The model's streams end after 100 steps.")
    assert found.stderr.count("\n") == 1
    assert not (tmp_path / "y.npy").exists()
    assert "run_on_device.py MODEL.tflite IN.npy OUT.npy" in copied_runner(tmp_path).stderr


def test_without_an_interpreter_it_says_what_to_install(tmp_path):
    found = copied_runner(tmp_path, without="ai_edge_litert,tflite_runtime")
    assert "pip install ai-edge-litert" in found.stderr


def test_the_runner_is_written_for_python_3_9():
    """It parses there; annotations are not evaluated, for it imports them from the future."""
    source = RUNNER.read_text()
    assert "from __future__ import annotations" in source
    ast.parse(source, feature_version=(3, 9))


def with_metadata(path, new, **changes):
    """A copy of a file, with other metadata."""
    metadata = {**describe(path), **changes}
    content = pathlib.Path(path).read_bytes()[: metadata["content"]["bytes"]]
    new.write_bytes(content)
    with zipfile.ZipFile(new, "a") as archive:
        archive.writestr("keras_cosattn.json", json.dumps(metadata))
    return new


def test_whole_inputs_are_held_to_the_recorded_limit(path, tmp_path, model, rng):
    x = inputs(rng, 1, 12, CHANNELS)
    device = runner.Device(with_metadata(path, tmp_path / "m.tflite", max_whole_steps=11))
    message = "reads at most 11 steps at once. Cut the input.* Received: 12 steps of 'x'"
    with pytest.raises(ValueError, match=message):
        device.whole(x)
    assert_close(device.whole(x[:, :11]), model(x[:, :11]), 1e-5)
    assert_close(device.read(x), model(x), 1e-5)  # a stream has its own limit
    for changes in ({}, {"max_whole_steps": None}):
        device = runner.Device(with_metadata(path, tmp_path / "m.tflite", **changes))
        assert_close(device.whole(x), model(x), 1e-5)


def test_padding_of_inputs_of_a_fixed_length_does_not_count(tmp_path, rng):
    model, path = convolution(), tmp_path / "m.tflite"
    to_tflite(model, path, signatures=["serve"], length=12, batch_size=2)
    device = runner.Device(with_metadata(path, tmp_path / "limited.tflite", max_whole_steps=11))
    x = inputs(rng, 2, 12, CHANNELS)
    with pytest.raises(ValueError, match=r"at most 11 steps at once.* Received: 12 steps of 'x'"):
        device.whole(x)
    x[0, 11:], x[1, :5] = 0, 0
    assert_close(device.whole(x), model(x), 1e-5)


def test_an_input_that_is_too_long_is_never_reported_as_a_success(tmp_path):
    """70 steps of a model with 64 positions: once NaN, with the usual line and exit status 0."""
    x = keras.Input((None, CHANNELS))
    model = keras.Model(x, CosFormerAttention(2, 4, max_length=64)(x, x))
    to_tflite(model, tmp_path / "m.tflite")
    np.save(tmp_path / "x.npy", np.ones((1, 70, CHANNELS), "float32"))
    found = copied_runner(tmp_path, "m.tflite", "x.npy", "y.npy")
    assert (found.returncode, found.stdout) == (1, "")
    assert re.search(r"Received: .*70", found.stderr)
    assert not (tmp_path / "y.npy").exists()


def test_nan_without_nan_in_the_input_is_refused_and_the_stream_stays(model, device, rng):
    x = inputs(rng, 1, 2 * CHUNK, CHANNELS)
    device.read(x[:, :CHUNK])

    def with_nan(run):
        return lambda **inputs: {name: y * np.nan for name, y in run(**inputs).items()}

    runs = dict(device._run)
    device._run = {key: with_nan(run) for key, run in runs.items()}
    for method in (device.whole, device.read):
        with pytest.raises(ValueError, match=r"NaN in \['y'\] from inputs without NaN.*\(1, 16, 6"):
            method(x[:, CHUNK:])
    assert device.steps == CHUNK
    device._run = runs
    assert_close(device.read(x[:, CHUNK:]), np.asarray(model(x))[:, CHUNK:], 1e-5)


def test_nan_in_the_input_may_give_nan(device):
    x = np.full((1, 3, CHANNELS), np.nan, "float32")
    assert np.isnan(device.whole(x)).all()
    assert np.isnan(device.read(x)).all()


def test_an_interpreter_that_fails_leaves_the_stream(model, device, rng):
    x = inputs(rng, 1, CHUNK + 2, CHANNELS)
    step, device._run["step"] = device._run["step"], mock.Mock(side_effect=RuntimeError("busy"))
    with pytest.raises(RuntimeError, match="busy"):
        device.read(x)  # after a chunk
    assert device.steps == 0
    device._run["step"] = step
    assert_close(device.read(x), model(x), 1e-5)


def test_no_steps_give_no_outputs(model, device, tmp_path, rng):
    x = inputs(rng, 1, 10, CHANNELS)
    device.read(x[:, :5])
    assert device.read(x[:, :0]).shape == (1, 0, 3)
    assert_close(device.read(x[:, 5:]), np.asarray(model(x))[:, 5:], 1e-5)
    to_tflite(two_inputs(), tmp_path / "m.tflite", signatures=["step"], batch_size=None)
    device = runner.Device(tmp_path / "m.tflite", batch_size=2)
    found = device.read({"ids": np.zeros((2, 0), "int32"), "z": np.zeros((2, 0, 3), "float32")})
    assert {name: y.shape for name, y in found.items()} == {"a": (2, 0, 2), "b": (2, 0, 5)}
    assert device.steps == 0


def test_a_state_file_has_the_permissions_of_the_umask(device, tmp_path):
    before = os.umask(0o027)
    try:
        device.save(tmp_path / "state.npz")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "state.npz").stat().st_mode) == 0o640


def test_the_example_runs():
    assert doctest.testmod(runner) == (0, 7)
