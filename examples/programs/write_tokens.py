"""Continue a prompt on LiteRT: print the tokens, how many a second, and the peak memory in MiB.

python write_tokens.py FILE.tflite COUNT TOKEN ...

It needs NumPy, LiteRT and the file `run_on_device.py` of this package, in a folder of PYTHONPATH.
"""

import itertools
import sys
import time

from run_on_device import Device


def peak():
    with open("/proc/self/status") as file:  # ru_maxrss begins with the parent's memory
        return int(file.read().split("VmHWM:")[1].split()[0]) / 1024


path, count, *prompt = sys.argv[1:]
tokens = Device(path, threads=2).generate(map(int, prompt))
first = next(tokens)  # after the prompt is read
start = time.perf_counter()
more = list(itertools.islice(tokens, int(count) - 1))
speed = len(more) / (time.perf_counter() - start)
print(first, *more, f"{speed:.1f} {peak():.0f}")
