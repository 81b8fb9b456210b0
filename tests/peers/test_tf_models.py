"""The layers for tf_keras beside those for Keras 3, and in models of tf-models-official.

They need an environment of their own, because tf-models-official needs TensorFlow 2.20. Its two
commands are in CONTRIBUTING.md.
"""

import importlib
import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from support import assert_close

import keras_cosattn

REASON = "needs the extra `models`, in an environment of its own: see CONTRIBUTING.md"
tf_keras = pytest.importorskip("tf_keras", reason=REASON)
layers = pytest.importorskip("official.nlp.modeling.layers", reason=REASON)
networks = pytest.importorskip("official.nlp.modeling.networks", reason=REASON)
models = importlib.import_module("keras_cosattn.models")

pytestmark = pytest.mark.peers
DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "tf_models.md"
B, T, S, H, D, E, M, N = 2, 13, 10, 3, 5, 7, 8, 6
HALF = {"mixed_float16": 5e-3, "mixed_bfloat16": 4e-2}  # they keep 11 and 8 bits
WORDS, STEPS, WIDTH, HEADS = 9, 12, 16, 2
CASES = {
    "cosformer": ("CosFormerAttention", {"max_length": 32}),
    "cosformer_of_the_call": ("CosFormerAttention", {}),
    "linear": ("LinearAttention", {}),
    "linear_taylor": ("LinearAttention", {"feature_map": "taylor"}),
    "performer": ("PerformerAttention", {"num_random_features": 12, "seed": 3}),
}
every_case = pytest.mark.parametrize("case", CASES)
every_class = pytest.mark.parametrize("case", ["cosformer", "linear", "performer"])


def numbers(rng, *shape):
    return rng.standard_normal(shape).astype("float32")


def padding(steps, *lengths):
    return np.arange(steps) < np.array(lengths)[:, None]


def rows(mask, queries):
    """The mask of tf-models-official: float, one row for each query."""
    return np.repeat(mask[:, None], queries, axis=1).astype("float32")


def layer_of(case, **more):
    name, arguments = CASES[case]
    return getattr(models, name)(H, D, value_dim=E, **arguments, **more)


def pair(case, rng, query, value, **more):
    """The layer for Keras 3 and that for tf_keras, with the same random weights."""
    name, arguments = CASES[case]
    of_keras3 = getattr(keras_cosattn, name)(H, D, value_dim=E, **arguments, **more)
    of_tf_keras = layer_of(case, **more)
    for layer in (of_keras3, of_tf_keras):
        layer(query, value)
    weights = of_keras3.trainable_variables, of_tf_keras.trainable_variables
    assert len(weights[0]) == 8
    for of_one, of_other in zip(*weights, strict=True):
        of_one.assign(0.5 * numbers(rng, *of_one.shape))
        of_other.assign(of_one.numpy())
    return of_keras3, of_tf_keras


def outputs_and_gradients(layer, query, value, upstream, **arguments):
    """The outputs, and the gradients of query, value and weights, in a graph."""
    variables = [v.value if isinstance(v, keras.Variable) else v for v in layer.trainable_variables]

    @tf.function(autograph=False)
    def run(query, value):
        with tf.GradientTape() as tape:
            tape.watch([query, value])
            outputs = layer(query, value, **arguments)
        return outputs, tape.gradient(outputs, [query, value, *variables], upstream)

    return run(tf.constant(query), tf.constant(value))


@pytest.mark.parametrize(
    ("causal", "given"),
    [(False, None), (False, "keys"), (False, "rows"), (True, None), (True, "keys")],
)
@every_case
def test_values_and_gradients_are_those_of_the_layer_for_keras_3(case, causal, given, rng):
    steps = T if causal else S
    query, value, upstream = numbers(rng, B, T, M), numbers(rng, B, steps, N), numbers(rng, B, T, M)
    mask = padding(steps, steps, 4)
    masks = {
        None: ({}, {}),
        "keys": ({"value_mask": mask}, {"attention_mask": mask}),
        "rows": ({"value_mask": mask}, {"attention_mask": rows(mask, T)}),
    }[given]
    results = [
        outputs_and_gradients(layer, query, value, upstream, use_causal_mask=causal, **arguments)
        for layer, arguments in zip(pair(case, rng, query, value), masks, strict=True)
    ]
    (expected, of_expected), (actual, of_actual) = results
    assert_close(actual, expected)
    for one, other in zip(of_actual, of_expected, strict=True):
        assert_close(one, other)


@every_case
def test_implicit_masks_are_read_as_those_of_keras_3(case, rng):
    x = numbers(rng, B, T, M) * padding(T, T, 4)[..., None]
    of_keras3, of_tf_keras = pair(case, rng, x, x)
    # Keras 3 takes the mask off its input, so each call has its own.
    expected = of_keras3(*(keras.layers.Masking()(x) for _ in "qv"))
    masked = tf_keras.layers.Masking()(x)
    actual = of_tf_keras(masked, masked)
    assert_close(actual, expected)
    np.testing.assert_array_equal(actual._keras_mask, padding(T, T, 4))
    causal = of_tf_keras(masked, masked, use_causal_mask=True)
    assert_close(causal[1:, :4], of_tf_keras(x[1:, :4], x[1:, :4], use_causal_mask=True))


@pytest.mark.parametrize("of_rows", [False, True])
@every_class
def test_nothing_of_a_padded_step_reaches_an_output_or_a_gradient(case, of_rows, rng):
    x, y, upstream = numbers(rng, B, T, M), numbers(rng, B, S, N), numbers(rng, B, T, M)
    mask = padding(S, S, 4)
    layer = pair(case, rng, x, y)[1]
    given = {"attention_mask": rows(mask, T) if of_rows else mask}
    expected, gradients = outputs_and_gradients(layer, x, y, upstream, **given)
    assert np.all(gradients[1].numpy()[~mask] == 0)
    changed = np.where(mask[..., None], y, np.float32("nan"))
    actual, of_changed = outputs_and_gradients(layer, x, changed, upstream, **given)
    np.testing.assert_array_equal(actual, expected)
    for one, other in zip(of_changed, gradients, strict=True):
        np.testing.assert_array_equal(one, other)


@every_class
def test_outputs_do_not_depend_on_how_far_a_batch_is_padded(case, rng):
    x, layer = numbers(rng, B, T, M), layer_of(case)
    padded = layer(x, x, attention_mask=padding(T, 4, 4))
    assert_close(padded[:, :4], layer(x[:, :4], x[:, :4]))


def test_a_mask_that_differs_from_query_to_query_is_refused(rng):
    x, layer = numbers(rng, B, T, M), layer_of("linear", name="attention")
    causal = np.tril(np.ones((B, T, T)))
    with pytest.raises(ValueError, match=r"attention: .*same for all queries.*rows that differ"):
        layer(x, x, attention_mask=causal)
    called = tf.function(lambda mask: layer(x, x, attention_mask=mask))
    with pytest.raises(tf.errors.InvalidArgumentError, match="same for all queries"):
        called(tf.constant(causal))
    compiled = tf.function(lambda mask: layer(x, x, attention_mask=mask), jit_compile=True)
    with pytest.raises(ValueError, match="cannot be compared where XLA compiles"):
        compiled(tf.constant(causal))
    padded = padding(T, T, 4)
    assert_close(compiled(tf.constant(padded)), layer(x, x, attention_mask=padded))


@pytest.mark.parametrize("shape", [(T,), (B, S + 1), (B, 1, S + 1), (B, H, T, S), (1, 1, 1, 1, S)])
def test_a_mask_of_another_shape_is_refused(shape, rng):
    layer = layer_of("linear", name="attention")
    with pytest.raises(ValueError, match=rf"attention: .*shape={re.escape(str(shape))}.*s={S}"):
        layer(numbers(rng, B, T, M), numbers(rng, B, S, M), attention_mask=np.ones(shape))


def test_more_steps_than_max_length_are_refused(rng):
    x = numbers(rng, B, T, M)
    layer = models.CosFormerAttention(H, D, max_length=T - 1)
    with pytest.raises(ValueError, match=f"at most {T - 1} steps. Received: {T} steps"):
        layer(x, x)
    layer(x[:, 1:], x[:, 1:])


@every_case
def test_the_configuration_and_the_weights_of_multi_head_attention(case, rng):
    x = numbers(rng, B, T, M)
    options = {"kernel_initializer": "he_normal", "kernel_regularizer": "l2", "dropout": 0.1}
    layer = layer_of(case, name="attention", output_shape=4, **options)
    config = tf_keras.saving.serialize_keras_object(layer)
    assert config["registered_name"] == f"keras_cosattn>{CASES[case][0]}"
    again = tf_keras.saving.deserialize_keras_object(config)
    assert again.get_config() == layer.get_config()
    theirs = tf_keras.layers.MultiHeadAttention(H, D, value_dim=E, output_shape=4, **options)
    for each in (theirs, layer, again):
        each(x, x)
    layer.set_weights([*theirs.get_weights(), *(w.numpy() for w in layer.non_trainable_weights)])
    again.set_weights(layer.get_weights())
    assert_close(again(x, x), layer(x, x), 0)
    assert len(layer.losses) == len(theirs.losses) == 4


@pytest.mark.parametrize(
    "arguments", [{"num_heads": 0}, {"key_dim": 2.5}, {"max_length": 0}, {"chunk_size": -1}]
)
def test_wrong_numbers_are_named(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"`{name}` must be an integer of at least 1"):
        models.CosFormerAttention(**{"num_heads": H, "key_dim": D, **arguments})


@pytest.mark.parametrize("feature_map", ["softmax", keras_cosattn.DPFPFeatures(), {}])
def test_another_feature_map_is_refused(feature_map):
    with pytest.raises(ValueError, match=r"`feature_map` must be one of \['elu\+1'"):
        models.LinearAttention(H, D, feature_map=feature_map)


@pytest.mark.parametrize("policy", HALF)
@every_case
def test_half_precision_rounds_and_nothing_more(case, policy, rng):
    x, mask = numbers(rng, B, T, M), padding(T, T, 4)
    exact = pair(case, rng, x, x)[1]
    layer = layer_of(case, dtype=policy)
    layer(x, x)
    layer.set_weights(exact.get_weights())
    outputs = layer(x, x, attention_mask=mask)
    assert outputs.dtype == policy.removeprefix("mixed_")
    assert all(w.dtype == tf.float32 for w in layer.weights)
    assert_close(tf.cast(outputs, "float32"), exact(x, x, attention_mask=mask), HALF[policy])


@every_class
def test_dropout_drops_mixed_values_in_training_only(case, rng):
    x = numbers(rng, B, T, M)
    dropping = layer_of(case, dropout=0.5, use_bias=False)
    dropping(x, x)
    kept = dropping(x, x, training=False)
    assert_close(dropping(x, x), kept, 0)
    runs = np.stack([dropping(x, x, training=True) for _ in range(400)])
    assert np.abs(runs[0] - runs[1]).max() > 0
    assert_close(runs.mean(0), kept, 0.4)  # the mean of 400 runs is that rough


def scaffold(case, **more):
    name, arguments = CASES[case]
    config = {"num_heads": HEADS, "key_dim": WIDTH // HEADS, **arguments}
    return layers.TransformerScaffold(
        num_attention_heads=HEADS,
        inner_dim=2 * WIDTH,
        inner_activation="relu",
        attention_cls=getattr(models, name),
        attention_cfg=config,
        **more,
    )


def test_a_scaffold_without_attention_cfg_makes_the_layer(rng):
    block = layers.TransformerScaffold(
        num_attention_heads=HEADS,
        inner_dim=WIDTH,
        attention_cls=models.LinearAttention,
        attention_dropout_rate=0.1,
        kernel_initializer=tf_keras.initializers.TruncatedNormal(stddev=0.02),
        kernel_regularizer="l2",
    )
    x = numbers(rng, B, STEPS, WIDTH)
    assert block([x, rows(padding(STEPS, 4, 9), STEPS)]).shape == x.shape
    attention = block._attention_layer
    assert isinstance(attention, models.LinearAttention)
    assert (attention.num_heads, attention.key_dim, attention.dropout) == (HEADS, 8, 0.1)
    assert attention.name == "self_attention"
    query, key = attention.trainable_weights[0], attention.trainable_weights[2]
    assert 0 < np.std(query) < 0.03
    assert np.abs(query.numpy() - key.numpy()).max() > 0


def bert(attention="cosformer", mask_cls=None, blocks=2):
    """A classifier of sequences on a small BERT encoder of tf-models-official, and the encoder.

    `attention` is a case, or what `TransformerScaffold` takes as `attention_cls`.
    """
    attention_cls, arguments = attention, {}
    if isinstance(attention, str):
        name, arguments = CASES[attention]
        attention_cls = getattr(models, name)
    encoder = networks.EncoderScaffold(
        pooled_output_dim=WIDTH,
        embedding_cfg={
            "vocab_size": WORDS,
            "type_vocab_size": 2,
            "hidden_size": WIDTH,
            "max_seq_length": STEPS,
            "initializer": tf_keras.initializers.TruncatedNormal(stddev=0.1),
            "dropout_rate": 0.0,
        },
        num_hidden_instances=blocks,
        hidden_cls=layers.TransformerScaffold,
        hidden_cfg={
            "num_attention_heads": HEADS,
            "inner_dim": 2 * WIDTH,
            "inner_activation": "relu",
            "attention_cls": attention_cls,
            "attention_cfg": {"num_heads": HEADS, "key_dim": WIDTH // HEADS, **arguments},
        },
        mask_cls=mask_cls or layers.SelfAttentionMask,
    )
    logits = tf_keras.layers.Dense(2)(encoder(encoder.inputs)[1])
    return tf_keras.Model(encoder.inputs, logits), encoder


def sentences(rng, count=96):
    """Words, masks and types of padded sentences, and whether word 1 is in them."""
    mask = np.arange(STEPS) < rng.integers(6, STEPS + 1, (count, 1))
    words = rng.integers(2, WORDS, (count, STEPS))
    present = rng.integers(0, 2, count)
    words[:, 4] = np.where(present, 1, words[:, 4])
    words = np.where(mask, words, 1)  # the padding is the word that is asked for
    inputs = [words, mask, np.zeros_like(words)]
    return [x.astype("int32") for x in inputs], present


@pytest.mark.parametrize(
    ("case", "mask_cls"),
    [
        ("cosformer", layers.SelfAttentionMask),
        ("cosformer", models.PaddingMask),
        ("linear", layers.KernelMask),
        ("performer", models.PaddingMask),
    ],
)
def test_a_small_bert_trains(case, mask_cls, rng):
    tf_keras.utils.set_random_seed(0)
    model, encoder = bert(case, mask_cls)
    attention = [w for block in encoder.hidden_layers for w in block._attention_layer.weights]
    trained = [w.trainable for w in attention]
    assert sum(trained) == 16
    before = [w.numpy() for w in attention]
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(5e-3), loss, metrics=["accuracy"])
    inputs, labels = sentences(rng)
    losses = model.fit(inputs, labels, epochs=30, batch_size=32, verbose=0).history["loss"]
    assert losses[-1] < 0.3 * losses[0]
    for weight, old, is_trained in zip(attention, before, trained, strict=True):
        assert np.any(weight.numpy() != old) == is_trained
    inputs, labels = sentences(rng)
    assert model.evaluate(inputs, labels, verbose=0)[1] > 0.9
    mask = inputs[1].astype(bool)
    changed = [np.where(mask, inputs[0], 5), inputs[1], inputs[2]]
    assert_close(model.predict(changed, verbose=0), model.predict(inputs, verbose=0), 0)


@pytest.mark.parametrize(
    ("policy", "jit"), [("mixed_float16", False), ("mixed_bfloat16", False), ("float32", True)]
)
def test_a_small_bert_trains_in_half_precision_and_under_xla(policy, jit, rng):
    tf_keras.mixed_precision.set_global_policy(policy)
    try:
        tf_keras.utils.set_random_seed(0)
        model = bert(mask_cls=models.PaddingMask)[0]
        loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(tf_keras.optimizers.Adam(5e-3), loss, jit_compile=jit)
        losses = model.fit(*sentences(rng), epochs=30, batch_size=32, verbose=0).history["loss"]
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    assert losses[-1] < 0.3 * losses[0]


def test_a_checkpoint_of_softmax_attention_is_restored(tmp_path):
    softmax = bert(tf_keras.layers.MultiHeadAttention)[0]
    path = tf.train.Checkpoint(model=softmax).write(str(tmp_path / "softmax"))
    linear = bert("linear")[0]
    tf.train.Checkpoint(model=linear).read(path).assert_existing_objects_matched()
    for one, other in zip(linear.get_weights(), softmax.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("case", "form"),
    [
        ("cosformer", "block.keras"),
        ("linear", "block.h5"),
        ("performer", "block.h5"),
        ("performer", "block.keras"),
        ("performer", "block"),
    ],
)
def test_a_saved_block_is_loaded_as_it_was(case, form, tmp_path, rng):
    x, mask = tf_keras.Input((None, WIDTH)), tf_keras.Input((None,), dtype="int32")
    block = scaffold(case, name="block")
    model = tf_keras.Model([x, mask], block([x, models.PaddingMask()(x, mask)]))
    values = [numbers(rng, B, STEPS, WIDTH), padding(STEPS, STEPS, 5).astype("int32")]
    expected = model(values)
    model.save(tmp_path / form)
    again = tf_keras.models.load_model(tmp_path / form)
    assert_close(again(values), expected, 0)
    assert type(again.get_layer("block")._attention_layer) is type(block._attention_layer)
    assert len(again.trainable_weights) == len(model.trainable_weights)


def test_weights_of_a_bert_are_saved_and_loaded(tmp_path, rng):
    inputs, _ = sentences(rng, count=5)
    for name in ("all.weights.h5", "all.h5", "all"):
        model, other = bert("performer")[0], bert("performer")[0]
        model.save_weights(tmp_path / name)
        other.load_weights(tmp_path / name)
        assert_close(other(inputs), model(inputs), 0)


def test_a_saved_bert_is_loaded_as_it_was(tmp_path, rng):
    """With the saved form of a layer, as docs/tf_models.md says."""
    saved_form = tf_keras.saving.serialize_keras_object(models.LinearAttention(HEADS, 8))
    model, encoder = bert(saved_form)
    assert len(encoder.hidden_layers[0].trainable_weights) == 16
    inputs, _ = sentences(rng, count=5)
    expected = model(inputs)
    model.save(tmp_path / "bert.keras")
    again = tf_keras.models.load_model(tmp_path / "bert.keras")
    assert_close(again(inputs), expected, 0)
    assert len(again.trainable_weights) == len(model.trainable_weights) == 41


@every_class
def test_a_layer_in_a_subclassed_model_is_loaded_as_it_was(case, tmp_path, rng):
    model, x = Wrapped(layer_of(case)), numbers(rng, B, STEPS, WIDTH)
    expected = model(x)
    model.save(tmp_path / "model.keras")
    again = tf_keras.models.load_model(tmp_path / "model.keras")
    assert_close(again(x), expected, 0)


@tf_keras.saving.register_keras_serializable("keras_cosattn_tests")
class Wrapped(tf_keras.Model):
    """A model that calls one attention layer, with values of another width than its queries."""

    def __init__(self, attention, **kwargs):
        super().__init__(**kwargs)
        self.attention = attention

    def call(self, x):
        return self.attention(x, x[..., :5])

    def get_config(self):
        return {"attention": tf_keras.saving.serialize_keras_object(self.attention)}

    @classmethod
    def from_config(cls, config):
        return cls(tf_keras.saving.deserialize_keras_object(config["attention"]))


@pytest.mark.parametrize(
    ("case", "mask_cls"),
    [
        ("cosformer", layers.SelfAttentionMask),
        ("cosformer", models.PaddingMask),
        ("performer", models.PaddingMask),
    ],
)
def test_a_small_bert_exports_to_a_saved_model_and_to_tflite(case, mask_cls, tmp_path, rng):
    from ai_edge_litert.interpreter import Interpreter

    model, _ = bert(case, mask_cls, blocks=1)
    inputs, _ = sentences(rng, count=5)
    expected = model(inputs)
    model.save(tmp_path / "model")
    served = tf.saved_model.load(str(tmp_path / "model")).signatures["serving_default"]
    names = [x.name.split(":")[0] for x in model.inputs]
    (actual,) = served(**dict(zip(names, map(tf.constant, inputs), strict=True))).values()
    assert_close(actual, expected)

    content = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "model")).convert()
    runner = Interpreter(model_content=content).get_signature_runner()  # it has builtin ops alone
    (actual,) = runner(**dict(zip(names, inputs, strict=True))).values()
    assert_close(actual, expected)


def test_a_layer_of_keras_3_in_a_scaffold_is_refused(rng):
    block = layers.TransformerScaffold(
        num_attention_heads=HEADS,
        inner_dim=WIDTH,
        attention_cls=keras_cosattn.CosFormerAttention,
        name="block",
    )
    message = r"inside block \(TransformerScaffold\), a layer of tf_keras"
    with pytest.raises(ValueError, match=message):
        block(numbers(rng, B, STEPS, WIDTH))
    with pytest.raises(ValueError, match=message):
        block(tf_keras.Input((STEPS, WIDTH)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras_cosattn.LinearAttention(H, D),
        lambda: keras_cosattn.TransformerEncoder(M, attention=keras_cosattn.LinearAttention(H, D)),
        lambda: keras_cosattn.TransformerDecoder(M, num_heads=1),
        lambda: keras_cosattn.RunningMean(),
        lambda: keras_cosattn.CausalConv1D(M, 2),
        lambda: keras_cosattn.PositionEmbedding(STEPS),
    ],
)
def test_a_layer_of_keras_3_on_a_tensor_of_tf_keras_is_refused(make, rng):
    layer, x, values = make(), tf_keras.Input((STEPS, M)), numbers(rng, B, STEPS, M)
    arguments = 2 if isinstance(layer, keras_cosattn.Attention) else 1
    with pytest.raises(ValueError, match=r"keras_cosattn\.models"):
        layer(*[x] * arguments)
    lambda_layer = tf_keras.layers.Lambda(lambda x: layer(*[x] * arguments), name="lambda")
    for each in (x, values):
        with pytest.raises(ValueError, match=r"inside lambda \(Lambda\), a layer of tf_keras"):
            lambda_layer(each)
    assert layer(*[values] * arguments).shape == values.shape


def test_models_of_keras_3_train_and_export_beside_tf_keras(tmp_path, rng):
    from keras_cosattn.export import to_saved_model

    x = keras.Input((STEPS, M))
    layer = keras_cosattn.CosFormerAttention(H, D, horizon=8)
    model = keras.Model(x, layer(x, x, use_causal_mask=True))
    model.compile("adam", "mse")
    values = numbers(rng, B, STEPS, M)
    model.fit(values, values, verbose=0)
    to_saved_model(model, tmp_path / "model")


def test_the_code_of_the_document_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    exec(block, {})
    assert (tmp_path / "bert").is_dir()
