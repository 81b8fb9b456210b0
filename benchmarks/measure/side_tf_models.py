"""`KernelAttention` of tf-models-official, a layer of Keras 2."""

import importlib.metadata

from official.nlp.modeling.layers import KernelAttention

from measure import inputs, tensorflow_calls

device, device_memory = tensorflow_calls.device, tensorflow_calls.device_memory
rates = tensorflow_calls.rates


def versions():
    names = "tf-models-official", "tf-keras", "tensorflow"
    return {f"{name} (peer)": importlib.metadata.version(name) for name in names}


def build(cell, eager=False):
    layer = KernelAttention(
        num_heads=cell["heads"],
        key_dim=cell["size"],
        feature_transform="relu",
        num_random_features=0,  # relu of the queries and keys themselves
    )
    x, g = inputs.steps(cell)
    layer(x[:, :1], x[:, :1])
    layer.set_weights(inputs.weights([w.shape for w in layer.weights], cell["seed"]))
    return tensorflow_calls.build(
        cell, lambda x: layer(x, x), [x], g, layer.trainable_variables, eager
    )
