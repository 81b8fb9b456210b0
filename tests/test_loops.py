"""The loops for devices compile, run, and hold streams to their limit.

They are compiled against the stand-ins in `tests/stubs`, which compute a running sum.
"""

import pathlib
import re
import shutil
import subprocess

import pytest
from runtimes import UnavailableError, environment, kotlin_compiler

TESTS = pathlib.Path(__file__).parent
STUBS = TESTS / "stubs"
EXPORT = TESTS.parent / "export"
LOOPS = EXPORT / "loops"


def said(*command):
    """What a command printed; if it fails, all that it printed is the error."""
    found = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout.strip()


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler `g++`")
@pytest.mark.parametrize("name", ["stream", "micro_stream"])
def test_the_loops_in_cpp_run_and_hold_streams_to_their_limit(name, tmp_path):
    strict = ["-std=c++17", "-Wall", "-Wextra", "-Werror"]
    program = tmp_path / name
    said("g++", *strict, f"-I{STUBS}", f"-I{LOOPS}", STUBS / f"{name}_test.cc", "-o", program)
    assert said(program) == "passed"


@pytest.mark.slow
def test_the_loop_in_kotlin_runs_and_holds_streams_to_their_limit(tmp_path):
    compiler, why_not = kotlin_compiler()
    if compiler is None:
        pytest.skip(why_not)
    sources = [LOOPS / "Stream.kt", STUBS / "Interpreter.kt", STUBS / "StreamTest.kt"]
    said("bash", compiler, *sources, "-Werror", "-include-runtime", "-d", tmp_path / "test.jar")
    assert said("java", "-cp", tmp_path / "test.jar", "StreamTestKt") == "passed"


@pytest.mark.skipif(shutil.which("swiftc") is None, reason="there is no Swift compiler `swiftc`")
def test_the_loop_in_swift_compiles(tmp_path):
    module = ["-module-name", "TensorFlowLite", STUBS / "TensorFlowLite.swift"]
    said("swiftc", "-emit-module", *module, "-o", tmp_path / "TensorFlowLite.swiftmodule")
    said("swiftc", "-typecheck", f"-I{tmp_path}", LOOPS / "Stream.swift")


@pytest.mark.slow
def test_the_loop_in_swift_parses():
    try:
        python = environment("swift-syntax", "tree-sitter", "py-tree-sitter-swift")
    except UnavailableError as reason:
        pytest.skip(str(reason))
    assert said(python, TESTS / "programs" / "swift_syntax.py", LOOPS / "Stream.swift") == ""


def test_the_readme_links_every_loop():
    links = re.findall(r"\]\((?!http)([^)#]+)", (EXPORT / "README.md").read_text())
    assert {f"loops/{path.name}" for path in LOOPS.iterdir()} <= set(links)
