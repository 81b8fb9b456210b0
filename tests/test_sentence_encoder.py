"""The parts of `examples/convert_sentence_encoder.py`, with a small BERT of random weights."""

import json
import math
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from support import BACKEND, assert_close

if BACKEND != "tensorflow":
    pytest.skip("an example for TensorFlow", allow_module_level=True)

sys.path.append(str(pathlib.Path(__file__).parent.parent / "examples"))

import embedding_cost
import encoder_data
import encoder_scores
import encoder_students
import kept
import long_texts
import minilm
import newsgroups_data
import retrieval
from encoder_students import STUDENTS, student_of
from wheel_data import CACHE

EXAMPLE = pathlib.Path(minilm.__file__).parent / "convert_sentence_encoder.py"
EXACT = 2e-5  # float32 through two blocks
SIZES = minilm.Sizes(positions=2048, vocabulary=150, width=12, heads=3, inner=20, blocks=2)
POSITIONS = 512


def bert_arrays(sizes=SIZES, positions=POSITIONS):
    """Random weights, by the names that BERT's files have."""
    rng, m, f = np.random.default_rng(0), sizes.width, sizes.inner
    shapes = {
        "embeddings.word_embeddings.weight": (sizes.vocabulary, m),
        "embeddings.position_embeddings.weight": (positions, m),
        "embeddings.token_type_embeddings.weight": (2, m),
        "embeddings.LayerNorm.weight": (m,),
        "embeddings.LayerNorm.bias": (m,),
    }
    for i in range(sizes.blocks):
        dense = {f"attention.self.{name}": (m, m) for name in ("query", "key", "value")}
        dense |= {"attention.output.dense": (m, m)}
        dense |= {"intermediate.dense": (f, m), "output.dense": (m, f)}
        for name, shape in dense.items():
            shapes[f"encoder.layer.{i}.{name}.weight"] = shape
            shapes[f"encoder.layer.{i}.{name}.bias"] = shape[:1]
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"encoder.layer.{i}.{name}.{kind}": (m,) for kind in ("weight", "bias")}
    found = {name: rng.standard_normal(shape) / math.sqrt(m) for name, shape in shapes.items()}
    for name in found:  # a step looks at few others
        if ".query." in name or ".key." in name:
            found[name] *= 2
    return {name: np.float32(x + name.endswith("Norm.weight")) for name, x in found.items()}


def bert(arrays, tokens, heads):
    """What BERT's paper computes of tokens `(t,)`, in float64: its last outputs, `(t, m)`."""
    arrays = {name: np.float64(x) for name, x in arrays.items()}

    def dense(x, name):
        return x @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"]

    def norm(x, name):
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + 1e-12)
        return x * arrays[f"{name}.weight"] + arrays[f"{name}.bias"]

    def split(x):
        return x.reshape(len(x), heads, -1).swapaxes(0, 1)  # (h, t, d)

    x = arrays["embeddings.word_embeddings.weight"][tokens]
    x = x + arrays["embeddings.position_embeddings.weight"][: len(tokens)]
    x = norm(x + arrays["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    count = sum(name.endswith("intermediate.dense.bias") for name in arrays)
    for i in range(count):
        layer = f"encoder.layer.{i}"
        q, k, v = (
            split(dense(x, f"{layer}.attention.self.{n}")) for n in ("query", "key", "value")
        )
        scores = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]))
        mixed = scores / scores.sum(axis=-1, keepdims=True) @ v
        mixed = dense(mixed.swapaxes(0, 1).reshape(x.shape), f"{layer}.attention.output.dense")
        x = norm(x + mixed, f"{layer}.attention.output.LayerNorm")
        inner = dense(x, f"{layer}.intermediate.dense")
        inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        x = norm(x + dense(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    return x


@pytest.fixture(scope="module")
def teacher():
    model = minilm.build(SIZES)
    minilm.load(model, bert_arrays())
    return long_texts.Encoder(model)


def encoder_of(teacher, name):
    return long_texts.Encoder(student_of(teacher.model, name))


def texts_of(*lengths):
    rng = np.random.default_rng(0)
    return [rng.integers(103, SIZES.vocabulary, n) for n in lengths]


def test_the_encoder_has_the_outputs_of_bert(teacher):
    tokens = long_texts.marked(texts_of(35)[0])
    expected = bert(bert_arrays(), tokens, SIZES.heads)
    found = teacher.model(np.pad(tokens, (0, 5))[None])
    assert_close(found["steps"][0, : len(tokens)], expected, EXACT)
    mean = expected.mean(axis=0)
    assert_close(found["embedding"][0], mean / np.linalg.norm(mean), EXACT)
    names = {weight.path.split("/")[0] for weight in teacher.model.trainable_weights}
    assert names == {"norm", "block_0", "block_1"}


def test_a_file_of_safetensors_is_read():
    arrays = {"a": np.float32([[1, 2, 3], [4, 5, 6]]), "b": np.arange(4)}
    header, start = {"__metadata__": {"format": "pt"}}, 0
    for name, x in arrays.items():
        kind = {"float32": "F32", "int64": "I64"}[x.dtype.name]
        header[name] = {
            "dtype": kind, "shape": list(x.shape), "data_offsets": [start, start + x.nbytes]
        }  # fmt: skip
        start += x.nbytes
    head = json.dumps(header).encode()
    content = (
        len(head).to_bytes(8, "little") + head + b"".join(x.tobytes() for x in arrays.values())
    )
    found = minilm.arrays_of(content)
    assert list(found) == ["a", "b"]
    for name, x in arrays.items():
        np.testing.assert_array_equal(found[name], x)


def test_texts_are_cut_and_marked():
    (text,) = texts_of(1030)
    pieces = long_texts.pieces(text)
    assert [len(piece) for piece in pieces] == [512, 512, 12]
    assert all((piece[0], piece[-1]) == (minilm.START, minilm.END) for piece in pieces)
    np.testing.assert_array_equal(np.concatenate([piece[1:-1] for piece in pieces]), text)
    np.testing.assert_array_equal(long_texts.first_piece(text), pieces[0])
    np.testing.assert_array_equal(long_texts.one_after_the_other(text), np.concatenate(pieces))
    for position in (long_texts.begin_again, long_texts.hold_the_last):
        assert position(np.array([3, 511, 600]), 512)[:2].tolist() == [3, 511]
    assert long_texts.begin_again(600, 512) == 88
    assert long_texts.hold_the_last(np.array([600]), 512) == [511]
    assert long_texts.go_slowly(np.array([0, 3, 4, 2048]), 512).tolist() == [0, 0, 1, 0]


def test_embeddings_do_not_depend_on_the_batch(teacher):
    texts = [long_texts.marked(text) for text in texts_of(20, 3, 41, 8)]
    together = teacher.embed(texts)
    alone = np.stack([teacher.model(text[None])["embedding"][0] for text in texts])
    assert_close(together, alone, EXACT)
    assert_close(teacher.embed(texts, at_once=1), alone, EXACT)


def test_pieces_count_by_their_tokens(teacher):
    short, long = texts_of(30, 600)
    found = teacher.embed_pieces([short, long])
    assert_close(found[0], teacher.embed([long_texts.marked(short)])[0], EXACT)
    first, last = teacher.embed(long_texts.pieces(long))
    mean = 512 * first + 92 * last
    assert_close(found[1], mean / np.linalg.norm(mean), EXACT)


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.sample(2)
def test_students_read_texts_that_are_longer_than_the_positions(name, teacher):
    student, arrays = encoder_of(teacher, name), bert_arrays()
    short, long = (long_texts.marked(text) for text in texts_of(20, 1200))
    before = student.embed([short, long])
    assert np.isfinite(before).all()
    assert_close(np.linalg.norm(before, axis=1), np.ones(2), EXACT)
    minilm.set_positions(student.model, arrays, long_texts.hold_the_last)
    held = student.embed([short, long])
    assert_close(held[0], before[0], EXACT)
    assert np.abs(held[1] - before[1]).max() > 100 * EXACT


@pytest.mark.parametrize("name", [pytest.param("Hedgehog", marks=pytest.mark.slow), "segments"])
def test_a_student_learns_attention(name, teacher):
    student, texts = encoder_of(teacher, name), texts_of(600, 700, 50, 200)
    batches = encoder_data.batches(texts, 12, seed=0)
    assert {x.shape for x in batches} == {(32, 32), (8, 128), (2, 512)}
    x = encoder_data.windows(texts, 300, 2, seed=1)
    held = {300: (x, teacher.embed(x))}
    before = encoder_scores.nearness(teacher, student, held)
    encoder_students.learn_attention(teacher.model, student.model, batches[:6], batches[6:])
    after = encoder_scores.nearness(teacher, student, held)
    assert after["error of a layer"] < before["error of a layer"]


@pytest.mark.slow
def test_an_interrupted_student_goes_on_behind_its_last_epoch(teacher, tmp_path, monkeypatch):
    texts, weight = texts_of(600, 700), "block_1/feedforward_output/bias"
    batches = encoder_data.batches(texts, 8, seed=0)

    def spoilt():
        keras.utils.set_random_seed(0)
        student = encoder_of(teacher, "segments")
        (bias,) = (w for w in student.model.weights if w.path == weight)
        bias.assign(bias + np.linspace(-2, 2, SIZES.width))
        return student

    def learn(student):
        given = batches, 1e-2, 2, tmp_path / "backup"
        encoder_students.learn_embeddings(teacher.model, student.model, *given)

    x = encoder_data.windows(texts, 128, 8, seed=1)
    held = {128: (x, teacher.embed(x))}
    whole, first = spoilt(), spoilt()
    before = encoder_scores.nearness(teacher, whole, held)["cosine, 128 tokens"]
    learn(whole)
    assert encoder_scores.nearness(teacher, whole, held)["cosine, 128 tokens"] > before
    words, expected = (x.model.get_layer("words").weights[0] for x in (whole, teacher))
    assert_close(words, expected, 0)

    class Interrupted(keras.callbacks.BackupAndRestore):
        def on_epoch_end(self, epoch, logs=None):
            super().on_epoch_end(epoch, logs)
            raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(keras.callbacks, "BackupAndRestore", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            learn(first)
    again = spoilt()
    learn(again)
    assert again.model.optimizer.iterations == len(batches)
    pairs = zip(again.model.trainable_weights, whole.model.trainable_weights, strict=True)
    for found, expected in pairs:
        assert_close(found, expected, 1e-4)


def test_windows_are_parts_of_long_enough_texts():
    texts = texts_of(40, 9, 14)
    found = encoder_data.windows(texts, 16, 50, seed=0)
    assert found.shape == (50, 16)
    whole = [" ".join(map(str, text)) for text in texts]
    drawn = [" ".join(map(str, row[1:-1])) for row in found]
    assert all(part in whole[0] or part == whole[2] for part in drawn)
    assert any(part == whole[2] for part in drawn)


def test_passages_are_cut_out_behind_the_first_tokens(rng):
    text = np.arange(1000)
    for _ in range(20):
        rest, passages = retrieval.hold_out(text, 4, 64, 510, rng)
        assert passages.shape == (4, 64)
        assert (np.diff(passages) == 1).all()
        assert passages.min() >= 510
        assert len(rest) == 1000 - 4 * 64
        assert sorted([*rest, *passages.ravel()]) == list(text)


def test_ranks_count_what_is_at_least_as_alike():
    scores = np.array([[0.1, 0.9, 0.5], [0.4, 0.4, 0.4], [0.3, 0.2, 0.1]])
    found = retrieval.ranks(scores, np.array([1, 0, 2]))
    assert found.tolist() == [1, 3, 3]
    numbers = retrieval.summary(np.array([1, 3, 3, 20]))
    assert numbers == pytest.approx(
        {"recall@1": 0.25, "recall@10": 0.75, "mean reciprocal rank": (1 + 2 / 3 + 0.05) / 4}
    )


def test_each_way_to_read_finds_what_is_certain(teacher, rng):
    """A document's own embeddings find it, and TF-IDF finds a text of rare tokens."""
    texts = [np.arange(1100) % 7 + 100 + 7 * i for i in range(3)]
    search = retrieval.search(texts, 2, 16, 510, rng)
    assert search.owners.tolist() == [0, 0, 1, 1, 2, 2]
    assert search.of_tfidf()["recall@1"] == 1
    same = np.eye(3)
    assert search.scores(same[search.owners], same)["recall@1"] == 1
    arrays, student = bert_arrays(), encoder_of(teacher, "segments, then Hedgehog")
    before = student.embed([search.documents[0]])
    layouts = encoder_scores.by_layout(student, arrays, search)
    assert_close(student.embed([search.documents[0]]), before, 0)
    assert [name.rsplit("/", 1)[0] for name in layouts] == list(long_texts.LAYOUTS)
    layout = next(iter(long_texts.LAYOUTS))
    found = encoder_scores.by_reader(
        teacher, student, encoder_of(teacher, "segments"), arrays, layout, search
    )
    assert all(0 < x <= 1 for x in found.values())
    assert found["TF-IDF, whole/recall@1"] == 1
    near = encoder_scores.by_length(teacher, teacher, {20: np.stack([x[:20] for x in texts])})
    assert near["cosine of student and MiniLM/20 tokens"] == pytest.approx(1, abs=EXACT)
    assert near["correlation over all pairs of texts/20 tokens"] == pytest.approx(1, abs=EXACT)


def test_a_finished_part_is_read_and_not_made_again(tmp_path):
    def model():
        x = keras.Input((3,))
        frozen = keras.layers.Dense(2, name="frozen")
        made = keras.Model(x, keras.layers.Dense(2, name="learns")(frozen(x)))
        frozen.trainable = False
        return made

    first, path, calls = model(), tmp_path / "new" / "part.npz", []

    def train():
        calls.append(1)
        first.get_layer("learns").set_weights([np.full((2, 2), 7.0), np.ones(2)])
        return {"seconds": 2.5}

    assert kept.learned(path, first, train) == {"seconds": 2.5}
    second = model()
    before = second.get_layer("frozen").get_weights()[0]
    assert kept.learned(path, second, train) == {"seconds": 2.5}
    assert calls == [1]
    assert_close(second.get_layer("learns").get_weights()[0], np.full((2, 2), 7.0), 0)
    assert_close(second.get_layer("frozen").get_weights()[0], before, 0)

    def fails():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept.numbers(tmp_path / "interrupted.npz", fails)
    assert kept.numbers(tmp_path / "interrupted.npz", lambda: {"a/b": 1.5}) == {"a/b": 1.5}


def test_softmax_that_does_not_fit_is_not_run():
    assert embedding_cost.shape(embedding_cost.PIECES, 4096) == (8, 512)
    assert embedding_cost.shape(embedding_cost.PIECES, 300) == (1, 300)
    assert embedding_cost.too_large(embedding_cost.WHOLE, 10**6)
    assert not embedding_cost.too_large(embedding_cost.WHOLE, 8)
    assert not embedding_cost.too_large("Hedgehog", 10**6)


@pytest.mark.slow
@pytest.mark.skipif(
    not all((CACHE / module.WHEEL).exists() for module in (minilm, newsgroups_data)),
    reason="needs the wheels that the example fetches",
)
def test_the_example_prints_its_tables():
    command = [sys.executable, EXAMPLE, "--quick", "--fresh"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = {line.split("  ")[0]: line.split()[-3:] for line in said.splitlines()}
    cosines = rows["cosine of student and MiniLM"]
    assert all(-1 <= float(x) <= 1 for x in cosines[-2:])
    assert float(rows["MiniLM, mean of pieces"][0]) > 0.3
    again = subprocess.run(command[:-1], check=True, capture_output=True, text=True).stdout
    assert again[again.index("\nStudents") :] == said[said.index("\nStudents") :]
