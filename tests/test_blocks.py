"""Layers that compute a sequence in blocks: in graphs, of any length, at any block size."""

import keras
import numpy as np
import pytest
from support import BACKEND, assert_close, value_and_gradients

from keras_cosattn import (
    CompressiveMemoryAttention,
    CosFormerAttention,
    HedgehogFeatures,
    LinearAttention,
    PerformerAttention,
    RecurrentMemoryAttention,
    SegmentedAttention,
    TransformerDecoder,
)
from keras_cosattn.ops import block_size
from keras_cosattn.positions import Rotary, T5Bias, TransformerXL

pytestmark = pytest.mark.skipif(BACKEND != "tensorflow", reason="JAX has no other form than jit")

LENGTH, WIDTH = 50, 6
SMALL = {"chunk_size": 8}
LAYERS = {
    "max_length": lambda: CosFormerAttention(2, 3, max_length=60, **SMALL),
    "the paper's length": lambda: CosFormerAttention(2, 3, **SMALL),
    "horizon": lambda: CosFormerAttention(2, 3, horizon=32, **SMALL),
    "horizon of no blocks": lambda: CosFormerAttention(2, 3, horizon=22, **SMALL),
    "linear": lambda: LinearAttention(4, 3, num_key_value_heads=2, **SMALL),
    "rotary": lambda: LinearAttention(2, 4, position=Rotary(), **SMALL),
    "learned features": lambda: LinearAttention(2, 3, feature_map=HedgehogFeatures(), **SMALL),
    "random features": lambda: PerformerAttention(2, 3, num_random_features=8, seed=1, **SMALL),
    "memory": lambda: CompressiveMemoryAttention(2, 3, segment_length=8),
    "delta rule": lambda: CompressiveMemoryAttention(2, 3, segment_length=8, delta_rule=True),
    "windows": lambda: SegmentedAttention(
        4, 4, num_key_value_heads=2, segment_length=4, look_back=1, position=T5Bias(), block_size=8
    ),
    "summaries": lambda: SegmentedAttention(
        2, 3, segment_length=4, summaries="attention", block_size=12
    ),
    "window of a memory": lambda: RecurrentMemoryAttention(
        2, 4, segment_length=4, memory_length=4, position=TransformerXL(), block_size=8
    ),
    "tokens": lambda: RecurrentMemoryAttention(2, 3, segment_length=8, num_memory_tokens=2),
}
CALLS = {
    "causal": {},
    "padded": {"query_mask": np.arange(LENGTH) < [[LENGTH], [31]]},
    "packed": {"segment_ids": np.sort(np.arange(2 * LENGTH).reshape(2, LENGTH) % 7)},
}


def forms():
    import tensorflow as tf

    any_length = [tf.TensorSpec([None, None, WIDTH])]
    return {
        "graph": tf.function,
        "any length": lambda call: tf.function(call, input_signature=any_length, autograph=False),
        "compiled": lambda call: tf.function(call, jit_compile=True, autograph=False),
    }


def example():
    rng = np.random.default_rng(0)
    return [rng.normal(size=(2, LENGTH, WIDTH)).astype("float32") for _ in range(2)]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.sample(29)
def test_graphs_have_the_values_and_gradients_of_an_eager_call(name, call):
    """A graph loops with a gradient of its own; an eager call is a plain loop."""
    layer, (x, g) = LAYERS[name](), example()
    layer.build(x.shape, x.shape)
    if call == "packed" and "packed" in layer.cannot:
        pytest.skip(f"{name}: {layer.cannot['packed']}")

    def run(x):
        return layer(x, x, use_causal_mask=True, **CALLS[call])

    value, slopes = value_and_gradients(run, g, x)
    for form, compile_ in forms().items():
        if form == "compiled" and call != "causal":
            continue  # XLA compiles for seconds, and masks change nothing in the loop
        actual, actual_slopes = value_and_gradients(compile_(run), g, x)
        assert_close(actual, value)
        assert_close(actual_slopes[0], slopes[0])


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.sample(5)
def test_weights_get_the_gradients_of_an_eager_call(name):
    import tensorflow as tf

    layer, (x, g) = LAYERS[name](), example()
    layer.build(x.shape, x.shape)

    def slopes(x):
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(layer(x, x, use_causal_mask=True) * g)
        found = tape.gradient(total, layer.trainable_weights)
        return tf.concat([tf.reshape(slope, [-1]) for slope in found], axis=0)

    assert_close(tf.function(slopes)(x), slopes(tf.constant(x)))


@pytest.mark.parametrize("name", ["max_length", "horizon", "linear"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.sample(3)
def test_any_sizes_give_the_same(name, call):
    """Also several chunks in a block, as on a GPU, and all at once, as in a TFLite file."""
    (x, g), layer = example(), LAYERS[name]()
    layer.build(x.shape, x.shape)

    def run(x):
        return layer(x, x, use_causal_mask=True, **CALLS[call])

    with block_size.all_at_once():
        value, slopes = value_and_gradients(run, g, x)
    for sizes in ((8, 8), (8, 24), (7, 100), (64, 16)):
        layer.chunk_size, layer.block_size = sizes
        actual, actual_slopes = value_and_gradients(run, g, x)
        assert_close(actual, value)
        assert_close(actual_slopes[0], slopes[0])


@pytest.mark.parametrize("name", ["windows", "summaries", "window of a memory"])
@pytest.mark.parametrize("call", [*CALLS, "both ways"])
@pytest.mark.sample(5)
def test_windows_in_a_loop_and_at_once_give_the_same(name, call):
    (x, g), layer = example(), LAYERS[name]()
    layer.build(x.shape, x.shape)
    options = CALLS.get(call, {})
    if call == "both ways" and "both ways" in layer.cannot:
        pytest.skip(f"{name}: {layer.cannot['both ways']}")

    def run(x):
        return layer(x, x, use_causal_mask=call != "both ways", **options)

    layer.block_size = None
    value, slopes = value_and_gradients(run, g, x)
    for size in (3, 16, 100):
        layer.block_size = size
        actual, actual_slopes = value_and_gradients(run, g, x)
        assert_close(actual, value)
        assert_close(actual_slopes[0], slopes[0])


def test_dropout_drops_the_same_weights_in_both_passes():
    """The gradient of a loop would draw others, so all steps are computed at once."""
    import tensorflow as tf

    x, g = example()
    layer = SegmentedAttention(2, 3, segment_length=4, dropout=0.5, block_size=8, seed=1)
    layer.build(x.shape, x.shape)
    seed = layer.dropout_layer.seed_generator.state

    @tf.function
    def total(x):
        seed.assign(tf.zeros_like(seed))
        return tf.reduce_sum(layer(x, x, use_causal_mask=True, training=True) * g)

    with tf.GradientTape() as tape:
        tape.watch(x := tf.constant(x))
        there = total(x)
    slope = tape.gradient(there, x)
    along = 1e-2 * slope / tf.norm(slope)
    assert_close(total(x + along) - total(x - along), 2 * tf.reduce_sum(slope * along), 1e-3)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.sample(3)
def test_the_graph_of_a_layer_does_not_grow_with_the_length(name):
    import tensorflow as tf

    layer = LAYERS[name]()
    if getattr(layer, "max_length", None):
        layer.max_length = 100_000
    layer.build((1, None, WIDTH), (1, None, WIDTH))

    def count_nodes(length):
        spec = tf.TensorSpec((1, length, WIDTH))
        run = tf.function(lambda x: layer(x, x, use_causal_mask=True), autograph=False)
        nodes = run.get_concrete_function(spec).graph.as_graph_def().node
        # TensorFlow makes a constant of zeros that are few, and fills a tensor if they are many.
        return sum(node.op not in ("Const", "Fill") for node in nodes)

    assert count_nodes(1_024) == count_nodes(65_536)


def test_the_sizes_of_a_device_and_those_that_are_given():
    assert block_size.sizes() == block_size.Sizes(128, 128)
    assert block_size.sizes(32) == block_size.Sizes(32, 32)
    assert block_size.sizes(32, 256) == block_size.Sizes(32, 256)
    assert block_size.windows_at_once(None, 4) is None
    assert block_size.windows_at_once(6, 4) == 8
    with block_size.all_at_once():
        assert block_size.sizes(None, 256) == block_size.Sizes(64, None)
        assert block_size.windows_at_once(6, 4) is None


@pytest.mark.slow
def test_a_block_trains_in_a_loop_without_xla_and_with_it():
    (x, y), losses = example(), []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((None, WIDTH))
        attention = CosFormerAttention(2, 3, horizon=32, dropout=0.1, **SMALL)
        model = keras.Model(inputs, TransformerDecoder(12, attention=attention)(inputs))
        model.compile("adam", "mse", jit_compile=jit_compile)
        losses.append(model.fit(x, y, epochs=3, verbose=0).history["loss"])
        assert losses[-1][-1] < losses[-1][0]
