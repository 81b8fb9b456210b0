"""Replace a folder without end, until the process is killed. Print a line after the first time.

There is no model in the folder, and every line that puts it in place takes its time.
"""

import itertools
import sys
import time

from keras_cosattn import atomic_write as files


def slowly(frame, event, argument):
    if frame.f_code.co_filename == files.__file__:
        time.sleep(0.001)
        return slowly


files._flush = lambda path: None
for i in itertools.count():
    with files.atomic_write("m", folder=True) as new:
        for name in ("saved_model.pb", "variables"):
            (new / name).write_text(str(i))
    if i == 0:
        print("exported", flush=True)
        sys.settrace(slowly)
