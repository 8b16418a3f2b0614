import pytest

from hf_pneumonia.errors import run_script


def test_a_name_too_long_or_a_folder_for_a_file_ends_a_script_and_a_missing_file_is_a_bug(capsys, tmp_path):
    for path, reason in ((tmp_path / ("a" * 999), "File name too long"), (tmp_path, "Is a directory")):
        assert run_script("train.py", lambda argv, path=path: path.write_text(""), []) == 2
        assert f"{path}: {reason}; " in capsys.readouterr().err
    with pytest.raises(FileNotFoundError):
        run_script("train.py", lambda argv: (tmp_path / "none").read_text(), [])
