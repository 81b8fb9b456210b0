"""Print the peak memory of forward + gradient of a causal layer with 8 heads of 64, in MiB.

python layer_memory.py LAYER STEPS
"""

import json
import sys

import numpy as np
from measure.layer_memory import gradient_peak

import keras_cosattn as kc

LAYERS = {
    "cosformer": lambda: kc.CosFormerAttention(8, 64, max_length=1 << 20),
    "endless": lambda: kc.CosFormerAttention(8, 64, horizon=4096),
    "linear": lambda: kc.LinearAttention(8, 64),
    "softmax": lambda: kc.SoftmaxAttention(8, 64),
}

name, steps = sys.argv[1], int(sys.argv[2])
x = np.random.default_rng(0).standard_normal((1, steps, 512)).astype("float32")
print(json.dumps(gradient_peak(LAYERS[name](), x)))
