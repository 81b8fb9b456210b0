"""Step a file once, with the runner for devices.

python step_on_device.py FOLDER_OF_THE_RUNNER MODEL.tflite CHANNELS
"""

import sys

import numpy as np

folder, path, channels = sys.argv[1:]
sys.path.insert(0, folder)
from run_on_device import Device  # noqa: E402  the folder is an argument

device = Device(path)
assert np.isfinite(device.step(np.zeros((1, 1, int(channels)), "float32"))).all()
