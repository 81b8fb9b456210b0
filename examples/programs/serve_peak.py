"""Print the largest memory of a process that runs a file once, and before that, in MiB.

python serve_peak.py FILE.tflite LENGTH

It needs NumPy and LiteRT alone.
"""

import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def peak():
    with open("/proc/self/status") as file:  # ru_maxrss begins with the parent's memory
        return int(file.read().split("VmHWM:")[1].split()[0]) / 1024


before = peak()
serve = Interpreter(sys.argv[1], num_threads=1).get_signature_runner("serve")
serve(x=np.full((1, int(sys.argv[2])), 32, "int32"))
print(f"{peak():.0f} ({before:.0f})")
