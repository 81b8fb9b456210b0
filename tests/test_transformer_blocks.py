"""The blocks have KerasHub's signatures, and any attention."""

import keras
import numpy as np
import pytest
from support import BACKEND, assert_close, value_and_gradients
from variants import inputs, mask_of

from keras_cosattn import (
    CosFormerAttention,
    LinearAttention,
    SoftmaxAttention,
    TransformerDecoder,
    TransformerEncoder,
)

EXACT = 1e-5
SWIGLU = {"activation": "silu", "use_gated_activation": True, "use_bias": False}
LLAMA = {**SWIGLU, "normalization": "rms", "normalize_first": True}
GEMMA = {**LLAMA, "normalize_outputs": True}
OPTIONS = pytest.mark.parametrize("options", [GEMMA, {}], ids=["gemma", "plain"])


def attention(**arguments):
    return CosFormerAttention(2, 3, max_length=40, **arguments)


def array(x):
    return np.asarray(keras.ops.convert_to_numpy(x), "float64")


def dense(x, layer):
    return x @ array(layer.kernel) + (0 if layer.bias is None else array(layer.bias))


def norm(x, layer):
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + layer.epsilon)


def root_mean_square(x, layer):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + layer.epsilon) * array(layer.scale)


def random_weights(block, rng):
    block.set_weights([rng.standard_normal(w.shape) for w in block.weights])


@pytest.mark.parametrize("first", [False, True])
def test_an_encoder_is_the_sum_of_its_parts(first, rng):
    block, x = TransformerEncoder(9, attention=attention(), normalize_first=first), None
    x = inputs(rng, 2, 13, 7)
    found = block(x)

    def attend(x):
        return np.asarray(block.self_attention(x, x), "float64")

    def feed(x):
        return dense(
            np.maximum(dense(x, block.feedforward_intermediate), 0), block.feedforward_output
        )

    for part, scale in ((attend, block.self_attention_norm), (feed, block.feedforward_norm)):
        x = x + part(norm(x, scale)) if first else norm(x + part(x), scale)
    assert_close(found, x, EXACT)


@pytest.mark.parametrize("options", [LLAMA, GEMMA], ids=["llama", "gemma"])
@pytest.mark.parametrize("first", [False, True])
def test_root_mean_squares_and_a_gate_are_the_sum_of_their_parts(first, options, rng):
    options = {**options, "normalize_first": first, "layer_norm_epsilon": 0.1}
    block, x = TransformerEncoder(9, attention=attention(), **options), inputs(rng, 2, 13, 7)
    block.build(x.shape)
    random_weights(block, rng)
    found = block(x)

    def attend(x):
        return np.asarray(block.self_attention(x, x), "float64")

    def feed(x):
        gate = dense(x, block.feedforward_gate)
        swish = gate / (1 + np.exp(-gate))
        return dense(swish * dense(x, block.feedforward_intermediate), block.feedforward_output)

    for part, name in ((attend, "self_attention"), (feed, "feedforward")):
        scale = getattr(block, f"{name}_norm")
        y = part(root_mean_square(x, scale) if first else x)
        if block.normalize_outputs:
            y = root_mean_square(y, getattr(block, f"{name}_output_norm"))
        x = x + y if first else root_mean_square(x + y, scale)
    assert_close(found, x, EXACT)


@pytest.mark.parametrize("activation", ["relu", "gelu", "sigmoid", "linear"])
def test_any_activation_can_be_that_of_the_gate(activation, rng):
    options = {"activation": activation, "use_gated_activation": True}
    block, x = TransformerDecoder(9, num_heads=2, **options), inputs(rng, 2, 5, 8)
    block.build(x.shape)
    random_weights(block, rng)  # biases too
    gate = array(keras.activations.get(activation)(dense(x, block.feedforward_gate)))
    inner = gate * dense(x, block.feedforward_intermediate)
    assert_close(block._feed(x), dense(inner, block.feedforward_output), EXACT)


@OPTIONS
@pytest.mark.parametrize("implicit", [False, True])
def test_padding_does_not_reach_the_valid_steps(implicit, options, rng):
    encoder = TransformerEncoder(9, attention=attention(), **options)
    decoder = TransformerDecoder(9, attention=attention(), **options)
    x, y = inputs(rng, 3, 13, 7), inputs(rng, 3, 11, 5)
    x_mask, y_mask = mask_of((13, 4, 8), 13, "left"), mask_of((2, 11, 7), 11)
    x[~x_mask], y[~y_mask] = 0, 0
    if implicit:
        masked = keras.layers.Masking()
        found = decoder(masked(x), encoder(masked(y)))
    else:
        encoded = encoder(y, padding_mask=y_mask)
        found = decoder(x, encoded, decoder_padding_mask=x_mask, encoder_padding_mask=y_mask)
    for i in range(3):
        alone = decoder(x[i : i + 1, x_mask[i]], encoder(y[i : i + 1, y_mask[i]]))
        assert_close(np.asarray(found)[i : i + 1][:, x_mask[i]], alone, EXACT)


def test_a_decoder_does_not_see_the_future_unless_told_to(rng):
    decoder, x = TransformerDecoder(9, attention=attention()), inputs(rng, 2, 13, 7)
    changed = x.copy()
    changed[:, 8:] += 1

    def leaks(**options):
        difference = np.asarray(decoder(x, **options)) - np.asarray(decoder(changed, **options))
        return np.abs(difference[:, :8]).max() > 1e-6

    assert not leaks()
    assert leaks(use_causal_mask=False)


def test_each_block_has_its_own_copy_of_the_attention(rng):
    layer = attention(dropout=0.2)
    blocks = [TransformerEncoder(9, attention=layer) for _ in range(2)]
    for block in blocks:
        block(inputs(rng, 2, 13, 7))
    assert not layer.built
    kernels = [np.asarray(block.self_attention.query_dense.kernel) for block in blocks]
    assert np.abs(kernels[0] - kernels[1]).max() > 0
    assert blocks[0].self_attention.dropout == 0.2


def test_without_attention_it_is_softmax_as_in_keras_hub(rng):
    block = TransformerEncoder(9, num_heads=2)
    outputs, scores = block(inputs(rng, 2, 13, 8), return_attention_scores=True)
    assert isinstance(block.self_attention, SoftmaxAttention)
    assert block.self_attention.key_dim == 4
    assert outputs.shape == (2, 13, 8)
    assert_close(np.asarray(scores).sum(axis=-1), np.ones((2, 2, 13)), EXACT)


def test_a_full_attention_mask_reaches_softmax_and_is_refused_by_linear(rng):
    x, mask = inputs(rng, 2, 13, 8), np.tri(13, dtype=bool)[None].repeat(2, axis=0)
    block = TransformerEncoder(9, num_heads=2)
    changed = x.copy()
    changed[:, 8:] += 1
    before, after = (np.asarray(block(data, attention_mask=mask)) for data in (x, changed))
    assert_close(after[:, :8], before[:, :8], EXACT)
    mask[:, 5, 2] = False  # no product of padding and causality
    with pytest.raises(ValueError, match="SoftmaxAttention"):
        TransformerEncoder(9, attention=attention())(x, attention_mask=mask)


@OPTIONS
@pytest.mark.sample(2)
def test_an_encoder_and_decoder_save_load_and_train_compiled(options, rng, tmp_path):
    x, y = keras.Input((None, 7)), keras.Input((None, 5))
    encoded = TransformerEncoder(9, attention=LinearAttention(2, 3), dropout=0.1, **options)(y)
    decoder = TransformerDecoder(
        9,
        attention=CosFormerAttention(2, 3, horizon=8),
        cross_attention=LinearAttention(2, 3),
        **options,
    )
    model = keras.Model([x, y], decoder(x, encoded))
    data = [inputs(rng, 4, 13, 7), inputs(rng, 4, 11, 5)]
    model.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=True)
    losses = model.fit(data, data[0], epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_close(loaded(data), model(data), 0)


def test_symbolic_shapes_are_the_real_ones(rng):
    block, x = TransformerEncoder(9, num_heads=2), keras.Input((13, 8))
    symbolic = block(x, return_attention_scores=True)
    real = block(inputs(rng, 2, 13, 8), return_attention_scores=True)
    assert [s.shape[1:] for s in symbolic] == [r.shape[1:] for r in real]
    assert block(keras.Input((None, 8))).shape == (None, None, 8)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="reads the shapes in a TensorFlow graph")
@pytest.mark.parametrize("square", [False, True])
def test_no_square_tensor_is_made_by_a_linear_block(square):
    import tensorflow as tf

    layer = SoftmaxAttention(2, 4) if square else CosFormerAttention(2, 4, horizon=512)
    block, length = TransformerDecoder(8, attention=layer), 2_000

    def run(x, mask):
        with tf.GradientTape() as tape:
            y = block(x, decoder_padding_mask=mask)
        return tape.gradient(y, block.trainable_variables)

    specs = tf.TensorSpec((1, length, 8)), tf.TensorSpec((1, length), "bool")
    graph = tf.function(run, autograph=False).get_concrete_function(*specs).graph
    shapes = [output.shape for op in graph.get_operations() for output in op.outputs]
    squares = [shape for shape in shapes if sum(n == length for n in shape.as_list() or ()) > 1]
    assert bool(squares) == square


def names(block):
    return ["/".join(weight.path.split("/")[-2:]) for weight in block.weights]


ATTENTION = [
    f"{part}/{weight}"
    for part in ("query", "key", "value", "attention_output")
    for weight in ("kernel", "bias")
]
DENSE = [
    f"feedforward_{part}/{w}" for part in ("intermediate", "output") for w in ("kernel", "bias")
]


def norm_names(part):
    return [f"{part}_norm/gamma", f"{part}_norm/beta"]


def test_the_order_of_the_weights_is_that_of_keras_hub(rng):
    x, y = inputs(rng, 2, 4, 8), inputs(rng, 2, 3, 5)
    encoder, decoder, cross = (
        cls(9, num_heads=2) for cls in (TransformerEncoder, TransformerDecoder, TransformerDecoder)
    )
    encoder(x), decoder(x), cross(x, y)
    own = ATTENTION + norm_names("self_attention")
    assert names(encoder) == own + norm_names("feedforward") + DENSE
    assert names(decoder) == own + DENSE + norm_names("feedforward")
    other = ATTENTION + norm_names("cross_attention")
    assert names(cross) == own + other + DENSE + norm_names("feedforward")


def test_a_gate_has_the_place_and_name_that_it_has_in_keras_hubs_llama(rng):
    decoder = TransformerDecoder(9, num_heads=2, **LLAMA)
    decoder(inputs(rng, 2, 4, 8))
    parts = ("query", "key", "value", "attention_output", "self_attention_norm")
    parts += ("feedforward_intermediate", "feedforward_gate", "feedforward_output")
    kernels = [f"{part}/{'scale' if 'norm' in part else 'kernel'}" for part in parts]
    assert names(decoder) == [*kernels, "feedforward_norm/scale"]


@pytest.mark.parametrize("cls", [TransformerEncoder, TransformerDecoder])
def test_the_options_are_saved_and_those_of_an_older_file_are_the_defaults(cls):
    block = cls(9, attention=attention(), **GEMMA)
    config = block.get_config()
    assert {name: config[name] for name in GEMMA} == GEMMA
    assert cls.from_config(config).get_config() == config
    plain = cls(9, attention=attention(), name=block.name).get_config()
    added = {"normalization": "layer", "use_gated_activation": False, "use_bias": True}
    added |= {"normalize_outputs": False}
    older = {name: value for name, value in plain.items() if name not in added}
    assert cls.from_config(older).get_config() == {**older, **added}


def test_a_given_attention_has_a_use_bias_of_its_own(rng):
    for layer, biases in ((attention(), 4), (attention(use_bias=False), 0), (None, 0)):
        block = TransformerEncoder(9, num_heads=2, attention=layer, **LLAMA)
        block(inputs(rng, 2, 4, 8))
        assert sum(weight.name == "bias" for weight in block.weights) == biases


def test_a_normalization_that_there_is_not_is_refused():
    with pytest.raises(
        ValueError, match=r"`normalization` must be one of \('layer', 'rms'\).*='batch'"
    ):
        TransformerDecoder(9, num_heads=2, normalization="batch")


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_root_mean_squares_and_a_gate_in_half_precision_are_near_float32(dtype, rng):
    """Queries and keys are small: exp(-300) is wrong in all digits if -300 has 8 bits."""
    x = 300 * inputs(rng, 2, 13, 8)  # squares beyond the range of float16
    layer, options = LinearAttention(2, 4), {**LLAMA, "normalize_first": False}
    blocks = [
        TransformerEncoder(9, attention=layer, dtype=d, **options) for d in ("float32", dtype)
    ]
    for block in blocks:
        block.build(x.shape)
    for projection in (blocks[0].self_attention.query_dense, blocks[0].self_attention.key_dense):
        projection.kernel.assign(projection.kernel / 300)
    blocks[1].set_weights(blocks[0].get_weights())
    exact, found = (array(keras.ops.cast(block(x), "float32")) for block in blocks)
    assert keras.backend.standardize_dtype(blocks[1](x).dtype) == dtype.removeprefix("mixed_")
    assert_close(found, exact, 5e-3 if dtype == "mixed_float16" else 3e-2)  # 11 and 8 bits


@pytest.mark.parametrize("cross", [False, True])
def test_each_dropout_has_a_seed_of_its_own(cross, rng):
    block, x = TransformerDecoder(9, num_heads=2, dropout=0.1), inputs(rng, 2, 4, 8)
    block(x, x) if cross else block(x)
    assert len(block.non_trainable_variables) == (5 if cross else 3)


def test_the_output_shape_is_known_without_a_call(rng):
    encoder, decoder = TransformerEncoder(9, num_heads=2), TransformerDecoder(9, num_heads=2)
    assert encoder.compute_output_shape((2, 13, 8)) == (2, 13, 8)
    assert decoder.compute_output_shape((2, None, 8), (2, 5, 7)) == (2, None, 8)
    layer, x = keras.layers.TimeDistributed(encoder), inputs(rng, 2, 3, 13, 8)
    found = layer(x)
    assert layer(keras.Input((3, 13, 8))).shape == (None, 3, 13, 8)
    assert_close(np.asarray(found)[:, 1], encoder(x[:, 1]), EXACT)


@pytest.mark.parametrize("cls", [TransformerEncoder, TransformerDecoder])
def test_packed_sequences_are_those_alone(cls, rng):
    block, x = cls(9, attention=LinearAttention(2, 3)), inputs(rng, 2, 13, 7)
    ids = np.repeat([[4, 0, 4]], [3, 6, 4], axis=1).repeat(2, axis=0)
    parts = [block(x[:, a:b]) for a, b in ((0, 3), (3, 9), (9, 13))]
    assert_close(block(x, segment_ids=ids), np.concatenate(parts, axis=1), EXACT)


def test_packed_sequences_need_to_know_their_part_of_the_encoder(rng):
    block, x, y = TransformerDecoder(9, num_heads=2), inputs(rng, 2, 6, 8), inputs(rng, 2, 5, 7)
    ids = np.repeat([[0, 1]], [2, 4], axis=1).repeat(2, axis=0)
    block(x, y)
    with pytest.raises(ValueError, match=r"`segment_ids` do not say.*`encoder_attention_mask`"):
        block(x, y, segment_ids=ids)
    mask = (ids[:, :, None] == 0) == (np.arange(5) < 3)  # (b, t, s)
    found = block(x, y, segment_ids=ids, encoder_attention_mask=mask)
    parts = block(x[:, :2], y[:, :3]), block(x[:, 2:], y[:, 3:])
    assert_close(found, np.concatenate(parts, axis=1), EXACT)


@OPTIONS
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.sample(3)
def test_masked_steps_may_hold_anything(bad, implicit, options, rng):
    encoder = TransformerEncoder(9, attention=attention(), **{"normalize_first": True, **options})
    decoder = TransformerDecoder(9, attention=attention(), **options)
    x, y = inputs(rng, 3, 6, 7), inputs(rng, 3, 5, 7)
    x_mask, y_mask = mask_of((6, 2, 4), 6, "left"), mask_of((2, 5, 4), 5)
    blocks = [encoder, decoder]
    decoder(x, encoder(y))
    variables = [v for block in blocks for v in block.trainable_variables]

    def run(fill):
        clean = [np.where(m[..., None], a, fill) for a, m in ((x, x_mask), (y, y_mask))]

        def outputs(*weights):
            for variable, weight in zip(variables, weights, strict=True):
                variable.assign(weight)
            a, b = (keras.ops.convert_to_tensor(z, "float32") for z in clean)
            if implicit:
                a, b = (mark(z, m) for z, m in ((a, x_mask), (b, y_mask)))
                return decoder(a, encoder(b))
            encoded = encoder(b, padding_mask=y_mask)
            return decoder(a, encoded, decoder_padding_mask=x_mask, encoder_padding_mask=y_mask)

        g = np.ones((3, 6, 7), "float32")
        return value_and_gradients(outputs, g, *[v.numpy() for v in variables])

    (expected, exact), (found, gradients) = run(0.0), run(bad)
    assert_close(found, expected, EXACT)
    for gradient, other in zip(gradients, exact, strict=True):
        assert_close(gradient, other, EXACT)


def mark(x, mask):
    """`x` with an implicit mask."""

    class Marked(keras.layers.Layer):
        def call(self, x):
            return x * 1

        def compute_mask(self, x, previous_mask):
            return keras.ops.convert_to_tensor(mask)

    layer = Marked()
    layer.supports_masking = True
    return layer(x)


def test_an_attention_keeps_a_dtype_policy_of_its_own(rng):
    x = inputs(rng, 2, 5, 8)

    def policies(attention_dtype, **block_dtype):
        layer = attention() if attention_dtype is None else attention(dtype=attention_dtype)
        block = TransformerEncoder(9, attention=layer, **block_dtype)
        block(x)
        again = TransformerEncoder.from_config(block.get_config())
        assert again.get_config() == block.get_config()
        again(x)
        assert again.self_attention.dtype_policy == block.self_attention.dtype_policy
        return block.self_attention.dtype_policy.name, block(x).dtype

    assert policies("mixed_float16") == ("mixed_float16", "float32")
    assert policies(None, dtype="mixed_float16") == ("mixed_float16", "float16")
    assert policies("bfloat16", dtype="mixed_float16") == ("bfloat16", "float16")
    assert policies(None) == ("float32", "float32")


def test_a_dtype_policy_is_kept_when_another_is_global(rng):
    block = TransformerEncoder(9, attention=attention(dtype="mixed_float16"), dtype="float32")
    config = block.get_config()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        again = TransformerEncoder.from_config(config)
    finally:
        keras.config.set_dtype_policy("float32")
    again(inputs(rng, 2, 5, 8))
    assert again.self_attention.dtype_policy.name == "mixed_float16"


@pytest.mark.parametrize(
    "cls", [pytest.param(TransformerEncoder, marks=pytest.mark.slow), TransformerDecoder]
)
def test_a_loaded_model_can_be_quantised_and_tuned(cls, rng, tmp_path):
    x, data = keras.Input((None, 8)), inputs(rng, 2, 5, 8)
    model = keras.Model(x, cls(9, attention=LinearAttention(2, 3), dropout=0.1)(x))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.quantize("int8")  # before any call, which would build what loading did not
    assert_close(loaded(data), model(data), 0.05)  # int8 keeps 7 bits
    for layer in loaded._flatten_layers():
        if hasattr(layer, "enable_lora"):
            layer.enable_lora(2)
    assert len(loaded.trainable_variables) == 6 * 2 + 4 + 6  # a, b; norms; biases
    assert_close(loaded(data), model(data), 0.05)


@pytest.mark.slow
def test_a_gate_can_be_quantised(rng):
    x, data = keras.Input((None, 8)), inputs(rng, 2, 5, 8)
    model = keras.Model(x, TransformerDecoder(9, attention=LinearAttention(2, 3), **LLAMA)(x))
    before = model(data)
    model.quantize("int8")
    assert_close(model(data), before, 0.05)  # int8 keeps 7 bits


@pytest.mark.parametrize("cls", [TransformerEncoder, TransformerDecoder])
def test_integers_are_read_as_floats(cls, rng):
    block, x = cls(9, attention=attention()), rng.integers(0, 9, (2, 5, 7)).astype("int16")
    assert_close(block(x), block(x.astype("float32")), 0)


def test_a_block_says_what_is_wrong_with_its_inputs(rng):
    x, y = inputs(rng, 2, 6, 8), inputs(rng, 2, 5, 7)
    with pytest.raises(ValueError, match=r"`inputs` must have shape \(batch, steps, features\)"):
        TransformerEncoder(9, num_heads=2)(x[0])
    with pytest.raises(ValueError, match=r"`padding_mask` must have shape.*\(2, 6\).*\(2, 5\)"):
        TransformerEncoder(9, num_heads=2)(x, padding_mask=np.ones((2, 5), "bool"))
    with pytest.raises(ValueError, match=r"must return the width of its input, 8.*=5"):
        TransformerEncoder(9, attention=attention(output_shape=5))(x)
    decoder = TransformerDecoder(9, num_heads=2)
    decoder(x, y)
    with pytest.raises(ValueError, match=r"needs one in every call"):
        decoder(x)
    with pytest.raises(ValueError, match=r"`encoder_sequence` must have shape"):
        decoder(x, y[0])
    with pytest.raises(ValueError, match=r"`encoder_padding_mask` must have shape.*\(2, 5\)"):
        decoder(x, y, encoder_padding_mask=np.ones((2, 6), "bool"))


def test_a_mask_may_be_a_list(rng):
    block, x = TransformerEncoder(9, num_heads=2), inputs(rng, 2, 3, 8)
    mask = [[True, True, False], [True, False, False]]
    assert_close(block(x, padding_mask=mask), block(x, padding_mask=np.array(mask)), 0)
