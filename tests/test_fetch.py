"""Downloading a model's files from the Hub, and local folders as models."""

import pytest
from huggingface_hub import HfApi, constants

from hf_pneumonia.errors import UsageError
from hf_pneumonia.hub import commit_files
from hf_pneumonia.modeling.saved import evidence_folder, model_folder

MODEL = {"config.json": b"{}", "model.safetensors": b"y"}


@pytest.fixture
def hub(local_hub, monkeypatch, tmp_path):
    """The local Hub in place of the Hub, with an empty cache."""
    local_hub.is_the_hub(monkeypatch, tmp_path / "cache")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return local_hub


def _publish(hub, name: str, files: dict[str, bytes], **options) -> None:
    api = HfApi(hub.url, token=hub.user(name.split("/")[0]))
    commit_files(api, name, files, message="A model", **options)


def _files_of(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _mistake(name: str, revision: str | None = None) -> UsageError:
    with pytest.raises(UsageError) as error:
        model_folder(name, revision)
    assert "\n" not in str(error.value) and name in str(error.value)
    return error.value


def test_only_the_files_of_the_model_are_downloaded_and_are_available_offline(hub, monkeypatch):
    wanted = MODEL | {"gate.safetensors": b"z", "report.json": b"{}"}
    _publish(hub, "ann/x", {**wanted, "pytorch_model.bin": b"x", "checkpoint-1/model.safetensors": b"x"})
    hub.requests.clear()
    folder = model_folder("ann/x")
    assert _files_of(folder) == {*wanted}
    assert not any("bin" in path or "checkpoint" in path for path in hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert model_folder("ann/x") == folder and hub.requests == []
    assert "HF_HUB_OFFLINE" in str(_mistake("ann/y"))


def test_a_repository_without_a_loadable_model_is_an_error(hub, monkeypatch):
    _publish(hub, "ann/pickle", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    _publish(hub, "ann/empty", {"README.md": b"x"})
    _publish(hub, "ann/private", MODEL, private=True)
    hub.requests.clear()
    mistake = _mistake("ann/pickle")
    assert mistake.code == "incomplete-model" and "Convert pickled weights" in str(mistake)
    assert not any("bin" in path for path in hub.requests)
    assert _mistake("ann/empty").code == "incomplete-model"
    assert _mistake("ann/empty", "try").code == "revision-not-found"
    for name in ("ann/private", "ann/none"):
        assert _mistake(name).code == "model-not-found"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    mistake = _mistake("ann/private")
    assert "401" in str(mistake) and "hf_secret" not in str(mistake)


def test_a_local_folder_needs_a_finished_model(tmp_path):
    assert _mistake(str(tmp_path / "none")).code == "model-not-found"
    assert "config.json is missing" in str(_mistake(str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    assert "model.safetensors is missing" in str(_mistake(str(tmp_path)))
    (tmp_path / "model.safetensors").write_text("")
    (tmp_path / "checkpoint-9").mkdir()
    assert (
        model_folder(str(tmp_path)) == tmp_path
    )  # other trainings leave checkpoints beside a finished model
    assert _mistake(str(tmp_path), "main").code == "revision-not-found"
    (tmp_path / "checkpoint-9" / "manifest.json").write_text("{}")
    mistake = _mistake(str(tmp_path))
    assert mistake.code == "unfinished-model" and "--resume_from_checkpoint" in str(mistake)
    (tmp_path / "report.json").write_text("{}")
    assert model_folder(str(tmp_path)) == evidence_folder(str(tmp_path)) == tmp_path


def test_a_card_that_cannot_be_fetched_is_an_error(hub, monkeypatch):
    _publish(hub, "ann/x", MODEL | {"README.md": b"x", "report.json": b"{}"})
    model_folder("ann/x")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE"):
        evidence_folder("ann/x")


def test_only_the_evidence_that_is_shown_is_downloaded(hub):
    shown = {"README.md", "report.json", "plots/roc.png", "examples/README.md"}
    shown |= {f"examples/image [{number}].dcm" for number in range(8)}
    others = {"notes.md", "plots/deep/roc.png", "plots/images.zip", "examples/run.py"}
    others.add("examples/image [9].png")  # one too many
    large = {"examples/big.jpeg": bytes(20_000_001)}
    _publish(hub, "ann/x", MODEL | dict.fromkeys(shown | others, b"x") | large)
    folder = model_folder("ann/x")
    assert evidence_folder("ann/x") == folder
    assert _files_of(folder) == shown | MODEL.keys()
    assert not any(name in path for path in hub.requests for name in ("notes.md", "big.jpeg"))
