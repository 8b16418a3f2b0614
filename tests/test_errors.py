"""What ends a script in one line, and what with a traceback."""

import pytest

from hf_pneumonia.errors import run_script


def test_a_name_that_is_too_long_or_a_folder_in_place_of_a_file_is_one_line(capsys, tmp_path):
    for path, reason in ((tmp_path / ("a" * 999), "File name too long"), (tmp_path, "Is a directory")):
        assert run_script("train.py", lambda argv, path=path: path.write_text(""), []) == 2
        assert f"{path}: {reason}; " in capsys.readouterr().err


def test_a_file_that_ought_to_be_there_keeps_its_traceback(tmp_path):
    with pytest.raises(FileNotFoundError):
        run_script("train.py", lambda argv: (tmp_path / "none").read_text(), [])
