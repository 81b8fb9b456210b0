"""Text in: what the tokenizers give, in a file that needs neither Keras nor this package."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import unicodedata

import keras
import numpy as np
import pytest
from support import BACKEND, assert_close

from keras_cosattn import CosFormerAttention, TransformerDecoder, TransformerEncoder, export
from keras_cosattn.export import ByteTokenizer, WordPieceTokenizer

pytestmark = pytest.mark.skipif(BACKEND != "tensorflow", reason="exports need TensorFlow")
needs_tensorflow_text = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_text") is None,
    reason="needs tensorflow-text: the extra `text`",
)

PROGRAMS = pathlib.Path(__file__).parent / "programs"
TEXTS = ["", "a", "the Greatest, café!", "unable zzz", "日本 🙂", " \t\n", "a\x00b", "ÿ" * 30]
PIECES = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "great", "##est", "##er", "cafe", "café", "un",
    "##able", "##a", ",", "日", "本", "a", "aa",
]  # fmt: skip


def byte_ids(text, offset=1, max_length=None):
    return [byte + offset for byte in text.encode()][:max_length]


def word_piece_ids(text, lower_case=True):
    """BERT's, from its description: words, then the longest piece that fits, again and again."""
    if lower_case:
        text = unicodedata.normalize("NFD", text.lower())
        text = "".join(c for c in text if unicodedata.category(c) != "Mn")
    text = text.replace("\x00", " ")  # control characters end words
    words = re.findall(r"[\u4e00-\u9fff]|[^\w\s]|[^\W\u4e00-\u9fff]+", text)
    return [i for word in words for i in pieces_of(word)]


def pieces_of(word):
    found, start = [], 0
    while start < len(word):
        ends = range(len(word), start, -1)
        pieces = (("##" if start else "") + word[start:end] for end in ends)
        piece = next((piece for piece in pieces if piece in PIECES), None)
        if piece is None:
            return [PIECES.index("[UNK]")]
        found.append(PIECES.index(piece))
        start += len(piece.removeprefix("##") if start else piece)
    return found


def padded(rows):
    ids = np.zeros([len(rows), max(1, *map(len, rows))], "int32")
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids


def classifier(size):
    """A model that looks both ways and masks padding."""
    x = keras.Input((None,), dtype="int32")
    y = keras.layers.Embedding(size, 8, mask_zero=True)(x)
    y = TransformerEncoder(8, attention=CosFormerAttention(2, 4, max_length=200))(y)
    return keras.Model(x, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling1D()(y)))


def tagger(size):
    """A causal model that masks nothing."""
    x = keras.Input((None,), dtype="int64")
    y = keras.layers.Embedding(size, 8)(x)
    y = TransformerDecoder(8, attention=CosFormerAttention(2, 4, horizon=8))(y)
    return keras.Model(x, keras.layers.Dense(3)(y))


def lookup(size, length=None, dtype="int32"):
    """The smallest model of ids."""
    x = keras.Input((length,), dtype=dtype)
    return keras.Model(x, keras.layers.Embedding(size, 4)(x))


def run_alone(path, texts, without=("keras", "keras_cosattn"), setup=()):
    """ids and outputs of a SavedModel in a process that cannot import some modules.

    The modules `setup` are imported before it is loaded.
    """
    np.save(path.parent / "texts.npy", np.array([text.encode() for text in texts], object))
    command = [
        sys.executable, PROGRAMS / "without_modules.py", ",".join(without),
        PROGRAMS / "serve_text.py", path, "texts.npy", "found.npz", *setup,
    ]  # fmt: skip
    subprocess.run(command, cwd=path.parent, check=True)
    found = np.load(path.parent / "found.npz")
    return found["ids"], found["y"]


def test_byte_ids_are_those_of_python():
    for options in ({}, {"offset": 3}, {"max_length": 4}, {"offset": 2, "max_length": 400}):
        tokenizer = ByteTokenizer(**options)
        expected = padded([byte_ids(text, **options) for text in TEXTS])
        np.testing.assert_array_equal(tokenizer(TEXTS), expected)
        assert expected.max() < tokenizer.vocabulary_size == tokenizer.offset + 256
    np.testing.assert_array_equal(ByteTokenizer()([""]), [[0]])
    np.testing.assert_array_equal(ByteTokenizer()([b"\xff\x00"]), [[256, 1]])


@needs_tensorflow_text
@pytest.mark.parametrize("lower_case", [True, False])
def test_word_pieces_are_the_longest_that_fit(lower_case, tmp_path):
    (tmp_path / "vocabulary.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    texts = [*TEXTS, "aaa aa", "THE the\nthe", "undetheable", "é" * 60, "日x本"]
    for vocabulary in (PIECES, tmp_path / "vocabulary.txt"):
        tokenizer = WordPieceTokenizer(vocabulary, lower_case)
        expected = [word_piece_ids(text, lower_case) for text in texts]
        assert tokenizer(texts).to_list() == expected
    assert expected[2] == ([4, 5, 6, 13, 8, 1] if lower_case else [4, 1, 13, 9, 1])


@needs_tensorflow_text
def test_a_text_is_cut_off_between_its_start_and_end():
    tokenizer = WordPieceTokenizer(PIECES, max_length=5, start="[CLS]", end="[SEP]")
    expected = [[2, *word_piece_ids(text)[:3], 3] for text in TEXTS]
    assert tokenizer(TEXTS).to_list() == expected
    assert max(map(len, expected)) == 5


def test_bytes_in_a_file_that_needs_tensorflow_alone(tmp_path):
    model = classifier(ByteTokenizer().vocabulary_size)
    report = export.to_saved_model(model, tmp_path / "m", tokenizer=ByteTokenizer())
    assert report.signatures["serve_text"] == {
        "inputs": {"text": [[None], "string"]},
        "outputs": {"y": [[None, 3], "float32"]},
    }
    assert report.signatures["tokenize"]["outputs"] == {"x": [[None, None], "int32"]}
    about = export.describe(tmp_path / "m")
    assert about["needs"] == []
    assert about["signatures"] == report.signatures

    texts = [text for text in TEXTS if text]
    ids, y = run_alone(tmp_path / "m", texts)
    np.testing.assert_array_equal(ids, padded([byte_ids(text) for text in texts]))
    alone = [model(np.array([byte_ids(text)])) for text in texts]  # not padded
    assert_close(y, np.concatenate(alone), 1e-5)

    assert export.verify(model, tmp_path / "m", verbose=0).differences["serve_text"] < 1e-5
    other = keras.models.clone_model(model)
    with pytest.raises(ValueError, match="computes something else"):
        export.verify(other, tmp_path / "m", verbose=0)


@needs_tensorflow_text
def test_word_pieces_in_a_file_that_streams_too(tmp_path):
    tokenizer = WordPieceTokenizer(PIECES, start="[CLS]")
    model = tagger(tokenizer.vocabulary_size)
    report = export.to_saved_model(model, tmp_path / "m", tokenizer=tokenizer)
    assert report.largest_difference < 1e-5
    assert set(report.differences) == {"serve", "prefill", "step", "serve_text"}
    assert report.signatures["serve_text"]["outputs"] == {"y": [[None, None, 3], "float32"]}
    assert export.describe(tmp_path / "m")["needs"] == ["tensorflow_text"]
    # `import tensorflow_text` itself imports Keras.
    without, setup = ("keras_cosattn",), ("tensorflow_text",)
    ids, y = run_alone(tmp_path / "m", TEXTS, without, setup)
    np.testing.assert_array_equal(ids, padded([[2, *word_piece_ids(text)] for text in TEXTS]))
    assert_close(y, model(ids), 1e-5)
    model.save(tmp_path / "m.keras")
    command = [sys.executable, PROGRAMS / "verify_text.py", "m.keras", "m"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(command, cwd=tmp_path, check=True, env=environment)


def test_a_layer_of_keras_is_a_tokenizer_with_its_table_in_the_file(tmp_path):
    tokenizer = keras.layers.TextVectorization(vocabulary=["the", "cafe", "a"])
    model = lookup(tokenizer.vocabulary_size())
    export.to_saved_model(model, tmp_path / "m", tokenizer=tokenizer)
    ids, y = run_alone(tmp_path / "m", ["the A", "", "cafe zzz the"])
    np.testing.assert_array_equal(ids, [[2, 4, 0], [0, 0, 0], [3, 1, 2]])
    assert_close(y, model(ids))


def test_texts_are_padded_to_the_length_of_the_model(tmp_path):
    import tensorflow as tf

    model = lookup(257, length=6)
    export.to_saved_model(model, tmp_path / "m", tokenizer=ByteTokenizer(max_length=6))
    loaded = tf.saved_model.load(tmp_path / "m")
    ids = loaded.signatures["tokenize"](text=tf.constant(["ab"]))["x"]
    np.testing.assert_array_equal(ids, [[98, 99, 0, 0, 0, 0]])
    with pytest.raises(ValueError, match=r"takes 6 ids, .* Let it cut texts off"):
        export.to_saved_model(model, tmp_path / "m", tokenizer=ByteTokenizer())


def floats(text):
    import tensorflow as tf

    return tf.strings.to_number(tf.strings.bytes_split(text))


def pieces_of_words(text):
    import tensorflow as tf

    return tf.io.decode_raw(text, tf.uint8, fixed_length=4)[:, :, None]


def in_python(text):
    import tensorflow as tf

    ids = tf.numpy_function(lambda t: np.ones((len(t), 2), "int32"), [text], tf.int32)
    return tf.ensure_shape(ids, (None, 2))


def with_a_loose_table(text):
    import tensorflow as tf

    return tf.cast(text == "a", tf.int32)[:, None] * TABLES["table"].lookup(text)[:, None]


TABLES = {}


def test_what_gives_no_ids_is_refused(tmp_path):
    import tensorflow as tf

    values = tf.lookup.KeyValueTensorInitializer(["a"], [1])
    TABLES["table"] = tf.lookup.StaticHashTable(values, 0)
    for tokenizer, error in (
        (floats, r"must give integers \(b, t\), padded with 0, or ragged"),
        (pieces_of_words, r"must give integers \(b, t\)"),
        (in_python, r"runs Python"),
        (with_a_loose_table, r"tables that it does not hold"),
        (ByteTokenizer(2), r"ids from 0 to 257, .* give its Embedding an `input_dim` of 258"),
    ):
        with pytest.raises(ValueError, match=error):
            export.to_saved_model(lookup(257), tmp_path / "m", tokenizer=tokenizer)
    assert not list(tmp_path.iterdir())


@needs_tensorflow_text
def test_a_tokenizer_of_other_ops_says_what_to_import(tmp_path):
    import tensorflow_text

    def tokenizer(text):
        return tensorflow_text.FastWordpieceTokenizer(PIECES).tokenize(text)

    with pytest.raises(ValueError, match=r"ops that TensorFlow lacks: \['FastWordpiece.*`needs`"):
        export.to_saved_model(lookup(len(PIECES)), tmp_path / "m", tokenizer=tokenizer)
    tokenizer.needs = ["tensorflow_text"]
    export.to_saved_model(lookup(len(PIECES)), tmp_path / "m", tokenizer=tokenizer)
    assert export.describe(tmp_path / "m")["needs"] == ["tensorflow_text"]


def test_models_of_anything_but_ids_are_refused(tmp_path):
    x, mask = keras.Input((None,), dtype="int32"), keras.Input((None,), dtype="int32")
    y = keras.layers.Embedding(257, 4)(x)
    steps = keras.Input((None, 3))
    for model in (
        lookup(257, dtype="float32"),
        keras.Model(steps, keras.layers.Dense(2)(steps)),
        keras.Model([x, mask], y * keras.ops.cast(mask[..., None], "float32")),
    ):
        with pytest.raises(ValueError, match=r"must have one input of ids, .* Received inputs:"):
            export.to_saved_model(model, tmp_path / "m", tokenizer=ByteTokenizer())


def test_a_file_with_other_ids_than_the_tokenizer_is_not_kept(tmp_path):
    class TwoFaced(ByteTokenizer):
        def __call__(self, text):
            self.offset = 1 if keras.ops.is_tensor(text) and hasattr(text, "numpy") else 2
            return super().__call__(text)

    with pytest.raises(ValueError, match=r"computes something else.*serve_text"):
        export.to_saved_model(lookup(258), tmp_path / "m", tokenizer=TwoFaced())
    assert not list(tmp_path.iterdir())


def test_arguments_out_of_range_are_refused():
    for make, error in (
        (lambda: ByteTokenizer(0), r"`offset` must be at least 1"),
        (lambda: ByteTokenizer(max_length=0), r"`max_length` must be more than 0, or None"),
    ):
        with pytest.raises(ValueError, match=error):
            make()


@needs_tensorflow_text
def test_vocabularies_without_the_special_pieces_are_refused():
    for vocabulary, options in (
        (PIECES[1:], {}),
        (["[PAD]", "a"], {}),
        ([*PIECES, "a"], {}),
        (PIECES, {"start": "[BEGIN]"}),
        (["[UNK]", "[PAD]"], {}),
    ):
        with pytest.raises(ValueError, match=r"`vocabulary` must hold \['\[PAD\]', '\[UNK\]'"):
            WordPieceTokenizer(vocabulary, **options)
    with pytest.raises(ValueError, match=r"`max_length` must be more than 2"):
        WordPieceTokenizer(PIECES, start="[CLS]", end="[SEP]", max_length=2)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_text", None)
    with pytest.raises(ImportError, match="tensorflow_text: pip install tensorflow-text"):
        WordPieceTokenizer(PIECES)
