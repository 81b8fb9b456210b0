"""The report of a conversion says what its formulas say, of a language model and of an encoder."""

import keras
import numpy as np
import pytest
from variants import inputs

from keras_cosattn import LinearAttention, SoftmaxAttention, Streaming, TransformerDecoder
from keras_cosattn.convert import (
    Passkey,
    attention_errors,
    passkey_recall,
    perplexity,
    replace_attention,
    report,
)

WORDS, WIDTH = 11, 8


def language_model():
    keras.utils.set_random_seed(0)
    ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(WORDS, WIDTH)(ids)
    x = TransformerDecoder(12, attention=SoftmaxAttention(2, 3), name="block")(x)
    return keras.Model(ids, keras.layers.Dense(WORDS)(x))


@pytest.fixture(scope="module")
def pair():
    model = language_model()
    return model, replace_attention(model, LinearAttention(1, 1))


@pytest.fixture
def text(rng):
    tokens = rng.integers(0, WORDS, (3, 14)).astype("int32")
    return tokens[:, :-1], tokens[:, 1:]


def textbook_perplexity(model, x, y, counts):
    logits = keras.ops.convert_to_numpy(model(x)).astype("float64")
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    p = np.take_along_axis(p, y[..., None], axis=-1)[..., 0]
    return np.exp(-np.log(p[counts]).mean())


def test_perplexity_is_that_of_the_formula(pair, text, rng):
    x, y = text
    mask = rng.random(y.shape) < 0.6
    for counts in (None, mask):
        expected = textbook_perplexity(pair[0], x, y, mask if counts is not None else mask >= 0)
        found = perplexity(pair[0], x, y, mask=counts, batch_size=2)
        assert found == pytest.approx(expected, rel=1e-5)
    ignored = np.where(mask, y, -100)
    assert perplexity(pair[0], x, ignored, mask=mask) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"No token of `y` counts. Received: y of shape \(3, 13\)"):
        perplexity(pair[0], x, y, mask=np.zeros(y.shape))


def test_perplexity_reads_inputs_in_their_own_dtype(rng, mixed_bfloat16):
    x = keras.Input((None, 1))
    z = keras.layers.Normalization(mean=1000.0, variance=1.0, dtype="float32")(x)
    model = keras.Model(x, keras.layers.Dense(3, dtype="float32")(z))
    x, y = 1000 + inputs(rng, 2, 5, 1), rng.integers(0, 3, (2, 5))
    expected = textbook_perplexity(model, x, y, y >= 0)
    assert perplexity(model, x, y) == pytest.approx(expected, rel=1e-5)


TASK = Passkey(filler=[1, 2], before=[3], after=[4], question=[5, 3], keys=[[6, 7], [8, 9]])


def test_a_prompt_holds_its_key_once_before_the_answer():
    prompts = TASK.prompts(15, 40, seed=1)
    places = set()
    for prompt in prompts.tolist():
        assert prompt[-4:-2] == [5, 3]
        key = prompt[-2:]
        assert key in ([6, 7], [8, 9])
        (place,) = (i for i in range(11) if prompt[i] == 3)
        assert prompt[place : place + 4] == [3, *key, 4]
        assert prompt[:place] + prompt[place + 4 : 11] == [1, 2, 1, 2, 1, 2, 1]
        places.add(place)
    assert places == set(range(8))
    assert len({tuple(prompt[-2:]) for prompt in prompts.tolist()}) == 2
    assert TASK.prompts(8, 1).tolist() in ([[3, 6, 7, 4, 5, 3, 6, 7]], [[3, 8, 9, 4, 5, 3, 8, 9]])


class Knows(keras.layers.Layer):
    """Logits that name key token after key token, of one key."""

    def call(self, ids):
        after = {3: 6, 6: 7}
        table = np.array([after.get(i, 0) for i in range(WORDS)], "int32")
        return keras.ops.one_hot(keras.ops.take(table, ids), WORDS)


def test_recall_is_the_share_of_whole_keys():
    ids = keras.Input((None,), dtype="int32")
    model = keras.Model(ids, Knows()(ids))
    answers = TASK.prompts(20, 9, seed=2)[:, -2:]
    share = np.mean([row.tolist() == [6, 7] for row in answers])
    assert 0 < share < 1
    assert passkey_recall(model, TASK, 20, count=9, seed=2) == pytest.approx(share)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Passkey([1], [2], [3], [6, 7]), r"`keys` must be .* Received: shape \(2,\)"),
        (lambda: Passkey([1], [2], [3], [[0.5]]), r"`keys` must be integers .* dtype float64"),
        (lambda: Passkey([], [2], [3], [[6]]), r"`filler` must have at least one token"),
        (lambda: TASK.prompts(10, 0), r"`count` must be at least 1. Received: count=0"),
        (lambda: TASK.prompts(7, 1), r"A prompt needs at least 8 tokens.* Received: length=7"),
    ],
)
def test_a_task_that_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_report_of_a_language_model(pair, text):
    x, y = text
    model, converted = pair
    errors = attention_errors(model, converted, x)
    found = report(
        model, converted, x, y, errors_before=dict.fromkeys(errors, 2.0), passkey=TASK,
        passkey_lengths=(9, 20), state_steps=(40, 1000), cache_steps=(30, 40),
    )  # fmt: skip
    assert found.errors == pytest.approx(errors)
    scores = perplexity(model, x, y), perplexity(converted, x, y)
    assert found.scores == pytest.approx(scores)
    assert found.retained == pytest.approx(scores[0] / scores[1])
    assert list(found.passkey) == [9, 20]
    constant = Streaming(converted).state_bytes
    for n, (cache, state) in found.state_bytes.items():
        stream = Streaming(replace_attention(model, SoftmaxAttention(1, 1, max_length=n)))
        assert (cache, state) == (stream.state_bytes, constant)
    assert list(found.steps_per_second) == [30, 40]
    assert all(speed > 0 for pair in found.steps_per_second.values() for speed in pair)
    said = str(found)
    parts = "block/self_attention", "2.0000", "perplexity", "passkey, 20", "state at 1,000"
    for part in (*parts, "cache of 40"):
        assert part in said


def test_a_report_of_an_encoder_has_a_score_and_no_stream(rng):
    x = keras.Input((None, 6))
    attended = keras.layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    model = keras.Model(x, attended)
    found = report(
        model, replace_attention(model, LinearAttention(1, 1)), inputs(rng, 2, 9, 6),
        score=lambda m: 0.8 if m is model else 0.6,
    )  # fmt: skip
    assert (found.scores, found.retained) == ((0.8, 0.6), pytest.approx(0.75))
    assert not found.state_bytes
    assert not found.steps_per_second
    assert "cannot stream" in found.no_stream
    assert "no stream: " in str(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": lambda m: 1.0}, "Give `score` or `y`, not both"),
        ({"cache_steps": ()}, r"`cache_steps` needs numbers of at least .*cache_steps=\(\)"),
        ({"cache_steps": (8,)}, r"`cache_steps` needs numbers of at least .*cache_steps=\(8,\)"),
        ({"errors_before": {"a": 1.0}}, r"`errors_before` must be .*Received: \['a'\]"),
        ({"mask": np.ones((3, 2))}, r"must have the same examples .* mask of shape \(3, 2\)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, message, pair, text):
    with pytest.raises(ValueError, match=message):
        report(*pair, *text, **options)
