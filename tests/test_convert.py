"""Another attention in a model: equal with softmax, and what cannot be replaced is named."""

import itertools
import pathlib
import subprocess
import sys
from unittest import mock

import keras
import numpy as np
import pytest
from support import BACKEND, assert_close
from variants import inputs

from keras_cosattn import (
    CosFormerAttention,
    LinearAttention,
    LSHAttention,
    Rotary,
    RoutedAttention,
    SoftmaxAttention,
    Streaming,
    TransformerDecoder,
    TransformerEncoder,
    WindowedLinearAttention,
    generate,
)
from keras_cosattn.convert import attention_errors, replace_attention, transfer
from keras_cosattn.export import to_tflite
from keras_cosattn.export.run_on_device import Device
from keras_cosattn.transformer.activations import gelu_approximate

EXACT = 1e-5  # float32 through a few blocks
SAVED = pathlib.Path(__file__).parent / "programs" / "load_and_predict.py"
SOFTMAX = SoftmaxAttention(1, 1, max_length=40)


@keras.saving.register_keras_serializable("test_convert")
class Wrapped(keras.layers.Layer):
    """A layer of a user, with attention inside."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = keras.layers.MultiHeadAttention(2, 4, name="inner")

    def build(self, shape):
        self.inner.build(shape, shape)

    def call(self, x):
        return self.inner(x, x)


def with_random_weights(model, spread=0.3):
    rng = np.random.default_rng(0)
    for w in model.weights:
        if keras.backend.is_float_dtype(w.dtype):
            w.assign(w + spread * rng.standard_normal(w.shape))
    return model


def mixed_model(**options):
    """All that attends without KerasHub, one layer twice, and a model inside the model."""
    x = keras.Input((None, 8))
    twice = keras.layers.MultiHeadAttention(2, 4, name="twice", **options)
    y = twice(x, x, use_causal_mask=True)
    y = twice(y, y, use_causal_mask=True)
    z = keras.Input((None, 8))
    grouped = keras.layers.GroupQueryAttention(4, 4, 2, name="grouped", **options)
    inner = keras.Model(z, grouped(z, z, use_causal_mask=True), name="inner")
    y = TransformerDecoder(12, attention=SoftmaxAttention(2, 3, position=Rotary()), name="block")(
        inner(y) + y
    )
    y = LinearAttention(2, 3, name="linear")(y, y, use_causal_mask=True)
    return with_random_weights(keras.Model(x, keras.layers.Dense(3)(y[:, 1:])))


def kinds(model):
    """The classes of the layers that attend, by the names of the layers."""
    found = {}
    for layer in model._flatten_layers():
        if type(layer).__module__.startswith(
            ("keras_cosattn.attention", "keras.src.layers.attention")
        ):
            found[layer.name] = type(layer).__name__
    return found


def values(model):
    return [keras.ops.convert_to_numpy(w) for w in model.weights]


def test_with_softmax_the_outputs_are_equal(rng):
    model, x = mixed_model(), inputs(rng, 2, 9, 8)
    before = values(model)
    found = replace_attention(model, SOFTMAX, where=["twice", "grouped", "block"])
    assert_close(found(x), model(x), EXACT)
    assert kinds(found) == {
        "twice": "SoftmaxAttention",
        "grouped": "SoftmaxAttention",
        "self_attention": "SoftmaxAttention",
        "linear": "LinearAttention",
    }
    assert found.count_params() == model.count_params()
    for w in found.weights:
        w.assign(w + 1.0)
    for now, then in zip(values(model), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_a_replacement_has_the_sizes_and_the_position_of_the_old_layer(rng):
    found = replace_attention(mixed_model(), LinearAttention(1, 1, feature_map="relu"))
    assert set(kinds(found).values()) == {"LinearAttention"}
    grouped = found.get_layer("inner").get_layer("grouped")
    assert (grouped.num_heads, grouped.key_dim, grouped.num_key_value_heads) == (4, 4, 2)
    assert isinstance(found.get_layer("block").self_attention.position, Rotary)
    cosformer = replace_attention(mixed_model(), CosFormerAttention(1, 1, horizon=8))
    x = inputs(rng, 2, 9, 8)
    assert np.isfinite(keras.ops.convert_to_numpy(cosformer(x))).all()


def test_a_function_gets_each_old_layer_and_where_selects(rng):
    seen = []

    def windowed(old):
        seen.append((old.name, type(old).__name__))
        return WindowedLinearAttention(
            old.num_heads, old.key_dim, num_key_value_heads=old.num_key_value_heads, window=4,
            position=old.position,
        )  # fmt: skip

    model = mixed_model()
    found = replace_attention(model, windowed, where=lambda layer: layer.name != "linear")
    assert seen == [
        ("twice", "SoftmaxAttention"),
        ("grouped", "SoftmaxAttention"),
        ("self_attention", "SoftmaxAttention"),
    ]
    assert kinds(found)["linear"] == "LinearAttention"
    one = replace_attention(model, windowed, where="grouped")
    assert list(kinds(one).values()).count("WindowedLinearAttention") == 1
    again = replace_attention(model, windowed, where=lambda layer: layer.name != "linear")
    x = inputs(rng, 2, 9, 8)
    assert_close(again(x), found(x), 0)  # converting twice gives the same


def test_projections_are_kept_and_what_a_layer_lacks_is_left_out():
    x = keras.Input((None, 8))
    layer = keras.layers.MultiHeadAttention(2, 4)
    model = with_random_weights(keras.Model(x, layer(x, x)))
    found = replace_attention(model, LSHAttention(1, 1, bucket_size=4, num_buckets=2, max_length=8))
    old, new = layer.get_weights(), found.layers[1]
    for kept, dense in ((old[0], new.query_dense), (old[4], new.value_dense)):
        np.testing.assert_array_equal(kept, keras.ops.convert_to_numpy(dense.kernel))


def test_a_sequential_and_a_compiled_model(rng):
    model = keras.Sequential(
        [keras.Input((None, 8)), TransformerEncoder(12, 2), keras.layers.Dense(3)]
    )
    with_random_weights(model).compile("adam", "mse")
    x = inputs(rng, 2, 9, 8)
    found = replace_attention(model, SOFTMAX)
    assert isinstance(found, keras.Sequential)
    assert_close(found(x), model(x), EXACT)
    assert np.isfinite(found.fit(x, np.ones((2, 9, 3)), verbose=0).history["loss"][0])


def test_a_frozen_layer_stays_frozen():
    model = mixed_model()
    model.get_layer("twice").trainable = model.get_layer("block").trainable = False
    found = replace_attention(model, LinearAttention(1, 1))
    frozen = [name for name in ("twice", "block", "linear") if not found.get_layer(name).trainable]
    assert frozen == ["twice", "block"]
    assert len(found.trainable_weights) == len(model.trainable_weights)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "float64"])
def test_dtypes_are_kept(dtype):
    x = keras.Input((None, 8), dtype=keras.DTypePolicy(dtype).compute_dtype)
    layer = keras.layers.MultiHeadAttention(2, 4, dtype=dtype)
    model = keras.Model(x, layer(x, x))
    assert replace_attention(model, LinearAttention(1, 1)).layers[1].dtype_policy.name == dtype


def test_each_path_of_a_routed_layer_keeps_the_projections(rng):
    x = keras.Input((None, 8))
    y = keras.layers.MultiHeadAttention(2, 4)(x, x)
    y = TransformerEncoder(12, attention=SoftmaxAttention(2, 4))(y)
    model, data = with_random_weights(keras.Model(x, y)), inputs(rng, 2, 9, 8)
    routed = RoutedAttention([SoftmaxAttention(2, 4), SoftmaxAttention(2, 4)])
    assert_close(replace_attention(model, routed)(data), model(data), EXACT)  # a mean of equals


def test_it_loads_in_a_fresh_process(tmp_path, rng):
    x = inputs(rng, 2, 9, 8)
    found = replace_attention(mixed_model(), CosFormerAttention(1, 1, horizon=8))
    found = keras.Sequential([found, keras.layers.Dense(3, activation=gelu_approximate)])
    found.save(tmp_path / "m.keras")
    np.save(tmp_path / "x.npy", x)
    subprocess.run([sys.executable, SAVED, "m.keras", "x.npy", "y.npy"], cwd=tmp_path, check=True)
    assert_close(np.load(tmp_path / "y.npy"), found(x), 1e-6)


def functional(layer):
    x = keras.Input((None, 8))
    return keras.Model(x, layer(x))


def quantised():
    model = functional(keras.layers.Dense(8, name="head"))
    model.quantize("int8")
    return model


def with_lora():
    model = functional(keras.layers.Dense(8, name="head"))
    model.layers[1].enable_lora(2)
    return model


@keras.saving.register_keras_serializable("test_convert")
class Subclassed(keras.Model):
    """A model of a user, with attention in a list and in a layer."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.layers_ = [keras.layers.MultiHeadAttention(2, 4, name=n) for n in ("first", "second")]
        self.last = Wrapped(name="last")

    def call(self, x):
        for layer in self.layers_:
            x = layer(x, x, use_causal_mask=True)
        return self.last(x)


@keras.saving.register_keras_serializable("test_convert")
class Hidden(keras.layers.Layer):
    """A layer of a user that keeps its attention where no attribute shows it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        inner = keras.layers.MultiHeadAttention(2, 4, name="inner")
        self._tracker.track(inner)
        self.attend = lambda x: inner(x, x)

    def call(self, x):
        return self.attend(x)


@keras.saving.register_keras_serializable("test_convert")
class Late(keras.layers.Layer):
    """A layer of a user that makes its attention in `build`."""

    def build(self, shape):
        self.attention = keras.layers.MultiHeadAttention(2, 4, name="inner")
        self.attention.build(shape, shape)

    def call(self, x):
        return self.attention(x, x)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (mixed_model, (keras.layers.Dense(3),), "`attention` must be an attention layer.*Dense"),
        (mixed_model, (LinearAttention,), "`attention` must be an attention layer.*<class"),
        (mixed_model, (lambda old: None,), "it returned: None"),
        (lambda: keras.Sequential([keras.layers.Dense(3)]), (SOFTMAX,), "a built Keras model"),
        (lambda: functional(keras.layers.Dense(3)), (SOFTMAX,), "No layer of .* was replaced"),
        (mixed_model, (SOFTMAX, ["nowhere"]), r"`where` names .*\['nowhere'\].*'twice', 'grouped'"),
        (
            lambda: functional(Late(name="mine")),
            (SOFTMAX,),
            "'inner' of .* cannot be replaced: it is the attribute `attention` of a Late, which",
        ),
        (
            lambda: functional(Hidden(name="mine")),
            (SOFTMAX,),
            "'inner' of .* cannot be replaced: no attribute of a Hidden leads to it",
        ),
        (quantised, (SOFTMAX,), "its layer 'head' is quantised"),
        (with_lora, (SOFTMAX,), "its layer 'head' has LoRA weights"),
        (
            mixed_model,
            (lambda old: LinearAttention(old.num_heads, 9),),
            r"'twice' cannot take over the weight 'query/kernel'.*\(8, 2, 4\).*\(8, 2, 9\)",
        ),
    ],
)
def test_what_cannot_be_replaced_is_named(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        replace_attention(make(), *arguments)


def test_attention_inside_a_layer_of_the_user(rng, tmp_path):
    x = keras.Input((None, 8))
    y = Wrapped(name="mine")(Wrapped(name="yours")(x))
    model = with_random_weights(keras.Model(x, keras.layers.Dense(3)(y)))
    data = inputs(rng, 2, 9, 8)
    found = replace_attention(model, SOFTMAX)
    assert_close(found(data), model(data), EXACT)
    assert [type(layer.inner) for layer in found._flatten_layers() if type(layer) is Wrapped] == [
        SoftmaxAttention,
        SoftmaxAttention,
    ]
    linear = replace_attention(model, LinearAttention(1, 1))
    linear.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert_close(loaded(data), linear(data), 0)
    assert "LinearAttention" in kinds(loaded).values()
    assert_close(replace_attention(loaded, SOFTMAX)(data), model(data), EXACT)


def test_a_subclassed_model(rng, tmp_path):
    model, data = Subclassed(name="mine"), inputs(rng, 2, 9, 8)
    model(data)
    with_random_weights(model)
    found = replace_attention(model, SOFTMAX)
    assert_close(found(data), model(data), EXACT)
    linear = replace_attention(model, LinearAttention(1, 1), where=["second"])
    assert kinds(linear)["first"] == "MultiHeadAttention"
    linear.save(tmp_path / "m.keras")
    assert_close(keras.models.load_model(tmp_path / "m.keras")(data), linear(data), 0)


# KerasHub

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
