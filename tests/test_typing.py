"""Type checkers find a wrong keyword or string in a user's script, and nothing in right lines."""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SCRIPT = ROOT / "tests" / "programs" / "typed_by_a_user.py"
LINES = SCRIPT.read_text().splitlines()
WRONG = {n for n, line in enumerate(LINES, 1) if line.endswith("# wrong")}


@pytest.fixture(scope="module")
def editable_wheel(tmp_path_factory):
    """What `pip install -e` makes of a copy of the sources: the wheel, and the copy."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "keras_cosattn", source / "keras_cosattn")
    build = "import sys, setuptools.build_meta as m; m.build_editable(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, folder], cwd=source, check=True, capture_output=True
    )
    (wheel,) = folder.glob("*.whl")
    return wheel, source


@pytest.fixture(scope="module")
def python(editable_wheel, tmp_path_factory):
    """The Python of an environment with that wheel, and with the packages of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(editable_wheel[0]) as wheel:
        wheel.extractall(site)
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def mypy(python):
    """The lines of the script in which mypy finds errors."""
    options = ["--ignore-missing-imports", "--python-executable", str(python)]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, SCRIPT],
        cwd=python.parent, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode < 2, done.stdout + done.stderr
    return {int(n) for n in re.findall(r"^.*\.py:(\d+): error: ", done.stdout, re.MULTILINE)}


def pyright(python):
    """The lines of the script in which pyright finds errors."""
    pytest.importorskip("pyright", reason="pyright is not installed")
    (python.parent / "pyrightconfig.json").write_text("{}")  # else it looks for one further up
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", python, SCRIPT],
        cwd=python.parent, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode < 2, done.stdout + done.stderr
    errors = json.loads(done.stdout)["generalDiagnostics"]
    return {error["range"]["start"]["line"] + 1 for error in errors if error["severity"] == "error"}


@pytest.fixture(scope="module", params=[mypy, pyright], ids=lambda checker: checker.__name__)
def reported(request, python):
    return request.param(python)


def test_an_editable_install_is_a_path_that_type_checkers_read(editable_wheel):
    wheel, source = editable_wheel
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".pth"))
        assert pathlib.Path(archive.read(name).decode().strip()).resolve() == source.resolve()


@pytest.mark.parametrize("line", sorted(WRONG), ids=lambda n: LINES[n - 1])
def test_a_wrong_line_is_reported(reported, line):
    assert line in reported


def test_right_lines_are_not_reported(reported):
    assert {n: LINES[n - 1] for n in reported - WRONG} == {}
