"""What ends a script in one line, and what with a traceback."""

import os
from pathlib import Path

import pytest

from hf_pneumonia.errors import run_script


def _end(capsys, work) -> str:
    assert run_script("train.py", lambda argv: work(), []) == 2
    return capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc to refuse a folder")
@pytest.mark.parametrize("make", [os.makedirs, lambda path: Path(path).mkdir(parents=True)])
def test_a_folder_that_cannot_be_made_is_one_line(capsys, make):
    assert _end(capsys, lambda: make("/proc/x/y")).startswith("train.py: /proc/x: No such file or directory;")


def test_a_name_that_is_too_long_or_a_folder_in_place_of_a_file_is_one_line(capsys, tmp_path):
    assert "File name too long; " in _end(capsys, lambda: (tmp_path / ("a" * 999)).write_text(""))
    assert f"{tmp_path}: Is a directory; " in _end(capsys, lambda: tmp_path.write_text(""))


def test_a_file_that_ought_to_be_there_keeps_its_traceback(tmp_path):
    with pytest.raises(FileNotFoundError):
        run_script("train.py", lambda argv: (tmp_path / "none").read_text(), [])
