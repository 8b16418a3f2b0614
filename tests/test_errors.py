import pytest

import app
import push_to_hub
from hf_pneumonia.errors import run_script


def test_an_unusable_path_is_a_mistake_of_the_user_and_a_missing_file_is_a_bug(capsys, tmp_path):
    for path, reason in ((tmp_path / ("a" * 999), "File name too long"), (tmp_path, "Is a directory")):
        assert run_script("train.py", lambda argv, path=path: path.write_text(""), []) == 2
        assert f"{path}: {reason}" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError):
        run_script("train.py", lambda argv: (tmp_path / "none").read_text(), [])


@pytest.mark.parametrize("script", [app, push_to_hub])
def test_an_unknown_flag_is_one_line(capsys, script):
    assert run_script("x.py", script.main, ["--nosuch"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
