"""A user's script for type checkers: exactly the lines that end in `# wrong` are errors."""

import keras
import numpy as np

from keras_cosattn import (
    CosFormerAttention,
    LinearAttention,
    RoutedAttention,
    SegmentedAttention,
    Streaming,
    TransformerDecoder,
    TransformerEncoder,
)
from keras_cosattn.export import to_tflite

x = keras.Input((None, 8))
mask = keras.Input((None,), dtype="bool")

CosFormerAttention(num_heads=4, key_dim=8, horizon=256, dropout=0.1, dtype="mixed_float16")
CosFormerAttention(num_heads="four", key_dim=8)  # wrong
CosFormerAttention(num_heads=4, key_dim=8, horizonn=256)  # wrong
CosFormerAttention(num_heads=4, key_dim=8, dropuot=0.1)  # wrong

LinearAttention(2, 4, feature_map="elu+1", name="linear")
LinearAttention(2, 4, feature_map="elu+1", nane="linear")  # wrong

attention = SegmentedAttention(2, 4, segment_length=16, num_key_value_heads=1)
y = attention(x, x, value_mask=mask, use_causal_mask=True)
y = attention(x, x, maks=mask, use_causal_mask=True)  # wrong

routed = RoutedAttention([attention, LinearAttention(2, 4)], top_k=1)
y, routes = routed(x, x, return_route_weights=True)
y, routes = routed(x, x, return_rout_weights=True)  # wrong

block = TransformerDecoder(16, attention=attention, normalize_first=True)
y = block(x, decoder_padding_mask=mask)
y = block(x, decoder_paddin_mask=mask)  # wrong
TransformerEncoder(16, attention=attention, dropout=0.1)
TransformerEncoder(16, attention=attention, dropuot=0.1)  # wrong
TransformerEncoder(16, attention=attention, normalization="rms", use_gated_activation=True)
TransformerEncoder(16, attention=attention, normalization="rsm")  # wrong
TransformerDecoder(16, attention=attention, normalization="rms", use_bias=False, name="llama")
TransformerDecoder(16, attention=attention, normalization="batch")  # wrong
TransformerDecoder(16, attention=attention, use_gated_activations=True)  # wrong

model = keras.Model(x, keras.layers.Dense(3)(y))
report = to_tflite(model, "model.tflite", quantize="int8", target="litert")
report = to_tflite(model, "model.tflite", quantize="int4")  # wrong
report = to_tflite(model, "model.tflite", target="litter")  # wrong
print(report.state_bytes)
print(report.state_byte)  # wrong

stream = Streaming(model)
print(stream.state_bytes)
print(stream.state_byte)  # wrong
y, state = stream(np.zeros((2, 1, 8)), stream.initial_state(batch_size=2))
state = stream.initial_state(batch_sise=2)  # wrong
