import os

import pytest

from hf_pneumonia.errors import UsageError
from hf_pneumonia.inference.which_model import which_model


@pytest.fixture(autouse=True)
def no_model_id(monkeypatch):
    monkeypatch.delenv("MODEL_ID", raising=False)


def _run(folder, finished_at):
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()
    if finished_at:
        (folder / "report.json").touch()
        os.utime(folder / "report.json", (finished_at, finished_at))


def test_the_run_that_was_finished_last_is_served(tmp_path):
    _run(tmp_path / "runs" / "a", finished_at=200)
    _run(tmp_path / "runs" / "seeds" / "seed-1", finished_at=300)
    _run(tmp_path / "runs" / "b", finished_at=100)
    _run(tmp_path / "runs" / "unfinished", finished_at=None)
    assert which_model(tmp_path) == str(tmp_path / "runs" / "seeds" / "seed-1")


def test_the_spaces_own_model_comes_before_a_run(tmp_path):
    _run(tmp_path / "runs" / "a", finished_at=200)
    (tmp_path / "README.md").write_text("---\nsdk: gradio\nmodels:\n- user/name\n---\ntext\n")
    assert which_model(tmp_path) == "user/name"


def test_a_readme_that_is_no_spaces_names_no_model(tmp_path):
    _run(tmp_path / "runs" / "a", finished_at=200)
    (tmp_path / "README.md").write_text("# A project\n\n---\nmodels: [user/name]\n---\n")
    assert which_model(tmp_path) == str(tmp_path / "runs" / "a")


def test_the_environment_comes_first(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("---\nsdk: gradio\nmodels: [user/name]\n---\n")
    monkeypatch.setenv("MODEL_ID", "user/other")
    assert which_model(tmp_path) == "user/other"


def test_no_model_at_all_is_an_error_that_says_how_to_get_one(tmp_path):
    with pytest.raises(UsageError, match=r"no finished run in .*runs; train one \(train.py\)"):
        which_model(tmp_path)
