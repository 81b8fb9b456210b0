"""Tokens from a stream are those of the whole model, for padded prompts too."""

import keras
import numpy as np
import pytest

from keras_cosattn import LinearAttention, Rotary, Streaming, TransformerDecoder, generate

VOCABULARY = 23


@pytest.fixture(scope="module")
def model():
    ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(VOCABULARY, 8)(ids)
    attention = LinearAttention(2, 4, position=Rotary())
    x = TransformerDecoder(12, attention=attention, normalize_first=True)(x)
    model, rng = keras.Model(ids, keras.layers.Dense(VOCABULARY)(x)), np.random.default_rng(2)
    model.set_weights([rng.standard_normal(w.shape) for w in model.weights])
    model.layers[-1].bias.assign(np.zeros(VOCABULARY))
    return model


@pytest.fixture(scope="module")
def stream(model):
    return Streaming(model)


def logits_of(model, tokens):
    return keras.ops.convert_to_numpy(model(np.array([tokens], "int32")))[0, -1]


def greedy(model, prompt, number):
    tokens = list(prompt)
    for _ in range(number):
        tokens.append(int(np.argmax(logits_of(model, tokens))))
    return tokens[len(prompt) :]


def test_tokens_are_those_of_the_whole_model(model, stream):
    prompt = [[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]]
    found = generate(stream, prompt, 7)
    assert found.tolist() == [greedy(model, row, 7) for row in prompt]
    assert len(np.unique(found)) > 2
    assert generate(stream, prompt, 0).shape == (2, 0)


@pytest.mark.parametrize("mask", [[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 0, 1, 1]])
def test_padding_changes_nothing(mask, model, stream):
    mask, tokens = np.array([mask, [1] * 5], "bool"), np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    found = generate(stream, tokens, 6, prompt_mask=mask)
    assert found.tolist() == [greedy(model, row[m], 6) for row, m in zip(tokens, mask, strict=True)]


def test_an_example_ends_with_a_stop_token(model, stream):
    prompt = np.array([[3, 1, 4], [9, 2, 6]])
    free = generate(stream, prompt, 8)
    stop = int(free[0, 2])
    found = generate(stream, prompt, 8, stop_token_ids=[stop], pad_token_id=VOCABULARY)
    for row, expected in zip(found, free, strict=True):
        ends = np.flatnonzero(expected == stop)
        end = ends[0] + 1 if len(ends) else len(expected)
        assert row[:end].tolist() == expected[:end].tolist()
        assert (row[end:] == VOCABULARY).all()
    one = generate(stream, prompt[:1], 8, stop_token_ids=[stop])
    assert one.shape[1] <= 3  # nothing is computed once all have ended


def test_a_sampler_chooses(model, stream):
    def least(logits):
        return keras.ops.argmin(logits, axis=-1)

    found = generate(stream, [[3, 1, 4]], 3, sampler=least)[0].tolist()
    for i, token in enumerate(found):
        assert token == np.argmin(logits_of(model, [3, 1, 4, *found[:i]]))


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([1, 2], {}, r"integers of shape \(batch, steps\).*\(2,\)"),
        ([[1.0, 2.0]], {}, "must be integers.*float64"),
        ([[1, 2**32 + 1]], {}, "tokens within int32. Received: 1 to 4294967297"),
        ([[1, 2]], {"sampler": "greedy"}, "`sampler` must be a function .*='greedy'"),
        (
            [[1, 2]],
            {"sampler": lambda logits: keras.ops.argmax(logits[:, None], axis=-1)},
            r"`sampler` must return integers of shape \(1,\).* Received: shape \(1, 1\)",
        ),
        ([[1, 2]], {"prompt_mask": [[True]]}, r"shape of the prompt, \(1, 2\).*\(1, 1\)"),
        (
            [[1, 2], [3, 4]],
            {"prompt_mask": [[1, 1], [0, 0]]},
            r"at least one token.*examples \[1\] have none",
        ),
    ],
)
def test_wrong_prompts_are_named(prompt, options, message, stream):
    with pytest.raises(ValueError, match=message):
        generate(stream, prompt, 3, **options)


@pytest.mark.parametrize(
    ("number", "stops", "message"),
    [
        (-1, (), "`max_new_tokens` must be an integer of at least 0.*=-1"),
        (2.5, (), "`max_new_tokens` must be an integer of at least 0.*=2.5"),
        (3, 7, "`stop_token_ids` must be integers in a list.*=7"),
        (3, "5", "`stop_token_ids` must be integers in a list.*='5'"),
    ],
)
def test_wrong_numbers_are_named(number, stops, message, stream):
    with pytest.raises(ValueError, match=message):
        generate(stream, [[1, 2]], number, stop_token_ids=stops)


def test_a_model_of_other_inputs_is_refused():
    a, b = keras.Input((None,), dtype="int32"), keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(5, 4)(a) + keras.layers.Embedding(5, 4)(b)
    stream = Streaming(keras.Model([a, b], keras.layers.Dense(5)(x)))
    with pytest.raises(ValueError, match="must take token ids"):
        generate(stream, [[1, 2]], 3)
