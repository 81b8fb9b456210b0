"""The gated delta rule of KerasHub, the linear layer of Qwen 3.5."""

import importlib.metadata

import keras
from keras_hub.src.models.qwen3_5.qwen3_5_gated_delta_net import Qwen3_5GatedDeltaNet

from measure import inputs, tensorflow_calls

device, device_memory = tensorflow_calls.device, tensorflow_calls.device_memory
rates = tensorflow_calls.rates


def versions():
    return {"keras-hub (peer)": importlib.metadata.version("keras-hub")}


def build(cell, eager=False):
    keras.utils.set_random_seed(cell["seed"])
    heads, size = cell["heads"], cell["size"]
    layer = Qwen3_5GatedDeltaNet(
        hidden_size=heads * size,
        linear_num_key_heads=heads,
        linear_num_value_heads=heads,
        linear_key_head_dim=size,
        linear_value_head_dim=size,
    )
    x, g = inputs.steps(cell)
    layer.build(x.shape)

    def function(x):
        found = layer(x)
        return found[0] if isinstance(found, tuple) else found

    return tensorflow_calls.build(cell, function, [x], g, layer.trainable_variables, eager)
