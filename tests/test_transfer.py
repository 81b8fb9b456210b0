"""New attention layers learn what the old ones computed, and nothing else changes."""

import keras
import numpy as np
import pytest
from support import assert_close
from variants import inputs

from keras_cosattn import (
    HedgehogFeatures,
    LinearAttention,
    RoutedAttention,
    SegmentedAttention,
    SoftmaxAttention,
    TransformerDecoder,
    TransformerEncoder,
    WindowedLinearAttention,
)
from keras_cosattn.convert import attention_errors, replace_attention, transfer

WINDOWED = WindowedLinearAttention(1, 1, window=3)


def softmax_model():
    keras.utils.set_random_seed(0)
    x = keras.Input((None, 8))
    y = keras.layers.MultiHeadAttention(2, 4, name="first")(x, x, use_causal_mask=True)
    y = TransformerDecoder(12, attention=SoftmaxAttention(2, 4), name="block")(x + y)
    model, rng = keras.Model(x, keras.layers.Dense(3)(y)), np.random.default_rng(0)
    for w in model.weights:
        w.assign(w + 0.3 * rng.standard_normal(w.shape))
    return model


def weights(model):
    return {w.path: keras.ops.convert_to_numpy(w) for w in model.weights}


@pytest.mark.parametrize("train", ["new", "attention"])
@pytest.mark.sample(2)
def test_each_layer_gets_nearer_to_its_teacher(train, rng):
    model, x = softmax_model(), inputs(rng, 16, 12, 8)
    found = replace_attention(model, WINDOWED)
    before, first = weights(found), attention_errors(model, found, x)
    teacher = weights(model)
    optimizer = keras.optimizers.Adam(1e-2)
    said = transfer(model, found, x, train=train, optimizer=optimizer, epochs=30, verbose=0)
    last = attention_errors(model, found, x)
    assert list(first) == ["first", "block/self_attention"]
    for name, error in last.items():
        assert error < 0.9 * first[name]
    for rank, error in enumerate(last.values()):
        assert said.history[f"error_{rank}"][-1] == pytest.approx(error**2, rel=0.2)
    moved = {path for path, w in weights(found).items() if (w != before[path]).any()}
    projections = "/query/", "/key/", "/value/", "/attention_output/"
    assert any(not any(name in path for name in projections) for path in moved)
    assert any("/query/" in path for path in moved) == (train == "attention")
    assert all("attention" in path or path.startswith("first/") for path in moved)
    for path, w in weights(model).items():
        np.testing.assert_array_equal(w, teacher[path])
    assert all(w.trainable for w in found.trainable_weights)
    assert len(found.trainable_weights) == len(replace_attention(model, WINDOWED).trainable_weights)


def test_the_layer_with_the_largest_error_gets_its_softmax_back(rng):
    model, x = softmax_model(), inputs(rng, 4, 12, 8)
    found = replace_attention(model, WINDOWED)
    transfer(model, found, x, optimizer=keras.optimizers.Adam(1e-2), epochs=3, verbose=0)
    errors = attention_errors(model, found, x)
    for worst in errors:  # a bare layer, and one in a block
        hybrid = replace_attention(found, SoftmaxAttention(1, 1), where=[worst])
        rest = {path: error for path, error in errors.items() if path != worst}
        assert attention_errors(model, hybrid, x) == pytest.approx(rest, rel=1e-4)
    back = replace_attention(found, SoftmaxAttention(1, 1), where=list(errors))
    assert_close(back(x), model(x))


def test_a_model_stays_as_it_was_while_its_copy_trains(rng):
    model, x = softmax_model(), inputs(rng, 4, 12, 8)
    before = keras.ops.convert_to_numpy(model(x))
    found = replace_attention(model, SoftmaxAttention(1, 1))
    found.compile("adam", "mse")
    found.fit(x, x[..., :3], epochs=2, verbose=0)
    assert_close(model(x), before)


def test_the_errors_are_those_of_the_formula(rng):
    model, x = softmax_model(), inputs(rng, 2, 12, 8)
    found = replace_attention(model, LinearAttention(1, 1), where=["first"])
    y, z = (
        keras.ops.convert_to_numpy(m.get_layer("first")(x, x, use_causal_mask=True))
        for m in (model, found)
    )
    expected = np.sqrt(np.sum((z - y) ** 2) / np.sum(y**2))
    assert attention_errors(model, found, x) == {"first": pytest.approx(expected, rel=1e-4)}
    assert attention_errors(model, replace_attention(model, SegmentedAttention(1, 1, 20)), x) == {
        name: pytest.approx(0, abs=1e-5) for name in ("first", "block/self_attention")
    }


def test_an_interrupted_transfer_goes_on(rng, tmp_path):
    model, x = softmax_model(), inputs(rng, 8, 12, 8)

    class Interrupt(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    found = replace_attention(model, WINDOWED)
    options = {"epochs": 4, "shuffle": False, "verbose": 0, "backup_dir": tmp_path / "backup"}
    with pytest.raises(KeyboardInterrupt):
        transfer(model, found, x, callbacks=[Interrupt()], **options)
    again = replace_attention(model, WINDOWED)
    assert len(transfer(model, again, x, **options).history["loss"]) < 4
    whole = replace_attention(model, WINDOWED)
    transfer(model, whole, x, **{**options, "backup_dir": None})
    assert_close(again(x), whole(x), 1e-5)


def test_routed_attention_is_one_student(rng):
    model, x = softmax_model(), inputs(rng, 2, 12, 8)

    def routed(old):
        sizes = old.num_heads, old.key_dim
        return RoutedAttention(
            [LinearAttention(*sizes, feature_map=HedgehogFeatures()), SegmentedAttention(*sizes, 4)]
        )

    found = replace_attention(model, routed, where=["first"])
    assert set(transfer(model, found, x, verbose=0).history) == {"loss", "error_0"}


@keras.saving.register_keras_serializable("test_transfer")
class Subclassed(keras.Model):
    """A model of a user, with attention in a list."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.parts = [keras.layers.MultiHeadAttention(2, 4, name=n) for n in ("first", "second")]

    def call(self, x):
        for part in self.parts:
            x = part(x, x, use_causal_mask=True)
        return x


def test_the_layers_of_a_subclassed_model_learn(rng):
    model, x = Subclassed(), inputs(rng, 8, 12, 8)
    model(x)
    found = replace_attention(model, WINDOWED)
    first = attention_errors(model, found, x)
    optimizer = keras.optimizers.Adam(1e-2)
    transfer(model, found, x, train="attention", optimizer=optimizer, epochs=30, verbose=0)
    last = attention_errors(model, found, x)
    assert len(first) == 2
    assert all(error < 0.9 * first[name] for name, error in last.items())


def test_a_layer_of_keras_that_stays_as_it_was_is_not_taught(rng):
    x = keras.Input((None, 8))
    y = keras.layers.MultiHeadAttention(2, 4, name="first")(x, x, use_causal_mask=True)
    y = keras.layers.GroupQueryAttention(4, 4, 2, name="second")(y, y, use_causal_mask=True)
    model, x = keras.Model(x, y), inputs(rng, 2, 12, 8)
    for name in ("first", "second"):
        found = replace_attention(model, WINDOWED, where=[name])
        found.trainable = False  # what is frozen is no other layer
        assert list(attention_errors(model, found, x)) == [name]
        found.trainable = True
        stayed = {path: w for path, w in weights(found).items() if not path.startswith(name)}
        said = transfer(model, found, x, train="attention", verbose=0)
        assert set(said.history) == {"loss", "error_0"}
        for path, w in stayed.items():
            np.testing.assert_array_equal(weights(found)[path], w)


@keras.saving.register_keras_serializable("test_transfer")
class InDict(keras.Model):
    """A model of a user, with blocks in a dict."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.parts = {name: TransformerEncoder(8, 2, name=name) for name in ("first", "second")}

    def call(self, x):
        return self.parts["second"](self.parts["first"](x))


@pytest.mark.parametrize("cls", [Subclassed, InDict])
@pytest.mark.parametrize("name", ["first", "second"])
def test_each_layer_of_a_users_model_is_compared_with_its_own_teacher(cls, name, rng):
    model, x = cls(), inputs(rng, 2, 12, 8)
    model(x)
    equal = SegmentedAttention(1, 1, 20)  # one segment holds all steps
    (error,) = attention_errors(model, replace_attention(model, equal, where=[name]), x).values()
    assert error < 1e-5


def test_a_layer_of_two_models_inside_a_model_has_one_error(rng):
    x, block = keras.Input((None, 8)), TransformerEncoder(8, 2, name="block")

    def tower():
        x = keras.Input((None, 8))
        return keras.Model(x, keras.layers.Dense(8)(block(x)))

    model = keras.Model(x, tower()(x) + tower()(x))
    found = replace_attention(model, LinearAttention(1, 1))
    assert list(attention_errors(model, found, inputs(rng, 2, 7, 8))) == ["block/self_attention"]


def test_one_callback_needs_no_list(rng, tmp_path):
    model, x, ends = softmax_model(), inputs(rng, 2, 7, 8), []
    callback = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: ends.append(epoch))
    for options in ({}, {"backup_dir": tmp_path / "backup"}):
        found = replace_attention(model, WINDOWED)
        transfer(model, found, x, callbacks=callback, epochs=2, verbose=0, **options)
    assert ends == [0, 1, 0, 1]


def test_inputs_keep_their_dtype(rng, mixed_bfloat16):
    x = keras.Input((None, 1))
    y = keras.layers.Normalization(mean=1000.0, variance=1.0, dtype="float32")(x)
    attention = SoftmaxAttention(1, 4, dtype="float32", name="attention")
    model, x = keras.Model(x, attention(y, y)), 1000 + inputs(rng, 2, 12, 1)
    found = replace_attention(model, LinearAttention(1, 1))
    error = attention_errors(model, found, x)["attention"]
    still = keras.optimizers.SGD(0.0)
    said = transfer(model, found, x, train="attention", optimizer=still, verbose=0)
    assert said.history["error_0"] == [pytest.approx(error**2, rel=1e-3)]


def frozen(model):
    found = replace_attention(model, WINDOWED, where=["first"])
    found.get_layer("first").trainable = False
    return found


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (
            lambda m: replace_attention(m, LinearAttention(1, 1)),
            {},
            "have no trainable weights for train='new'",
        ),
        (frozen, {"train": "attention"}, "have no trainable weights for train='attention'"),
        (lambda m: replace_attention(m, WINDOWED), {"train": "all"}, "`train` must be 'new' or"),
        (lambda m: replace_attention(m, SoftmaxAttention(1, 1)), {}, "there is nothing to learn"),
        (lambda m: keras.Sequential([keras.Input((None, 8))]), {}, r"what `replace_attention` ret"),
    ],
)
def test_what_cannot_learn_is_named(make, options, message, rng):
    model = softmax_model()
    with pytest.raises(ValueError, match=message):
        transfer(model, make(model), inputs(rng, 1, 4, 8), verbose=0, **options)
