"""Step a stream and save its state without end, until the process is killed.

python save_states.py FOLDER_OF_THE_RUNNER MODEL.tflite STATE.npz CHANNELS LIMIT
"""

import sys

import numpy as np

folder, path, state, channels, limit = sys.argv[1:]
sys.path.insert(0, folder)
from run_on_device import Device  # noqa: E402  the folder is an argument

device = Device(path)
while True:
    device.load(state)
    device.step(np.zeros((1, 1, int(channels)), "float32"))
    device.save(state)
    print(device.steps, flush=True)
    if device.steps == int(limit):
        device.reset()
        device.save(state)
