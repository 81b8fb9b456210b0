"""Run a file whole on a GPU. Print how far its outputs are from those on the CPU, of the largest.

python serve_on_gpu.py MODEL.tflite
"""

import sys

import numpy as np
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.hardware_accelerator import HardwareAccelerator
from ai_edge_litert.interpreter import Interpreter

model = CompiledModel.from_file(sys.argv[1], hardware_accel=HardwareAccelerator.GPU)
assert model.is_fully_accelerated()
index = model.get_signature_index("serve")
x = np.random.default_rng(0).standard_normal((1, 16, 6)).astype("float32")
takes, gives = model.create_input_buffers(index), model.create_output_buffers(index)
takes[0].write(x)
model.run_by_index(index, takes, gives)
expected = Interpreter(sys.argv[1]).get_signature_runner("serve")(x=x)["y"]
found = gives[0].read(expected.size, np.float32).reshape(expected.shape)
print(np.abs(found - expected).max() / np.abs(expected).max())
