"""What the layers work with: each line of the README's table is run.

`python tests/test_works_with.py` prints the table, with the versions and the date.
"""

import dataclasses
import datetime
import importlib.metadata
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable

import keras
import numpy as np
import pytest

TESTS = pathlib.Path(__file__).parent
README = TESTS.parent / "README.md"
PACKAGES = ("keras", "tensorflow", "jax", "torch", "keras-hub", "ai-edge-litert", "tf2onnx")
HEAD = ["| with | works | what is tested |", "|---|---|---|"]


def program(name, *arguments):
    """A line that sets devices or the backend, which a process can do only at its start."""

    def run(folder):
        done = subprocess.run(
            [sys.executable, "-m", f"programs.{name}", *arguments],
            cwd=TESTS, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]

    return run


def small_model():
    """The model of the programs, an input `(2, 12, 6)` and the model's output."""
    from programs import small

    model = small.build()
    x, _ = small.data(2)
    return model, x, np.asarray(model(x))


def lora(folder):
    from programs import small

    model, x, before = small_model()
    query = next(
        part for part in model._flatten_layers() if hasattr(part, "query_dense")
    ).query_dense
    (kernel,) = (weight for weight in query.weights if weight.name == "kernel")
    frozen = np.array(kernel)
    query.enable_lora(2)
    np.testing.assert_allclose(model(x), before, atol=1e-6)
    losses = small.fit(model)
    assert losses[-1] < losses[0]
    np.testing.assert_array_equal(kernel, frozen)
    (added,) = (weight for weight in query.weights if weight.name == "lora_kernel_b")
    assert np.any(np.array(added))


def int8(folder):
    from keras_cosattn import Streaming

    model, x, before = small_model()
    model.quantize("int8")
    after = np.asarray(model(x))
    assert np.any(after != before)
    assert np.abs(after - before).max() < 0.1 * np.abs(before).max()
    stream = Streaming(model)
    y, _ = stream(x, stream.initial_state(2))
    np.testing.assert_allclose(y, after, atol=1e-5)


def remat_function(folder):
    import tensorflow as tf

    from keras_cosattn import CosFormerAttention

    layer = CosFormerAttention(2, 4, horizon=8)
    x = tf.constant(small_model()[1])
    attend = lambda x: layer(x, x, use_causal_mask=True)  # noqa: E731, the case of `keras.remat`
    attend(x)

    @tf.function
    def gradients(function):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(function(x) ** 2)
        return tape.gradient(loss, layer.trainable_variables)

    for found, expected in zip(gradients(keras.remat(attend)), gradients(attend), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def remat_scope(folder):
    from programs import small

    with keras.RematScope(mode="full"):
        model = small.build()
    small.fit(model)


def mixed_precision(folder):
    from programs import small

    expected = small.fit(small.build())
    for policy in ("mixed_bfloat16", "mixed_float16"):
        np.testing.assert_allclose(small.fit(small.build(policy)), expected, rtol=0.05)


def samplers(folder):
    from keras_hub import samplers

    from keras_cosattn import CosFormerAttention, Streaming, TransformerDecoder

    keras.utils.set_random_seed(0)
    codes = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(20, 8)(codes)
    x = TransformerDecoder(16, attention=CosFormerAttention(2, 4, horizon=8))(x)
    model = keras.Model(codes, keras.layers.Dense(20)(x))
    stream, start = Streaming(model), 3
    prompt = np.random.default_rng(0).integers(20, size=(2, 8)).astype("int32")
    _, state = stream(prompt[:, : start - 1], stream.initial_state(2))

    def next_logits(tokens, state, index):
        """What the samplers call: the state is their cache."""
        last = keras.ops.slice(tokens, [0, index - 1], [tokens.shape[0], 1])
        logits, state = stream(last, state)
        return logits[:, 0], None, state

    greedy = prompt.copy()
    for i in range(start, 8):
        greedy[:, i] = np.argmax(model(greedy[:, :i])[:, -1], axis=-1)
    chosen = {
        name: np.asarray(sampler(next_logits, prompt, cache=state, index=start))
        for name, sampler in {
            "greedy": samplers.GreedySampler(),
            "top 1": samplers.TopKSampler(1, seed=0),
            "top p": samplers.TopPSampler(0.5, seed=0),
            "beam": samplers.BeamSampler(3),
        }.items()
    }
    np.testing.assert_array_equal(chosen["greedy"], greedy)
    np.testing.assert_array_equal(chosen["top 1"], greedy)
    assert log_probability(model, chosen["beam"], start) >= log_probability(model, greedy, start)
    for tokens in chosen.values():
        np.testing.assert_array_equal(tokens[:, :start], prompt[:, :start])


def log_probability(model, tokens, start):
    """Of the tokens from `start` on, summed over the examples."""
    said = keras.ops.log_softmax(model(tokens))[:, start - 1 : -1]
    chosen = keras.ops.take_along_axis(said, tokens[:, start:, None], axis=-1)
    return float(keras.ops.sum(chosen))


def saved_model(folder):
    import tensorflow as tf

    model, x, expected = small_model()
    model.export(folder / "saved", format="tf_saved_model", verbose=False)
    loaded = tf.saved_model.load(folder / "saved")
    np.testing.assert_allclose(loaded.serve(x), expected, atol=1e-5)


def litert(folder):
    from ai_edge_litert.interpreter import Interpreter

    model, x, expected = small_model()
    model.export(folder / "model.tflite", format="litert", verbose=False)
    interpreter = Interpreter(str(folder / "model.tflite"))
    given, found = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    interpreter.resize_tensor_input(given["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], x)
    interpreter.invoke()
    np.testing.assert_allclose(interpreter.get_tensor(found["index"]), expected, atol=1e-5)


def onnx(folder):
    import onnxruntime

    model, x, expected = small_model()
    model.export(folder / "model.onnx", format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: x})
    np.testing.assert_allclose(found, expected, atol=1e-5)


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes:
        name: str, what the layers are used with, as Markdown.
        tested: str, what `run` asserts.
        run: function of an empty folder. Raises an error where it does not work.
        needs: tuple of str, modules without which the line cannot run.
        fails_with: str, a part of the error's message if it is known not to work.
        reason: str, why it does not work, as the table says it.
    """

    name: str
    tested: str
    run: Callable
    needs: tuple = ()
    fails_with: str = ""
    reason: str = ""

    def missing(self):
        """The modules that are not installed."""
        return [module for module in self.needs if importlib.util.find_spec(module) is None]

    def row(self):
        works = f"no: {self.reason}" if self.fails_with else "yes"
        return f"| {self.name} | {works} | {self.tested} |"


LINES = [
    Line(
        "`tf.distribute.MirroredStrategy`",
        "`fit` on two replicas has the losses of one; a last batch that is empty on a replica",
        program("mirrored_strategy"),
    ),
    Line(
        "`keras.distribution.DataParallel` (JAX)",
        "`fit` on two devices has the losses of one",
        program("jax_distribution", "data"),
        ("jax",),
    ),
    Line(
        "`keras.distribution.ModelParallel` (JAX)",
        "the same, with the heads of the projections divided between the devices",
        program("jax_distribution", "model"),
        ("jax",),
    ),
    Line(
        "PyTorch backend",
        "`fit` lowers the loss; a stream has the outputs of the whole input",
        program("pytorch_backend"),
        ("torch",),
    ),
    Line(
        "LoRA, `layer.query_dense.enable_lora(rank)`",
        "the outputs stay; `fit` changes the new matrices and keeps the kernel",
        lora,
    ),
    Line(
        '`model.quantize("int8")`',
        "outputs within 10 % of the largest, whole and in a stream",
        int8,
    ),
    Line(
        "`keras.remat`",
        "a function that calls a layer has the same gradients, if nothing in it changes from call "
        "to call, such as dropout",
        remat_function,
    ),
    Line("`keras.remat` (JAX)", "the same", program("remat_on_jax"), ("jax",)),
    Line(
        "`keras.RematScope`",
        "`fit`",
        remat_scope,
        fails_with="custom_gradient decorator currently supports keyword",
        reason="in it Keras cannot train layers that are called with keywords, nor its own "
        "`Dropout`, on TensorFlow and JAX. Use `keras.remat`",
    ),
    Line(
        "Mixed precision",
        "`fit` in `mixed_bfloat16` and `mixed_float16` has losses within 5 % of float32",
        mixed_precision,
    ),
    Line(
        "KerasHub's samplers",
        "greedy, top-k, top-p and beam search with the state of a stream as their cache",
        samplers,
        ("keras_hub", "regex", "tokenizers"),  # the last two are its requirements
    ),
    Line("`Model.export`, SavedModel", "the file has the outputs of the model", saved_model),
    Line("`Model.export`, LiteRT", "the same", litert, ("ai_edge_litert",)),
    Line("`Model.export`, ONNX", "the same, on ONNX Runtime", onnx, ("tf2onnx", "onnxruntime")),
]

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="lines for other backends start processes of their own",
)


@on_tensorflow
@pytest.mark.parametrize("line", LINES, ids=lambda line: line.name.replace("`", ""))
def test_a_line_of_the_table_is_true(line, tmp_path):
    if missing := line.missing():
        pytest.skip(f"not installed: {', '.join(missing)}")
    if line.fails_with:
        with pytest.raises(ValueError, match=line.fails_with):
            line.run(tmp_path)
    else:
        line.run(tmp_path)


def test_the_readme_holds_the_table():
    text = README.read_text().splitlines()
    start = text.index(HEAD[0])
    assert text[start : text.index("", start)] == [*HEAD, *(line.row() for line in LINES)]


def version(package):
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} not installed"


def main():
    """Run every line and print the table. Ends with status 1 if a line is not true."""
    versions = ", ".join(map(version, PACKAGES))
    print(f"{datetime.date.today()}, {versions}\n", *HEAD, sep="\n", flush=True)
    right = True
    for line in LINES:
        if missing := line.missing():
            print(f"| {line.name} | not run: needs {', '.join(missing)} | {line.tested} |")
            continue
        error = None
        try:
            with tempfile.TemporaryDirectory() as folder:
                line.run(pathlib.Path(folder))
        except Exception as raised:
            error = raised
        as_said = line.fails_with in str(error) if line.fails_with else error is None
        right = right and as_said
        row = line.row() if as_said else f"| {line.name} | **not as said**: {error!r:.300} | |"
        print(row, flush=True)
    sys.exit(not right)


if __name__ == "__main__":
    main()
