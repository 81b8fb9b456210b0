"""Another attention in models of KerasHub: equal with softmax, and they generate with a state."""

import itertools
from unittest import mock

import keras
import numpy as np
import pytest
from converted import EXACT, SOFTMAX, kinds, with_random_weights
from support import BACKEND, assert_close
from variants import inputs

from keras_cosattn import (
    LinearAttention,
    LSHAttention,
    SoftmaxAttention,
    Streaming,
    WindowedLinearAttention,
    generate,
)
from keras_cosattn.convert import attention_errors, replace_attention, transfer
from keras_cosattn.export import to_tflite
from keras_cosattn.export.run_on_device import Device

CAUSAL = {"vocabulary_size": 50, "num_layers": 2, "hidden_dim": 16, "intermediate_dim": 20}
GROUPED = {**CAUSAL, "num_query_heads": 4, "num_key_value_heads": 2}
PLAIN = {**CAUSAL, "num_heads": 2, "max_sequence_length": 32}
WINDOWS = {"use_sliding_window_attention": True, "sliding_window_size": 4}
OUTPUT_NORMS = {"use_post_ffw_norm": True, "use_post_attention_norm": True}
BACKBONES = {
    "Bert": PLAIN,
    "Roberta": PLAIN,
    "DistilBert": PLAIN,
    "GPT2": PLAIN,
    "Llama": {**GROUPED, "rope_max_wavelength": 5000},
    "Llama3": {
        **GROUPED, "rope_max_wavelength": 300, "rope_frequency_adjustment_factor": 4.0,
        "rope_low_freq_factor": 0.5, "rope_high_freq_factor": 2.0,
        "rope_pretraining_sequence_length": 12,
    },
    "Mistral": {**GROUPED, "sliding_window": 4, "rope_scaling_factor": 2.0},
    # With a fused kernel, as on JAX and PyTorch, the Qwen of KerasHub 0.32 leaves its window out.
    "Qwen": {
        **GROUPED,
        "use_sliding_window_attention": BACKEND == "tensorflow",
        "sliding_window_size": 4,
    },
    "Qwen3": {
        **GROUPED, "head_dim": 6, "rope_max_wavelength": 300, "rope_scaling_factor": 2.0,
        "sliding_window_size": 4 if BACKEND == "tensorflow" else None,
    },
    "Gemma": {**GROUPED, "intermediate_dim": 40, "head_dim": 6},
    "Gemma2": {
        **GROUPED, **WINDOWS, **OUTPUT_NORMS, "intermediate_dim": 40, "head_dim": 6,
        "attention_logit_soft_cap": 2.0, "final_logit_soft_cap": 50.0,
    },
    "Gemma3": {  # the sixth layer sees all
        **GROUPED, **WINDOWS, **OUTPUT_NORMS, "num_layers": 6, "head_dim": 6, "image_size": 8,
        "global_rope_scaling_factor": 8.0,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def keras_hub():
    return pytest.importorskip("keras_hub", reason="needs keras-hub, the extra `works-with`")


def backbone(keras_hub, name, spread=0.3, **more):
    cls = getattr(keras_hub.models, f"{class_name(name)}Backbone")
    return with_random_weights(cls(**{**BACKBONES[name], **more}), spread)


def class_name(name):
    """KerasHub has Gemma 1 and 2 in one class."""
    return "Gemma" if name == "Gemma2" else name


def tokens(rng, name, lengths=(9, 6)):
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    found = {"token_ids": rng.integers(1, 50, mask.shape), "padding_mask": mask.astype("int32")}
    if name == "Bert":
        found["segment_ids"] = np.zeros(mask.shape, "int32")
    return found, mask


def sequence(outputs):
    return outputs["sequence_output"] if isinstance(outputs, dict) else outputs


def softmax_equal_to(model, name, rng):
    """The model with our softmax, after a comparison of the outputs."""
    x, mask = tokens(rng, name)
    found = replace_attention(model, SOFTMAX)
    expected, y = (keras.ops.convert_to_numpy(sequence(m(x))) for m in (model, found))
    assert_close(y[mask], expected[mask], EXACT)
    return found


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_of_keras_hub_is_equal_with_softmax(name, keras_hub, rng):
    found = softmax_equal_to(backbone(keras_hub, name), name, rng)
    assert kinds(found) == {"self_attention": "SoftmaxAttention"}


def test_a_vision_encoder_of_keras_hub_is_equal_with_softmax(keras_hub, rng):
    encoder = keras_hub.src.models.vit.vit_layers.ViTEncoder(2, 2, 16, 20)
    x = keras.Input((None, 16))
    model = with_random_weights(keras.Model(x, encoder(x)))
    found, data = replace_attention(model, SOFTMAX), inputs(rng, 2, 9, 16)
    assert_close(found(data), model(data), EXACT)
    linear = replace_attention(found, LinearAttention(1, 1))
    assert kinds(linear) == {"self_attention": "LinearAttention"}
    encoder.encoder_layers[0].mha._query_dense.trainable = encoder.layer_norm.trainable = False
    trained = len(model.trainable_weights)
    assert len(replace_attention(model, LinearAttention(1, 1)).trainable_weights) == trained
    encoder.trainable = False
    assert not replace_attention(model, LinearAttention(1, 1)).trainable_weights


@pytest.mark.parametrize("name", ["Gemma2", "Gemma3"])
def test_another_divisor_of_the_scores_goes_into_the_weights(name, keras_hub, rng):
    model = backbone(keras_hub, name)
    for block in model.transformer_layers:  # which do not hand it on in KerasHub 0.32
        block.attention.query_head_dim_normalize = False
    softmax_equal_to(model, name, rng)


def test_norms_of_queries_and_keys_are_kept(keras_hub):
    model = backbone(keras_hub, "Qwen3")
    found = replace_attention(model, LinearAttention(1, 1))
    for old in model.transformer_layers:
        theirs, ours = old._self_attention_layer, found.get_layer(old.name).self_attention
        for part in ("query", "key"):
            expected = getattr(theirs, f"_{part}_dense_layer_norm").scale
            assert_close(getattr(ours, f"{part}_norm").scale, expected, 0)
        assert ours.query_key_norm_epsilon == theirs.layer_norm_epsilon
    message = "'self_attention' normalises its queries and keys .* LSHAttention cannot do"
    with pytest.raises(ValueError, match=message):
        replace_attention(model, LSHAttention(1, 1))


@pytest.mark.parametrize("name", ["GPT2", "Llama", "Qwen3"])
def test_a_causal_model_of_keras_hub_streams_and_loads(name, keras_hub, rng, tmp_path):
    hybrid = replace_attention(
        backbone(keras_hub, name),
        lambda old: LinearAttention(
            old.num_heads, old.key_dim, num_key_value_heads=old.num_key_value_heads,
            use_bias=old.use_bias, position=old.position,
            use_query_key_norm=old.use_query_key_norm,
        ),
    )  # fmt: skip
    x, _ = tokens(rng, name, lengths=(9, 9))
    whole, stream = keras.ops.convert_to_numpy(hybrid(x)), Streaming(hybrid)
    state, pieces = stream.initial_state(2), []
    for start, end in ((0, 4), (4, 5), (5, 9)):
        y, state = stream({key: a[:, start:end] for key, a in x.items()}, state)
        pieces.append(keras.ops.convert_to_numpy(y))
    assert_close(np.concatenate(pieces, axis=1), whole, EXACT)
    hybrid.save(tmp_path / "m.keras")
    assert_close(keras.models.load_model(tmp_path / "m.keras")(x), whole, 0)


def language_model(keras_hub, name):
    cls = getattr(keras_hub.models, f"{class_name(name)}CausalLM")
    return cls(backbone=backbone(keras_hub, name, spread=1.5), preprocessor=None)


def generated(model, sampler="greedy", stop=None):
    """Tokens after prompts of 5 and 3."""
    given = np.arange(12) < np.array([5, 3])[:, None]
    tokens = np.random.default_rng(3).integers(1, 50, given.shape) * given
    model.compile(sampler=sampler)
    x = {"token_ids": tokens, "padding_mask": given}
    if type(model).__name__ == "Gemma3CausalLM":
        x["images"] = np.zeros((2, 0, 8, 8, 3))  # none, which KerasHub 0.32 wants to hear
    return model.generate(x, stop_token_ids=stop)


@pytest.mark.parametrize("name", ["GPT2", "Llama", "Qwen3", "Gemma2", "Gemma3"])
@pytest.mark.sample(3)
def test_a_language_model_of_keras_hub_generates_with_a_state(name, keras_hub):
    model = language_model(keras_hub, name)
    found = replace_attention(model, SOFTMAX)
    assert found.count_params() == model.count_params()
    expected = generated(model)["token_ids"]
    np.testing.assert_array_equal(generated(found)["token_ids"], expected)
    stop = [int(expected[0, 7])]
    for key, y in generated(found, stop=stop).items():
        np.testing.assert_array_equal(y, generated(model, stop=stop)[key])


def test_the_sampler_stays(keras_hub, tmp_path):
    model = language_model(keras_hub, "Gemma2")
    for given in (None, keras_hub.samplers.TopPSampler(p=0.3)):
        if given is not None:
            model.compile(sampler=given)
        found = replace_attention(model, SOFTMAX)
        assert found.sampler is model.sampler
        found.compile(jit_compile=False)
        found.save(tmp_path / "m.keras")
        loaded = keras.models.load_model(tmp_path / "m.keras")
        assert loaded.sampler.get_config() == model.sampler.get_config()
        assert type(loaded.sampler) is type(model.sampler)
        found.compile(sampler="random")
        assert isinstance(found.sampler, keras_hub.samplers.RandomSampler)


def test_a_language_model_of_keras_hub_is_compiled_as_before(keras_hub):
    model = language_model(keras_hub, "Llama")
    optimizer = keras.optimizers.SGD(0.5)
    model.compile(optimizer, "mse", run_eagerly=True, sampler="greedy")
    found = replace_attention(model, SOFTMAX)
    assert type(found.optimizer) is keras.optimizers.SGD
    assert found.optimizer is not optimizer
    assert (found.loss, found.run_eagerly) == ("mse", True)
    assert not found.backbone.compiled  # an optimizer there would double the file
    never = type(model)(backbone=model.backbone, preprocessor=None, compile=False)
    assert not replace_attention(never, SOFTMAX).compiled


@pytest.mark.parametrize(("name", "where"), [("Llama", "transformer_layer_1"), ("Bert", None)])
def test_a_frozen_backbone_of_keras_hub_stays_frozen(name, where, keras_hub):
    model = backbone(keras_hub, name)
    model.trainable = False
    found = replace_attention(model, LinearAttention(1, 1), where)
    assert found.weights
    assert not found.trainable_weights


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Gemma3", "Bert"])
def test_single_weights_of_keras_hub_stay_frozen(name, keras_hub):
    model = backbone(keras_hub, name)
    for weight in model.weights[::3]:
        weight.trainable = False
    found = replace_attention(model, SOFTMAX)
    assert len(found.trainable_weights) == len(model.trainable_weights)


@pytest.mark.parametrize("name", ["Llama", "Bert"])
def test_a_layer_of_keras_hub_that_stays_as_it_was_has_no_error(name, keras_hub, rng):
    model, (x, _) = backbone(keras_hub, name), tokens(rng, name)
    found = replace_attention(model, LinearAttention(1, 1), where="transformer_layer_1")
    assert list(attention_errors(model, found, x)) == ["transformer_layer_1/self_attention"]
    with pytest.raises(ValueError, match="there is nothing to learn"):
        attention_errors(model, replace_attention(model, SoftmaxAttention(1, 1)), x)


def test_gemma_3_stops_at_the_end_of_its_turn(keras_hub, monkeypatch):
    preprocessor = mock.Mock(spec=keras_hub.models.Gemma3CausalLMPreprocessor)
    preprocessor.tokenizer = mock.Mock(end_token_id=1, token_to_id={"<end_of_turn>": 7}.get)
    stops = []
    monkeypatch.setattr(
        keras_hub.models.CausalLM, "generate", lambda *given: stops.append(given[3])
    )
    converted = replace_attention(language_model(keras_hub, "Gemma3"), SOFTMAX)
    converted.preprocessor = preprocessor
    converted.generate("a")
    converted.generate("a", stop_token_ids=None)
    assert stops == [[1, 7], None]


def test_a_language_model_of_keras_hub_with_linear_attention(keras_hub, tmp_path):
    found = replace_attention(language_model(keras_hub, "GPT2"), SOFTMAX)
    linear = replace_attention(found, LinearAttention(1, 1))  # a converted model again
    tokens = generated(linear)["token_ids"]
    for row, start in zip(tokens, (5, 3), strict=True):
        for i in range(start, 12):  # without any state
            x = {"token_ids": row[None, :i], "padding_mask": np.ones((1, i), "int32")}
            assert row[i] == np.argmax(keras.ops.convert_to_numpy(linear(x))[0, -1])
    stream = Streaming(linear.backbone)
    np.testing.assert_array_equal(generate(stream, tokens[:1, :5], 7), tokens[:1, 5:])
    top = generate(stream, tokens[:1, :5], 7, sampler=keras_hub.samplers.TopKSampler(1, seed=0))
    np.testing.assert_array_equal(top, tokens[:1, 5:])
    assert generated(linear, "beam")["token_ids"].shape == (2, 12)
    linear.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(generated(loaded)["token_ids"], tokens)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Gemma", {"use_post_ffw_norm": True}, "it normalises the output of one of its parts"),
        ("Gemma3", {"use_bidirectional_attention": True}, "it attends to later steps"),
        ("Gemma3", {"dtype": "mixed_float16"}, "in float16 it cuts off numbers"),
    ],
)
def test_what_a_keras_hub_model_has_beyond_our_blocks_is_named(name, options, message, keras_hub):
    model = backbone(keras_hub, name, num_layers=1, **options)
    with pytest.raises(ValueError, match=f"'decoder_block_0' of .* {message}"):
        replace_attention(model, SOFTMAX)


def test_images_in_a_gemma_3_of_keras_hub_are_refused(keras_hub):
    cls = keras_hub.src.models.gemma3.gemma3_decoder_block.Gemma3DecoderBlock
    x, images = keras.Input((None, 16)), keras.Input((None,), dtype="int32")
    block = cls(16, 20, 6, 4, 2, name="block")
    model = keras.Model([x, images], block(x, vision_mask=images))
    with pytest.raises(ValueError, match=r"'block' of .* an image \(`vision_mask`\)"):
        replace_attention(model, SOFTMAX)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="exports need TensorFlow")
@pytest.mark.parametrize("name", ["Bert", "Llama"])
def test_a_model_of_keras_hub_from_conversion_to_a_file(name, keras_hub, rng, tmp_path):
    model, attention = backbone(keras_hub, name), LinearAttention(1, 1)
    if name == "Llama":
        model = keras_hub.models.LlamaCausalLM(model)
        attention = WindowedLinearAttention(1, 1, window=4)
    found, (x, _) = replace_attention(model, attention), tokens(rng, name, [8] * 10)
    before = attention_errors(model, found, x)
    optimizer = keras.optimizers.Adam(1e-2)
    transfer(
        model, found, x, train="attention", optimizer=optimizer, epochs=10, batch_size=10, verbose=0
    )
    for layer, error in attention_errors(model, found, x).items():
        assert error < before[layer]
    path, causal = tmp_path / "m.tflite", name == "Llama"
    to_tflite(found.backbone if causal else found, path, sample=x)
    device = Device(path)
    if causal:
        prompt = x["token_ids"][:1, :5]
        expected = generate(Streaming(found.backbone), prompt, 7)
        assert list(itertools.islice(device.generate(prompt[0]), 7)) == expected[0].tolist()
    else:
        one = {key: a[:1] for key, a in x.items()}
        assert_close(device.whole(one)["sequence_output"], found(one)["sequence_output"], EXACT)
