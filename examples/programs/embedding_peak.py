"""Print the memory that the embedding of one text adds to a process, in MiB.

python embedding_peak.py STUDENT ROWS STEPS

Any other name than that of a student is MiniLM's softmax. Weights are random. It needs Linux and
glibc.
"""

import ctypes
import pathlib
import re
import sys

sys.path.append(str(pathlib.Path(__file__).parent.parent))

import quiet  # isort: skip  # noqa: F401  before TensorFlow
import minilm
import numpy as np
from encoder_students import STUDENTS, student_of
from long_texts import Encoder


def status(name):
    text = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+)", text)[1]) / 1024


way, *shape = sys.argv[1], *map(int, sys.argv[2:])
model = minilm.build(minilm.Sizes())
run = Encoder(student_of(model, way) if way in STUDENTS else model).run
run(np.ones((1, 8), "int32"))  # traces it
ctypes.CDLL(None).malloc_trim(0)  # what was freed would hide what is taken
pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of what came before
before = status("VmRSS")
run(np.ones(shape, "int32"))
print(status("VmHWM") - before)
