"""Step a stream on tflite-micro over an input, and save the outputs.

python stream_on_micro.py MODEL.tflite X.npy Y.npy
"""

import json
import sys
import zipfile

import numpy as np
from tflite_micro import runtime

path, x, y = sys.argv[1:]
with zipfile.ZipFile(path) as archive:
    about = json.loads(archive.read("keras_cosattn.json"))
micro = runtime.Interpreter.from_file(path, arena_size=about["arena_bytes"])
_, *state = about["signatures"]["step"]["inputs"].values()
state, outputs = [np.zeros(*spec) for spec in state], []
for step in np.load(x)[0][:, None, None]:
    for i, tensor in enumerate([step, *state]):
        micro.set_input(tensor, i)
    micro.invoke()
    output, *state = [micro.get_output(i) for i in range(1 + len(state))]
    outputs.append(output)
np.save(y, np.concatenate(outputs, axis=1))
