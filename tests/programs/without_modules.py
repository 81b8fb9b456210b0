"""Run a script as if some modules were not installed.

python without_modules.py NAME,NAME SCRIPT.py [ARGUMENT ...]
"""

import pathlib
import runpy
import sys

names, script, *_ = sys.argv[1:]
for name in names.split(","):
    sys.modules[name] = None
sys.argv = sys.argv[2:]
sys.path[0] = str(pathlib.Path(script).parent)
runpy.run_path(script, run_name="__main__")
