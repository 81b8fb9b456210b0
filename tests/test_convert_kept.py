"""What a conversion keeps: weights without names, positions, what is frozen, and how it trains."""

import keras
import numpy as np
import pytest
from support import assert_close
from variants import inputs

from keras_cosattn import (
    LinearAttention,
    PerformerAttention,
    Shaw,
    SoftmaxAttention,
    Streaming,
    T5Bias,
    TransformerDecoder,
    TransformerEncoder,
    TransformerXL,
    generate,
)
from keras_cosattn.convert import attention_errors, replace_attention, report, transfer
from keras_cosattn.convert.replace import equal_model

SOFTMAX, WIDTH, EXACT = SoftmaxAttention(1, 1), 8, 1e-5


def attend(**options):
    return keras.layers.MultiHeadAttention(2, 4, **options)


class Holder(keras.layers.Layer):
    """Keeps its attention as `hold` says, and computes with what it keeps."""

    hold = staticmethod(lambda: [attend()])

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.kept = self.hold()
        self.dense = [keras.layers.Dense(WIDTH), keras.layers.Dense(WIDTH)]

    def call(self, x):
        for layer in self.kept.values() if isinstance(self.kept, dict) else self.kept:
            x = x + layer(x, x, use_causal_mask=True)
        for layer in self.dense:
            x = layer(x)
        return x


@keras.saving.register_keras_serializable("tests")
class InList(Holder):
    pass


@keras.saving.register_keras_serializable("tests")
class SameNames(Holder):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = [keras.layers.Dense(WIDTH, name="d"), keras.layers.Dense(WIDTH, name="d")]


@keras.saving.register_keras_serializable("tests")
class Twice(Holder):
    hold = staticmethod(lambda: [attend()] * 2)


@keras.saving.register_keras_serializable("tests")
class InDict(Holder):
    hold = staticmethod(lambda: {"0": attend(), "a": attend()})


@keras.saving.register_keras_serializable("tests")
class InTuple(Holder):
    hold = staticmethod(lambda: (attend(),))


@keras.saving.register_keras_serializable("tests")
class InFloat32(Holder):
    hold = staticmethod(lambda: [attend(dtype="float32")])

    def __init__(self, **kwargs):
        super().__init__(**{"dtype": "float32", **kwargs})
        self.dense = [keras.layers.Dense(WIDTH, dtype="float32")]


def functional():
    x = keras.Input((None, WIDTH))
    return keras.Model(x, keras.layers.Dense(WIDTH)(attend()(x, x)))


@keras.saving.register_keras_serializable("tests")
class Deep(Holder):
    """Keeps its attention in models, and in containers that come into its list later."""

    hold = staticmethod(lambda: [keras.Sequential([InList(), TransformerEncoder(9, num_heads=2)])])

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.kept.append([{"a": functional()}, attend()])

    def call(self, x):
        first, (second, last) = self.kept
        x = second["a"](first(x))
        return self.dense[0](last(x, x))


@keras.saving.register_keras_serializable("tests")
class Shares(Holder):
    hold = staticmethod(lambda: [functional()])

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.also = self.kept[0].layers[-1]

    def call(self, x):
        return self.also(self.kept[0](x))


@keras.saving.register_keras_serializable("tests")
class Float32Sum(Holder):
    hold = staticmethod(lambda: [attend(dtype="mixed_bfloat16")])

    def __init__(self, **kwargs):
        super().__init__(**{**kwargs, "dtype": "mixed_bfloat16", "autocast": False})

    def call(self, x):
        (attention,) = self.kept
        return x + keras.ops.cast(attention(x, x), "float32")


def model_of(layer, **options):
    x = keras.Input((None, WIDTH))
    model = keras.Model(x, layer(x, **options))
    rng = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(rng.normal(size=weight.shape, scale=0.5))
    return model


@pytest.mark.parametrize("cls", [InList, SameNames, Twice, InDict, Deep])
@pytest.mark.sample(2)
def test_a_layer_of_a_user_keeps_all_its_weights(cls, rng, tmp_path):
    model, x = model_of(cls()), inputs(rng, 2, 7, WIDTH)
    found = replace_attention(model, SOFTMAX)
    assert_close(found(x), model(x), EXACT)
    assert found.count_params() == model.count_params()
    again = replace_attention(found, SOFTMAX)
    assert_close(again(x), model(x), EXACT)
    again.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert_close(loaded(x), model(x), EXACT)
    assert loaded.count_params() == model.count_params()


def test_the_order_of_a_dict_stays(rng):
    layer = InDict()
    model, x = model_of(layer), inputs(rng, 2, 7, WIDTH)
    found = replace_attention(model, SOFTMAX, where=[layer.kept["0"].name])
    assert_close(found(x), model(x), EXACT)


def test_attention_in_a_tuple_is_refused():
    with pytest.raises(ValueError, match=r"`kept.0` of a InTuple, which is in a tuple. Keep it"):
        replace_attention(model_of(InTuple()), SOFTMAX)


def test_a_model_inside_that_shares_layers_is_refused():
    with pytest.raises(ValueError, match=r"`kept.0` of a Shares, .* layers that are in other att"):
        replace_attention(model_of(Shares()), SOFTMAX)


def test_a_sum_in_float32_stays(rng):
    model, x = model_of(Float32Sum()), inputs(rng, 2, 7, WIDTH)
    found = replace_attention(model, SOFTMAX)(x)
    assert keras.backend.standardize_dtype(found.dtype) == "float32"
    assert_close(found, model(x), 5e-2)  # bfloat16 keeps 8 bits


def test_a_layer_that_makes_other_weights_is_refused(monkeypatch):
    model = model_of(InList())
    build = Holder.__init__

    def smaller(self, **kwargs):
        build(self, **kwargs)
        self.dense = [keras.layers.Dense(5), keras.layers.Dense(WIDTH)]

    monkeypatch.setattr(InList, "__init__", smaller)
    with pytest.raises(ValueError, match=r"has other weights. Make all .* Received: \[\(8, 5\)"):
        replace_attention(model, SOFTMAX)


def test_a_layer_of_a_user_keeps_its_dtype(rng):
    model, x = model_of(InFloat32()), inputs(rng, 2, 7, WIDTH)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        found = replace_attention(model, SOFTMAX)
        assert_close(found(x), model(x), EXACT)
    finally:
        keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("position", [T5Bias(), Shaw(4), TransformerXL()], ids=lambda p: p.kind)
@pytest.mark.parametrize("block", [False, True])
def test_a_position_keeps_what_it_has_learned(position, block, rng):
    layer = SoftmaxAttention(2, 4, position=position)
    if block:
        model = model_of(TransformerEncoder(9, attention=layer))
    else:
        x = keras.Input((None, WIDTH))
        model = keras.Model(x, layer(x, x))
        for weight in model.weights:
            weight.assign(rng.normal(size=weight.shape, scale=0.5))
    x = inputs(rng, 2, 7, WIDTH)
    assert_close(replace_attention(model, SOFTMAX)(x), model(x), EXACT)


@pytest.mark.parametrize("attention", [SOFTMAX, LinearAttention(1, 1)])
def test_what_is_frozen_stays_frozen(attention):
    block = TransformerEncoder(9, num_heads=2)
    model = model_of(block)
    block.self_attention.trainable = False
    assert len(replace_attention(model, attention).trainable_weights) == 8
    holder = InList()
    model = model_of(holder)
    holder.dense[0].trainable = False
    kept = len(model.trainable_weights)
    assert kept == 10
    assert len(replace_attention(model, attention).trainable_weights) == kept
    x, grouped = keras.Input((None, WIDTH)), keras.layers.GroupQueryAttention(2, 4, 1)
    model = keras.Model(x, grouped(x, x))
    grouped._query_dense.trainable = False
    assert len(replace_attention(model, attention).trainable_weights) == 6


def test_a_block_gets_random_features_of_its_own():
    model = model_of(
        TransformerDecoder(9, attention=PerformerAttention(2, 4, num_random_features=8))
    )
    found = replace_attention(model, PerformerAttention(1, 1, num_random_features=16))
    (block,) = found.layers[1:]
    assert block.self_attention.projection.shape[-1] == 16


def test_options_of_both_layers_stay():
    x = keras.Input((None, WIDTH))
    old = attend(dropout=0.5, kernel_regularizer="l2", kernel_constraint="max_norm", seed=3)
    model = keras.Model(x, old(x, x))
    gated = LinearAttention(1, 1, use_gate=True, use_query_key_norm=True, bias_regularizer="l1")
    (found,) = replace_attention(model, gated).layers[1:]
    config = found.get_config()
    assert (config["use_gate"], config["use_query_key_norm"]) == (True, True)
    assert (config["dropout"], config["seed"]) == (0.5, 3)
    assert config["kernel_regularizer"] == old.get_config()["kernel_regularizer"]
    assert config["kernel_constraint"] == old.get_config()["kernel_constraint"]
    assert config["bias_regularizer"] == gated.get_config()["bias_regularizer"]


def own_loss(y, y_pred):
    return keras.ops.mean(keras.ops.square(y - y_pred), axis=-1)


class OwnMetric(keras.metrics.Mean):
    def update_state(self, y, y_pred, sample_weight=None):
        return super().update_state(keras.ops.abs(y - y_pred))


def test_a_model_is_compiled_as_before_and_a_teacher_is_not(rng):
    x = keras.Input((None, WIDTH))
    model = keras.Model(x, attend()(x, x))
    optimizer = keras.optimizers.SGD(0.5, momentum=0.9)
    model.compile(optimizer, own_loss, metrics=[OwnMetric("own")], jit_compile=False)
    found = replace_attention(model, LinearAttention(1, 1))
    assert found.optimizer is not optimizer
    assert float(found.optimizer.learning_rate) == 0.5
    data = inputs(rng, 4, 7, WIDTH)
    assert set(found.fit(data, data, verbose=0).history) == {"loss", "own"}
    assert not equal_model(model).compiled
    transfer(model, found, data, train="attention", verbose=0)


class Scaled(keras.losses.Loss):
    """A loss and, below, a metric that do not say their scale in `get_config`."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def call(self, y, y_pred):
        return self.scale * own_loss(y, y_pred)


class ScaledMetric(OwnMetric):
    def __init__(self, scale):
        super().__init__("own")
        self.scale = scale


def test_a_loss_stays_and_a_metric_that_cannot_be_made_again_is_named(rng):
    x, data = keras.Input((None, WIDTH)), inputs(rng, 4, 7, WIDTH)
    model = keras.Model(x, attend()(x, x))
    model.compile("sgd", Scaled(10.0))
    expected = model.evaluate(data, data, verbose=0)
    found = replace_attention(model, SOFTMAX).evaluate(data, data, verbose=0)
    assert found == pytest.approx(expected, rel=EXACT)
    model.compile("sgd", "mse", metrics=[ScaledMetric(10.0)])
    with pytest.raises(ValueError, match=r"'own' \(ScaledMetric\) cannot .* TypeError"):
        replace_attention(model, SOFTMAX)


def test_an_input_that_may_be_left_out_stays_so(rng):
    x = keras.Input((None, WIDTH), name="x")
    mask = keras.Input((None,), dtype="bool", name="mask", optional=True)
    model = keras.Model([x, mask], attend()(x, x, value_mask=mask))
    found, data = replace_attention(model, SOFTMAX), inputs(rng, 2, 7, WIDTH)
    assert_close(found([data, None]), model([data, None]), EXACT)
    for name in ("x", "mask"):
        assert found.get_layer(name).get_config() == model.get_layer(name).get_config()


def test_a_model_that_trains_in_its_own_way_is_refused():
    class Own(keras.Model):
        def __init__(self):
            x = keras.Input((None, WIDTH))
            super().__init__(x, attend()(x, x))

        def train_step(self, data):
            raise NotImplementedError

    class Kept(keras.Model):
        def __init__(self, inputs, outputs, name=None):
            super().__init__(inputs, outputs, name=name)

        def train_step(self, data):
            raise NotImplementedError

    class Row(keras.Sequential):
        def train_step(self, data):
            raise NotImplementedError

    row = Row([keras.Input((None, WIDTH)), TransformerEncoder(9, num_heads=2)])
    for model in (Own(), row):
        with pytest.raises(ValueError, match=r"without the `train_step` of (Own|Row). Convert `ke"):
            replace_attention(model, SOFTMAX)
    x = keras.Input((None, WIDTH))
    assert type(replace_attention(Kept(x, attend()(x, x)), SOFTMAX)) is Kept


def test_layers_with_one_path_have_errors_of_their_own(rng):
    def tower(name):
        x = keras.Input((None, WIDTH))
        return keras.Model(x, TransformerEncoder(9, num_heads=2, name="block")(x), name=name)

    x = keras.Input((None, WIDTH))
    model = keras.Model(x, tower("a")(x) + tower("b")(x))
    linear, x = replace_attention(model, LinearAttention(1, 1)), inputs(rng, 2, 7, WIDTH)
    errors = attention_errors(model, linear, x)
    names = [f"block/self_attention ({rank})" for rank in range(2)]
    assert list(errors) == names
    for back, rest in (names, reversed(names)):
        hybrid = replace_attention(linear, SOFTMAX, where=back)
        assert attention_errors(model, hybrid, x) == {rest: pytest.approx(errors[rest], rel=1e-4)}
    both = replace_attention(linear, SOFTMAX, where="block/self_attention")
    assert_close(both(x), model(x), EXACT)


@keras.saving.register_keras_serializable("tests")
class Causal(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention, self.head = attend(), keras.layers.Dense(3)

    def call(self, x):
        return self.head(self.attention(x, x, use_causal_mask=True))


def test_a_report_of_a_subclassed_model_has_a_stream(rng):
    model, x = Causal(), inputs(rng, 2, 24, WIDTH)
    model(x)
    found = report(model, replace_attention(model, LinearAttention(1, 1)), x, cache_steps=(32,))
    assert found.no_stream is None
    assert list(found.steps_per_second) == [32]


def test_an_example_that_has_ended_reads_no_more_steps():
    ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(10, WIDTH)(ids)
    x = SoftmaxAttention(2, 4, max_length=10)(x, x, use_causal_mask=True)
    stream = Streaming(keras.Model(ids, keras.layers.Dense(10)(x)))
    chosen = iter([[7, 5], *[[4, 5]] * 7])
    prompt = np.array([[1] * 8, [0] * 6 + [1] * 2])
    found = generate(
        stream, prompt, 8, prompt_mask=prompt > 0, stop_token_ids=[7],
        sampler=lambda logits: np.array(next(chosen)),
    )  # fmt: skip
    np.testing.assert_array_equal(found, [[7] + [0] * 7, [5] * 8])
