"""Another attention in a model: equal with softmax, and what cannot be replaced is named."""

import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from converted import EXACT, SOFTMAX, kinds, with_random_weights
from support import assert_close
from variants import inputs

from keras_cosattn import (
    CosFormerAttention,
    LinearAttention,
    LSHAttention,
    Rotary,
    RoutedAttention,
    SoftmaxAttention,
    TransformerDecoder,
    TransformerEncoder,
    WindowedLinearAttention,
)
from keras_cosattn.convert import replace_attention
from keras_cosattn.transformer.activations import gelu_approximate

SAVED = pathlib.Path(__file__).parent / "programs" / "load_and_predict.py"


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
    found = replace_attention(model, routed)
    assert_close(found(data), model(data), EXACT)  # a mean of equals
    assert_close(replace_attention(found, routed)(data), model(data), EXACT)
    assert_close(replace_attention(found, SOFTMAX)(data), model(data), EXACT)


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
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert_close(loaded(data), linear(data), 0)
    assert_close(replace_attention(loaded, SOFTMAX)(data), model(data), EXACT)
