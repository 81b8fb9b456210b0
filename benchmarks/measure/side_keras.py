"""This package and Keras itself, on the backend that `KERAS_BACKEND` names."""

import importlib.metadata

import keras
import numpy as np

import keras_cosattn
from keras_cosattn import attention
from measure import inputs
from measure.cells import layer_options

BACKEND = keras.backend.backend()
if BACKEND == "jax":
    from measure import jax_calls as calls
else:
    from measure import tensorflow_calls as calls

device, device_memory, rates = calls.device, calls.device_memory, calls.rates


def versions():
    found = {name: importlib.metadata.version(name) for name in (BACKEND, "keras")}
    return {**found, "keras_cosattn": keras_cosattn.__version__}


def build(cell, eager=False):
    """A run of a cell, and how to read what it found as a list of arrays."""
    if cell["level"] == "core":
        *qkv, g = inputs.heads(cell)
        return calls.build(cell, core(cell), qkv, g, eager=eager)
    if cell["level"] == "layer":
        return build_layer(cell, eager)
    return build_model(cell)


# The operation alone, on given queries, keys and values.


def cosformer(q, k, v, causal, max_length, **options):
    from keras_cosattn.ops import causal_cosine_attention, cosine_attention

    if causal:
        return causal_cosine_attention(q, k, v, max_length=max_length, **options)[0]
    return cosine_attention(q, k, v, max_length=max_length)


def linear(q, k, v, causal, **options):
    from keras_cosattn.ops import elu_plus_one, linear_attention

    q, k = elu_plus_one(q), elu_plus_one(k)
    return linear_attention(q, k, v, causal=causal, **(options if causal else {}))[0]


def fading(q, k, v, gates):
    from keras_cosattn.ops import decayed_attention

    b, _, h, d = q.shape
    k = keras.ops.normalize(k, axis=-1)
    state = {"sums": keras.ops.zeros((b, h, d, v.shape[3]))}
    return decayed_attention({"q": d**-0.5 * q, "k": k, "v": v, **gates}, state)[0]


def core(cell):
    what, n, causal, options = cell["what"], cell["n"], cell["causal"], cell["options"]
    if what in ("softmax", "softmax_cudnn"):
        return softmax(cell)
    if what == "softmax_products":
        from keras_cosattn.ops import fused

        return lambda q, k, v: fused.attend(q, k, v, causal=causal)
    if what == "windows":
        from keras_cosattn.ops.windows import window_attention

        return lambda q, k, v: window_attention(q, k, v, causal=causal, **options)[0]
    if what == "cosformer":
        return lambda q, k, v: cosformer(q, k, v, causal, n, **options)
    if what == "cosformer_packed":
        ids = inputs.segment_ids(cell)
        return lambda q, k, v: cosformer(q, k, v, causal, n, segment_ids=ids, **options)
    if what == "cosformer_horizon":
        horizon = max(2, n // 4)
        return lambda q, k, v: cosformer(q, k, v, True, None, horizon=horizon, **options)
    if what != "linear":
        gates = inputs.gates(cell)
        return lambda q, k, v: fading(q, k, v, gates)
    return lambda q, k, v: linear(q, k, v, causal, **options)


def softmax(cell):
    """Keras's own core, or on JAX the kernel of cuDNN."""
    if cell["what"] == "softmax_cudnn":
        from jax.nn import dot_product_attention

        return lambda q, k, v: dot_product_attention(
            q, k, v, is_causal=cell["causal"], implementation="cudnn"
        )
    return lambda q, k, v: keras.ops.dot_product_attention(q, k, v, is_causal=cell["causal"])


# A whole layer.


def make_layer(cell):
    name, options = layer_options(cell["what"], cell["n"])
    heads, size = cell["heads"], cell["size"]
    shared = max(1, heads // 4)
    if name == "MultiHeadAttention":
        return keras.layers.MultiHeadAttention(heads, size)
    if name == "GroupQueryAttention":
        return keras.layers.GroupQueryAttention(size, heads, shared)
    if cell["what"] == "grouped":
        options = {"num_key_value_heads": shared}
    if cell["what"] == "kernel":
        options = {"feature_map": lambda x: keras.ops.relu(x * size**-0.25) + 1e-3}
    options = {**options, **cell["options"]}
    paths = [
        getattr(attention, path)(heads, size, **arguments)
        for path, arguments in options.pop("paths", ())
    ]
    return getattr(attention, name)(*([paths] if paths else [heads, size]), **options)


def build_layer(cell, eager):
    keras.utils.set_random_seed(cell["seed"])
    half = cell["dtype"] != "float32"
    keras.config.set_dtype_policy(f"mixed_{cell['dtype']}" if half else "float32")
    layer = make_layer(cell)
    x, g = inputs.steps(cell)
    layer.build(x.shape, x.shape)
    if len(layer.weights) == 8:  # the four projections, which other sides have too
        layer.set_weights(inputs.weights([w.shape for w in layer.weights], cell["seed"]))
    options = {"use_causal_mask": True} if cell["causal"] else {}
    if BACKEND == "tensorflow":
        variables = layer.trainable_variables
        return calls.build(cell, lambda x: layer(x, x, **options), [x], g, variables, eager)
    trainable = [w.value for w in layer.trainable_variables]
    rest = [w.value for w in layer.non_trainable_variables]

    def function(x, *trainable):
        return layer.stateless_call(trainable, rest, x, x, **options)[0]

    return calls.build(cell, function, [x], g, trainable, eager)


# A whole model.


def make_attention(cell):
    """The layer of a block; the rows of a model are named as those of the core."""
    heads, size, n = cell["heads"], cell["size"], cell["n"]
    own = {
        "cosformer": ("CosFormerAttention", {"max_length": n}),
        "linear": ("LinearAttention", {}),
        "softmax": ("SoftmaxAttention", {}),
        "performer": ("PerformerAttention", {"num_random_features": 64}),
        "low_rank": ("LowRankAttention", {"max_length": n, "rank": 64}),
        "lsh": ("LSHAttention", {"num_hashes": 2, "num_buckets": n // 32, "bucket_size": 64}),
        "segmented": ("SegmentedAttention", {"segment_length": 128, "look_back": 1}),
    }
    name, options = own[cell["what"]]
    return getattr(attention, name)(heads, size, **options)


def make_model(cell):
    """Bytes to the next byte where causal, else to two logits of the whole text."""
    keras.utils.set_random_seed(cell["seed"])
    width = cell["heads"] * cell["size"]
    x = tokens = keras.Input((cell["n"],), dtype="int32")
    mask_zero = cell["options"].get("mask_zero", False)
    x = keras.layers.Embedding(256, width, mask_zero=mask_zero)(x)
    block = keras_cosattn.TransformerDecoder if cell["causal"] else keras_cosattn.TransformerEncoder
    for _ in range(cell["options"]["blocks"]):
        x = block(cell["options"]["hidden"], attention=make_attention(cell), normalize_first=True)(
            x
        )
    x = keras.layers.LayerNormalization()(x)
    x = x if cell["causal"] else keras.layers.GlobalAveragePooling1D()(x)
    model = keras.Model(tokens, keras.layers.Dense(256 if cell["causal"] else 2)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, jit_compile=cell["xla"])
    return model


def batches(cell):
    """Inputs and targets of all steps of one run."""
    steps = cell["options"]["steps"]
    shape = {**cell, "batch": steps * cell["batch"]}
    if cell["options"].get("text"):
        from measure.text import speeches

        x = speeches(shape["batch"], cell["n"], cell["seed"])
    else:
        x = inputs.tokens(shape)
    y = np.roll(x, -1, axis=1) if cell["causal"] else x[:, 0] % 2
    return x, y


def build_model(cell):
    """One `fit` or `predict` over all steps. What it finds is the first loss, or the outputs."""
    from measure import datasets  # needs TensorFlow

    model, (x, y), first = make_model(cell), batches(cell), []
    labelled, unlabelled = (datasets.in_order(given, cell["batch"]) for given in ((x, y), x))

    def fit():
        history = model.fit(labelled, shuffle=False, verbose=0)
        first[:] = first or [np.float32(history.history["loss"][0])]
        return first

    def predict():
        return [model.predict(unlabelled, verbose=0)]

    return (fit if cell["gradient"] else predict), lambda found: found
