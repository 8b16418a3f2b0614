import pytest
from huggingface_hub import HfApi, constants

from hf_pneumonia.errors import UsageError
from hf_pneumonia.hub import commit_files
from hf_pneumonia.modeling.saved import evidence_folder, model_folder

MODEL = {"config.json": b"{}", "model.safetensors": b"y"}


@pytest.fixture
def hub(local_hub, monkeypatch, tmp_path):
    """The local Hub, which this process takes for the Hub, with a cache of its own."""
    local_hub.is_the_hub(monkeypatch, tmp_path / "cache")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return local_hub


def _publish(hub, name: str, files: dict[str, bytes], **options) -> None:
    api = HfApi(hub.url, token=hub.user(name.split("/")[0]))
    commit_files(api, name, files, message="A model", **options)


def _files_of(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _problem(name: str, revision: str | None = None) -> str:
    with pytest.raises(UsageError) as error:
        model_folder(name, revision)
    assert "\n" not in str(error.value) and name in str(error.value)
    return str(error.value)


def test_of_a_repository_only_what_is_loaded_is_fetched_and_is_there_without_a_connection(hub, monkeypatch):
    more = {"pytorch_model.bin": b"x", "checkpoint-1/model.safetensors": b"x", "gate.safetensors": b"z"}
    _publish(hub, "ann/x", MODEL | more)
    hub.requests.clear()
    folder = model_folder("ann/x")
    assert _files_of(folder) == {*MODEL, "gate.safetensors"}
    assert not any("bin" in path or "checkpoint" in path for path in hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert model_folder("ann/x") == folder and hub.requests == []
    assert "HF_HUB_OFFLINE" in _problem("ann/y")


def test_what_stands_between_a_repository_and_its_model_is_one_line(hub, monkeypatch):
    _publish(hub, "ann/pickle", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    _publish(hub, "ann/empty", {"README.md": b"x"})
    _publish(hub, "ann/private", MODEL, private=True)
    hub.requests.clear()
    assert "are never loaded: convert them to safetensors" in _problem("ann/pickle")
    assert not any("bin" in path for path in hub.requests)
    assert "config.json is missing" in _problem("ann/empty")
    assert "no such branch" in _problem("ann/empty", "try")
    for name in ("ann/private", "ann/none"):
        assert "no such repository, or a private one and no token" in _problem(name)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    message = _problem("ann/private")
    assert "401" in message and "hf_secret" not in message


def test_a_folder_is_itself_and_what_is_no_finished_model_is_said_to_be_none(tmp_path):
    assert "no such folder" in _problem(str(tmp_path / "none"))
    assert "config.json is missing" in _problem(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert "there are no weights in it" in _problem(str(tmp_path))
    (tmp_path / "model.safetensors").write_text("")
    (tmp_path / "checkpoint-9").mkdir()
    assert model_folder(str(tmp_path)) == tmp_path  # as other people's trainings leave a finished model
    assert "a folder has no revision 'main'" in _problem(str(tmp_path), "main")
    (tmp_path / "checkpoint-9" / "manifest.json").write_text("{}")
    assert "its training is not finished; go on with --resume" in _problem(str(tmp_path))
    (tmp_path / "report.json").write_text("{}")
    assert model_folder(str(tmp_path)) == evidence_folder(str(tmp_path)) == tmp_path


def test_of_the_evidence_only_what_is_shown_is_fetched(hub):
    shown = {"README.md", "report.json", "plots/roc.png", "examples/README.md"}
    shown |= {f"examples/image [{number}].dcm" for number in range(8)}
    left = {"notes.md", "plots/deep/roc.png", "plots/images.zip", "examples/run.py", "examples/image [9].png"}
    large = {"examples/big.jpeg": bytes(20_000_001)}
    _publish(hub, "ann/x", MODEL | dict.fromkeys(shown | left, b"x") | large)
    folder = model_folder("ann/x")
    assert evidence_folder("ann/x") == folder
    assert _files_of(folder) == shown | MODEL.keys()
    assert not any(name in path for path in hub.requests for name in ("notes.md", "big.jpeg"))
