"""The README's code runs, in the order in which it stands there, and links lead somewhere."""

import pathlib
import re

import pytest
from support import BACKEND
from variants import CANNOT, VARIANTS

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the README's first block exports")
def test_the_code_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names = {}
    for block in blocks:
        exec(block, names)
    assert str(names["stream"].state_bytes) in capsys.readouterr().out.splitlines()
    assert (tmp_path / "model.tflite").exists()


def test_the_two_commands_are_one_line_each():
    commands = re.findall(r"```bash\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(commands) == 2
    assert all(command.count("\n") == 1 for command in commands)


def test_the_table_of_layers_says_what_each_layer_says():
    rows = re.findall(r"^\| `(\w+Attention)\(.*$", README.read_text(), re.MULTILINE)
    assert {cls.__name__ for cls in VARIANTS} == set(rows)
    uses = ("both ways", "causal", "cross", "packed", "stream")
    for line in re.findall(r"^\| `\w+Attention\(.*$", README.read_text(), re.MULTILINE):
        name = re.search(r"\w+Attention", line)[0]
        cells = re.split(r"\s*\|\s*", line.strip("| "))[-len(uses) :]
        refused = {use for use, cell in zip(uses, cells, strict=True) if cell.startswith("no: ")}
        said = [set(cannot) for case, cannot in CANNOT.items() if case.startswith(f"{name}-")]
        assert refused in said, line
        assert all(cell.startswith(("yes", "no: ", "if all do")) for cell in cells), line


def anchors(text):
    """Of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


FOLDERS = [".", "docs", "export", "benchmarks", "benchmarks/results"]


PAGES = [page for folder in FOLDERS for page in sorted((ROOT / folder).glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link
