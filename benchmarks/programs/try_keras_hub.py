"""Call KerasHub's gated delta net."""

import keras
import keras_hub
from keras_hub.src.models.qwen3_5.qwen3_5_gated_delta_net import Qwen3_5GatedDeltaNet

layer = Qwen3_5GatedDeltaNet(
    hidden_size=16, linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8,
    linear_value_head_dim=8,
)  # fmt: skip
x = keras.random.normal((2, 64, 16), seed=0)
y = layer(x)
y = y[0] if isinstance(y, tuple) else y
assert tuple(y.shape) == tuple(x.shape), y.shape
print("Keras", keras.__version__, "KerasHub", keras_hub.__version__)
