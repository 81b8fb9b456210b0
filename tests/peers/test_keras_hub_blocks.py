"""The blocks against those of KerasHub: weights, outputs, masks, caches, samplers, behaviour.

KerasHub ships no tests in its packages, so the second half tests what its documentation says.
"""

import json

import keras
import numpy as np
import pytest
from support import assert_close, compiled

from keras_cosattn import (
    CosFormerAttention,
    LinearAttention,
    SoftmaxAttention,
    TransformerDecoder,
    TransformerEncoder,
)

pytestmark = pytest.mark.peers
EXACT = 1e-5
B, STEPS, ENCODED, WIDTH, HEADS, VOCABULARY = 2, 6, 5, 8, 2, 11
NORMALIZE_FIRST = pytest.mark.parametrize("normalize_first", [False, True])


def pair(rng, name, *shapes, **arguments):
    """A block of KerasHub and ours, with its random weights, built for `shapes`."""
    import keras_hub

    ours = {"TransformerEncoder": TransformerEncoder, "TransformerDecoder": TransformerDecoder}
    blocks = [cls(9, HEADS, **arguments) for cls in (getattr(keras_hub.layers, name), ours[name])]
    for block in blocks:
        block.build(*shapes)
    weights = [0.5 * rng.standard_normal(w.shape) for w in blocks[0].get_weights()]
    for block in blocks:
        block.set_weights(weights)
    return blocks


def sequences(rng):
    x = rng.standard_normal((B, STEPS, WIDTH)).astype("float32")
    y = rng.standard_normal((B, ENCODED, 7)).astype("float32")
    x_mask = np.arange(STEPS) < [[STEPS], [4]]
    y_mask = np.arange(ENCODED) >= [[0], [3]]
    return x, y, x_mask, y_mask


@NORMALIZE_FIRST
@pytest.mark.parametrize("padded", ["no", "explicit", "implicit"])
def test_an_encoder_with_the_weights_of_keras_hub(padded, normalize_first, rng):
    x, _, mask, _ = sequences(rng)
    blocks = pair(rng, "TransformerEncoder", x.shape, normalize_first=normalize_first)
    x = np.where(mask[..., None], x, np.float32(0)) if padded == "implicit" else x
    valid = np.ones_like(mask) if padded == "no" else mask

    def call(block, **arguments):
        # Keras's attention takes the implicit mask off its input, so each call has its own.
        inputs = keras.layers.Masking()(x) if padded == "implicit" else x
        masks = {"padding_mask": mask} if padded == "explicit" else {}
        return block(inputs, **masks, **arguments)

    theirs, ours = (np.asarray(call(block)) for block in blocks)
    assert_close(ours[valid], theirs[valid], EXACT)
    (_, theirs), (_, ours) = (call(block, return_attention_scores=True) for block in blocks)
    rows = np.broadcast_to(valid[:, None], (B, HEADS, STEPS))
    assert_close(np.asarray(ours)[rows], np.asarray(theirs)[rows], EXACT)


@NORMALIZE_FIRST
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_a_decoder_with_the_weights_of_keras_hub(padded, cross, normalize_first, rng):
    x, y, x_mask, y_mask = sequences(rng)
    inputs = (x, y) if cross else (x,)
    shapes = [value.shape for value in inputs]
    blocks = pair(rng, "TransformerDecoder", *shapes, normalize_first=normalize_first)
    masks = {"decoder_padding_mask": x_mask} if padded else {}
    masks |= {"encoder_padding_mask": y_mask} if padded and cross else {}
    valid = x_mask if padded else np.ones_like(x_mask)
    for causal in (True, False):
        theirs, ours = (
            np.asarray(block(*inputs, use_causal_mask=causal, **masks)) for block in blocks
        )
        assert_close(ours[valid], theirs[valid], EXACT)


def test_masks_of_pairs(rng):
    x, y, *_ = sequences(rng)
    blocks = pair(rng, "TransformerDecoder", x.shape, y.shape)
    own = rng.random((B, STEPS, STEPS)) < 0.7
    own |= np.eye(STEPS, dtype=bool)
    other = rng.random((B, STEPS, ENCODED)) < 0.7
    other[..., 0] = True
    theirs, ours = (
        block(x, y, decoder_attention_mask=own, encoder_attention_mask=other) for block in blocks
    )
    assert_close(ours, theirs, EXACT)


@NORMALIZE_FIRST
@pytest.mark.parametrize("cross", [False, True])
def test_caches_are_those_of_keras_hub(cross, normalize_first, rng):
    x, y, _, y_mask = sequences(rng)
    shapes = (x.shape, y.shape) if cross else (x.shape,)
    blocks = pair(rng, "TransformerDecoder", *shapes, normalize_first=normalize_first)
    heads = HEADS, WIDTH // HEADS
    caches = [rng.standard_normal((B, 2, 9, *heads)).astype("float32")]  # what is overwritten
    arguments = {}
    if cross:
        caches.append(np.zeros((B, 2, ENCODED, *heads), "float32"))
        arguments = {"encoder_sequence": y, "encoder_padding_mask": y_mask}
    found = [caches, caches]
    for start, steps in ((0, 3), (3, 1), (4, 1), (2, 3)):
        results = []
        for block, (own, *other) in zip(blocks, found, strict=True):
            if cross:
                arguments["cross_attention_cache"] = other[0]
                arguments["cross_attention_cache_update_index"] = 0 if start == 0 else None
            results.append(
                block(
                    x[:, start : start + steps],
                    self_attention_cache=own,
                    self_attention_cache_update_index=start,
                    **arguments,
                )
            )
        for i, (theirs, ours) in enumerate(zip(*results, strict=True)):
            if i == 2:  # ours has the keys and values of zeros in masked steps
                kept = y_mask[:, None, :, None, None].astype("float32")
                theirs, ours = theirs * kept, ours * kept
            assert_close(ours, theirs, EXACT)
        found = [caches for _, *caches in results]


def test_a_cache_that_is_not_updated(rng):
    x, *_ = sequences(rng)
    blocks = pair(rng, "TransformerDecoder", x.shape)
    cache = rng.standard_normal((B, 2, 9, HEADS, WIDTH // HEADS)).astype("float32")
    mask = rng.random((B, 9)) < 0.8
    for arguments in ({}, {"use_causal_mask": False, "decoder_padding_mask": mask}):
        theirs, ours = (block(x, self_attention_cache=cache, **arguments) for block in blocks)
        assert_close(ours[0], theirs[0], EXACT)
        assert_close(ours[1], theirs[1], 0)


class LanguageModel:
    """An embedding, a decoder, logits; and `next` of KerasHub's samplers."""

    def __init__(self, attention, **arguments):
        self.embedding = keras.layers.Embedding(VOCABULARY, WIDTH)
        self.block = TransformerDecoder(9, attention=attention, **arguments)
        self.logits = keras.layers.Dense(VOCABULARY, kernel_initializer="random_normal")
        self(np.zeros((B, STEPS), "int32"))

    def __call__(self, tokens):
        return self.logits(self.block(self.embedding(tokens)))

    def next(self, prompt, cache, index):
        token = keras.ops.slice(prompt, (0, index - 1), (keras.ops.shape(prompt)[0], 1))
        hidden, cache = self.block(
            self.embedding(token),
            self_attention_cache=cache,
            self_attention_cache_update_index=index - 1,
        )
        return self.logits(hidden)[:, 0], hidden[:, 0], cache

    def next_without_cache(self, prompt, cache, index):
        logits = self(prompt)
        size = keras.ops.shape(prompt)[0], 1, VOCABULARY
        return keras.ops.slice(logits, (0, index - 1, 0), size)[:, 0], None, cache


SAMPLED = {
    "horizon": (lambda: CosFormerAttention(HEADS, 4, horizon=4), None),
    "linear": (lambda: LinearAttention(HEADS, 4), None),
    "softmax_state": (lambda: SoftmaxAttention(HEADS, 4, max_length=STEPS), None),
    "softmax": (lambda: SoftmaxAttention(HEADS, 4), STEPS),
}


@pytest.mark.parametrize(
    ("sampler", "options", "in_graph"),
    [
        ("GreedySampler", {}, False),
        ("GreedySampler", {}, True),
        ("BeamSampler", {"num_beams": 3}, True),
        ("TopKSampler", {"k": 3, "seed": 1}, False),  # XLA draws other random numbers
    ],
)
@pytest.mark.parametrize("kind", SAMPLED)
def test_samplers_of_keras_hub_take_the_caches(kind, sampler, options, in_graph, rng):
    import keras_hub

    attention, max_length = SAMPLED[kind]
    model = LanguageModel(attention())
    mask = np.arange(STEPS) < [[1], [3]]
    prompt = np.where(mask, rng.integers(0, VOCABULARY, (B, STEPS)), 0).astype("int32")

    def sample(prompt, step, cache):
        chosen = getattr(keras_hub.samplers, sampler)(**options)
        return chosen(step, prompt=prompt, cache=cache, index=1, mask=mask)

    def sample_with_cache(prompt):
        return sample(prompt, model.next, model.block.initial_self_attention_cache(B, max_length))

    run = compiled(sample_with_cache) if in_graph else sample_with_cache
    prompt = keras.ops.convert_to_tensor(prompt)
    assert np.array_equal(run(prompt), sample(prompt, model.next_without_cache, None))


@pytest.mark.parametrize("name", ["TransformerEncoder", "TransformerDecoder"])
def test_the_config_of_a_block_of_keras_hub(name, rng):
    x, y, *_ = sequences(rng)
    inputs = (x, y) if name == "TransformerDecoder" else (x,)
    theirs, ours = pair(rng, name, *(value.shape for value in inputs), normalize_first=True)
    again = type(ours).from_config(theirs.get_config())
    assert again.get_config() == {**ours.get_config(), "name": again.name}
    again(*inputs)
    again.set_weights(theirs.get_weights())
    assert_close(again(*inputs), theirs(*inputs), EXACT)


BEHAVIOUR = pytest.mark.parametrize(
    ("cls", "names", "weights", "seeds"),
    [
        (TransformerEncoder, ("inputs",), 16, 3),
        (TransformerDecoder, ("decoder_sequence",), 16, 3),
        (TransformerDecoder, ("decoder_sequence", "encoder_sequence"), 26, 5),
    ],
)


def make(cls, **arguments):
    return cls(4, HEADS, dropout=0.1, kernel_initializer="HeNormal", **arguments)


@BEHAVIOUR
def test_counts_shapes_and_a_training_step(cls, names, weights, seeds, rng):
    data = {name: rng.random((2, 4, 6)).astype("float32") for name in names}
    symbols = {name: keras.Input((4, 6), name=name) for name in names}
    built, called = (make(cls) for _ in range(2))
    built.build(**{f"{name}_shape": value.shape for name, value in data.items()})
    outputs = called(**symbols)
    for block in (built, called):
        assert block.built
        assert len(block.trainable_weights) == weights
        assert len(block.non_trainable_weights) == 0
        assert len(block.non_trainable_variables) == seeds
    assert outputs.shape == (None, 4, 6)
    model = keras.Model(symbols, outputs)
    assert model(data).shape == (2, 4, 6)
    model.compile("sgd", "mse", jit_compile=True)
    assert np.isfinite(model.fit(data, data[names[0]], verbose=0).history["loss"]).all()


@BEHAVIOUR
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_every_sublayer_has_the_dtype_policy(cls, names, weights, seeds, policy, rng):
    data = {name: rng.random((2, 4, 6)).astype("float32") for name in names}
    policy, block = keras.DTypePolicy(policy), make(cls, dtype=policy)
    outputs = block(**data)
    assert keras.backend.standardize_dtype(outputs.dtype) == policy.compute_dtype
    assert block.compute_output_spec(**data).dtype == policy.compute_dtype
    assert {keras.backend.standardize_dtype(w.dtype) for w in block.weights} == {
        policy.variable_dtype
    }
    assert {layer.dtype_policy.name for layer in block._flatten_layers()} == {policy.name}


@BEHAVIOUR
def test_configs_are_plain_and_complete(cls, names, weights, seeds):
    block = make(cls)
    config = block.get_config()
    again = cls.from_config(config)
    text = json.dumps(config, sort_keys=True)
    assert json.dumps(again.get_config(), sort_keys=True) == text
    assert set(dir(block)) == set(dir(again))
    saved = json.loads(json.dumps(keras.saving.serialize_keras_object(block)))
    again = keras.saving.deserialize_keras_object(saved)
    assert json.dumps(again.get_config(), sort_keys=True) == text


@BEHAVIOUR
def test_the_mask_of_the_first_input_goes_on(cls, names, weights, seeds, rng):
    x = rng.random((1, 4, 6)).astype("float32")
    x[:, 2:] = 0
    data = {name: rng.random((1, 4, 6)).astype("float32") for name in names}
    data[names[0]] = keras.layers.Masking()(x)
    mask = keras.ops.convert_to_numpy(make(cls)(**data)._keras_mask)
    assert mask.tolist() == [[True, True, False, False]]


def test_calls_that_do_not_fit_to_the_first_one(rng):
    x = rng.random((2, 4, 6)).astype("float32")
    with_encoder, without = (TransformerDecoder(4, HEADS) for _ in range(2))
    with_encoder(x, x)
    without(x)
    cache = np.zeros((2, 2, 4, HEADS, 3), "float32")
    for block, inputs, arguments in [
        (with_encoder, (x,), {}),
        (without, (x, x), {}),
        (with_encoder, (x, x), {"self_attention_cache": cache}),
        (with_encoder, (x, x), {"cross_attention_cache": cache}),
        (without, (x,), {"self_attention_cache_update_index": 0}),
    ]:
        with pytest.raises(ValueError, match=block.name):
            block(*inputs, **arguments)
    for cls in (TransformerEncoder, TransformerDecoder):
        with pytest.raises(ValueError, match="Invalid"):
            cls(4, HEADS, kernel_initializer="Invalid")


@BEHAVIOUR
def test_dropout_of_nearly_everything_leaves_the_norms(cls, names, weights, seeds, rng):
    data = {name: rng.random((1, 4, 6)).astype("float32") for name in names}
    block = cls(4, HEADS, dropout=0.99999)
    outputs = block(**data, training=True)
    expected = block.feedforward_norm(block.self_attention_norm(data[names[0]]))
    assert_close(outputs, expected, 1e-4)
