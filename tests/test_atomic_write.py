"""What is written whole or not at all, and what is never replaced."""

import os
import pathlib
import stat
import subprocess
import sys

import pytest

from keras_cosattn.atomic_write import atomic_write


def test_the_umask_decides_the_modes_of_files_and_folders(tmp_path):
    tests = pathlib.Path(__file__).parent
    subprocess.run(
        [sys.executable, tests / "programs" / "write_with_umask.py"],
        cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": str(tests.parent)},
    )  # fmt: skip
    modes = {"file": 0o640, "folder": 0o750, "folder/inner": 0o750, "folder/inner/file": 0o640}
    for name, mode in modes.items():
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode, name


def test_a_file_does_not_replace_a_folder_nor_a_folder_a_file(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("old")
    with (
        pytest.raises(FileExistsError, match=r"Cannot write a file there, it is a folder"),
        atomic_write(tmp_path / "folder"),
    ):
        pytest.fail("the block was entered")
    with (
        pytest.raises(FileExistsError, match=r"Cannot write a folder there, it is a file"),
        atomic_write(tmp_path / "file", folder=True),
    ):
        pytest.fail("the block was entered")
    assert (tmp_path / "file").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with (
        pytest.raises(FileExistsError, match=r"it is no regular file"),
        atomic_write(tmp_path / "pipe"),
    ):
        pytest.fail("the block was entered")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_link_is_followed(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    with atomic_write(tmp_path / "link") as new:
        new.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


def test_what_appears_during_the_block_is_not_replaced(tmp_path):
    def check(path):
        if path.read_text() == "precious":
            raise FileExistsError(17, "It is precious", str(path))

    path = tmp_path / "file"
    with pytest.raises(FileExistsError, match="It is precious"), atomic_write(path, check=check):
        path.write_text("precious")
    assert path.read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_error_of_another_file_names_that_file(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, atomic_write(tmp_path / "file"):
        (tmp_path / "missing.npy").read_bytes()
    assert caught.value.filename == str(tmp_path / "missing.npy")
    assert "Cannot write" not in str(caught.value)
    assert not list(tmp_path.iterdir())
