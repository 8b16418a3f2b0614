import os

import pytest

from hf_pneumonia.errors import UsageError
from hf_pneumonia.inference.classifier import which_model


def test_the_environment_comes_first_then_the_model_of_the_space_then_the_latest_run(tmp_path, monkeypatch):
    monkeypatch.delenv("MODEL_ID", raising=False)
    for name, finished_at in (("a", 200), ("seeds/seed-1", 300), ("unfinished", None)):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        (run / "model.safetensors").touch()
        if finished_at:
            (run / "report.json").touch()
            os.utime(run / "report.json", (finished_at, finished_at))
    last = str(tmp_path / "runs" / "seeds" / "seed-1")
    assert which_model(tmp_path) == last
    (tmp_path / "README.md").write_text("# A project, no Space\n\n---\nmodels: [user/name]\n---\n")
    assert which_model(tmp_path) == last
    (tmp_path / "README.md").write_text("---\nsdk: gradio\nmodels:\n- user/name\n---\ntext\n")
    assert which_model(tmp_path) == "user/name"
    monkeypatch.setenv("MODEL_ID", "user/other")
    assert which_model(tmp_path) == "user/other"


def test_without_a_model_the_error_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.delenv("MODEL_ID", raising=False)
    with pytest.raises(UsageError, match=r"--model.*train\.py") as error:
        which_model(tmp_path)
    assert error.value.code == "no-model" and str(tmp_path / "runs") in str(error.value)
