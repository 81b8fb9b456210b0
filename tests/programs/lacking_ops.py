"""Print the names of the models in a folder with an op that a runtime does not have, as JSON.

python lacking_ops.py tflite-runtime|micro FOLDER
"""

import json
import os
import pathlib
import sys


def tflite_runtime():
    from tflite_runtime.interpreter import Interpreter

    return lambda content: Interpreter(model_content=content)


def micro():
    from tflite_micro import runtime

    return lambda content: runtime.Interpreter.from_bytes(content, arena_size=1 << 16)


def what_is_said(load, content):
    """What loading a model prints, in a child: some ops end the process that loads them."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writing, 1), os.dup2(writing, 2)
        try:
            load(content)
        except Exception as error:
            os.write(2, str(error).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


runtime, folder = sys.argv[1:]
load = {"tflite-runtime": tflite_runtime, "micro": micro}[runtime]()
lacking = []
for path in sorted(pathlib.Path(folder).iterdir()):
    said = what_is_said(load, path.read_bytes())
    if b"Didn't find op" in said or b"builtin_code out of range" in said:
        lacking.append(path.name)
print(json.dumps(lacking))
