"""The blocks have KerasHub's signatures, and any attention."""

import keras
import numpy as np
import pytest
from support import BACKEND, assert_close
from variants import inputs, mask_of

from keras_cosattn import (
    CosFormerAttention,
    LinearAttention,
    SoftmaxAttention,
    TransformerDecoder,
    TransformerEncoder,
)

EXACT = 1e-5


def attention(**arguments):
    return CosFormerAttention(2, 3, max_length=40, **arguments)


def dense(x, layer):
    return x @ np.asarray(layer.kernel, "float64") + np.asarray(layer.bias, "float64")


def norm(x, layer):
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + layer.epsilon)


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


@pytest.mark.parametrize("implicit", [False, True])
def test_padding_does_not_reach_the_real_steps(implicit, rng):
    encoder = TransformerEncoder(9, attention=attention())
    decoder = TransformerDecoder(9, attention=attention())
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
    with pytest.raises(ValueError, match="SoftmaxAttention"):
        TransformerEncoder(9, attention=attention())(x, attention_mask=mask)


def test_an_encoder_and_decoder_save_load_and_train_compiled(rng, tmp_path):
    x, y = keras.Input((None, 7)), keras.Input((None, 5))
    encoded = TransformerEncoder(9, attention=LinearAttention(2, 3), dropout=0.1)(y)
    decoder = TransformerDecoder(
        9, attention=CosFormerAttention(2, 3, horizon=8), cross_attention=LinearAttention(2, 3)
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
    graph = tf.function(run).get_concrete_function(*specs).graph
    shapes = [output.shape for op in graph.get_operations() for output in op.outputs]
    squares = [shape for shape in shapes if sum(n == length for n in shape.as_list() or ()) > 1]
    assert bool(squares) == square
