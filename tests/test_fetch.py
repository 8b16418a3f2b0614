import http.server
import json
import threading

import pytest
from huggingface_hub import HfApi, constants

from hf_pneumonia.errors import UsageError
from hf_pneumonia.hub import commit_files
from hf_pneumonia.modeling.fetch import evidence_folder, model_folder

SHA = "a" * 40
REPOSITORIES = {
    "pickle": {"config.json": b"{}", "pytorch_model.bin": b"x"},
    "empty": {"README.md": b"x"},
    "whole": {
        "config.json": b"{}",
        "model.safetensors": b"y",
        "pytorch_model.bin": b"x",
        "checkpoint-1/model.safetensors": b"x",
    },
}
REFUSALS = {
    "none": (404, "RepoNotFound", ""),
    "stranger": (401, "", "Invalid username or password."),
    "token": (401, "", "Invalid credentials in Authorization header"),
    "forbidden": (403, "", ""),
    "gated": (403, "GatedRepo", ""),
    "branch": (404, "RevisionNotFound", ""),
    "broken": (500, "", ""),
}


class _Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the Hub does to the requests of a download."""

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        self.server.asked.append(self.path)
        name = parts[3] if parts[0] == "api" else parts[1]
        if name in REFUSALS:
            status, code, message = REFUSALS[name]
            self._answer(status, b"{}", {"X-Error-Code": code, "X-Error-Message": message})
        elif "resolve" in parts:
            path = "/".join(parts[4:])
            self._answer(200, REPOSITORIES[name][path], {"ETag": f'"{name}-{path}"', "X-Repo-Commit": SHA})
        elif "tree" in parts:
            files = [{"type": "file", "path": path, "size": 2, "oid": path} for path in REPOSITORIES[name]]
            self._answer(200, json.dumps(files).encode())
        else:
            files = [{"rfilename": path} for path in REPOSITORIES[name]]
            self._answer(200, json.dumps({"id": f"u/{name}", "sha": SHA, "siblings": files}).encode())

    do_HEAD = do_GET

    def _answer(self, status: int, data: bytes, headers: dict | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def ask(monkeypatch, tmp_path):
    """Points this process at a Hub's address, with a cache of its own."""

    def point(address: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return point


@pytest.fixture
def hub(ask):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ask(f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def evident_hub(local_hub, ask):
    """The local Hub, which takes commits."""
    ask(local_hub.url)
    return local_hub


def _problem(name: str, revision: str | None = None) -> str:
    with pytest.raises(UsageError) as error:
        model_folder(name, revision)
    assert "\n" not in str(error.value) and name in str(error.value)
    return str(error.value)


def test_of_a_repository_only_what_is_loaded_is_fetched_and_is_there_without_a_connection(hub, monkeypatch):
    folder = model_folder("u/whole")
    found = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {"config.json": b"{}", "model.safetensors": b"y"}
    assert folder.name == SHA and not any("bin" in path or "checkpoint" in path for path in hub.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    assert model_folder("u/whole") == folder and hub.asked == []
    assert "HF_HUB_OFFLINE" in _problem("u/pickle")


@pytest.mark.parametrize(
    "name, problem",
    [
        ("u/pickle", "pytorch_model.bin, are never loaded: convert them to safetensors"),
        ("u/empty", "config.json is missing"),
        ("u/none", "no such repository, or a private one and no token"),
        ("u/stranger", "401"),
        ("u/forbidden", "403"),
        ("u/gated", "its owner grants access on its page"),
        ("u/broken", "500"),
        ("u/a name", "Repo id must use alphanumeric chars"),
    ],
)
def test_what_stands_between_a_repository_and_its_model_is_one_line(hub, name, problem):
    assert problem in _problem(name)
    assert not any("bin" in path for path in hub.asked)


def test_a_token_that_is_refused_a_branch_that_is_not_there_and_no_connection_are_said(hub, ask, monkeypatch):
    assert "no such branch" in _problem("u/branch", "try")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    message = _problem("u/token")
    assert "401" in message and "hf_secret" not in message
    ask("http://127.0.0.1:9")
    assert "onnect" in _problem("u/whole")


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


def write_evidence(hub, owner: str, files: dict[str, bytes]) -> HfApi:
    """A model `OWNER/x` on the local Hub, with these files beside its weights."""
    api = HfApi(hub.url, token=hub.user(owner))
    weights = {"config.json": b"{}", "model.safetensors": b"y"}
    commit_files(api, f"{owner}/x", weights | files, message="A model")
    return api


def _files_of(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_of_the_evidence_only_what_is_shown_is_fetched(evident_hub):
    shown = {"README.md", "report.json", "plots/roc.png", "examples/README.md"}
    shown |= {f"examples/film [{number}].dcm" for number in range(8)}
    left = {"notes.md", "plots/deep/roc.png", "plots/films.zip", "examples/run.py", "examples/film [9].png"}
    files = dict.fromkeys(shown | left, b"x") | {"examples/big.jpeg": bytes(20_000_001)}
    write_evidence(evident_hub, "ann", files)
    folder = model_folder("ann/x")
    assert evidence_folder("ann/x") == folder
    assert _files_of(folder) == shown | {"config.json", "model.safetensors"}
    assert not any(name in path for path in evident_hub.requests for name in ("notes.md", "big.jpeg"))


def test_evidence_that_was_fetched_stays_and_what_was_not_is_one_line(evident_hub, monkeypatch):
    write_evidence(evident_hub, "ann", {"README.md": b"x"})
    write_evidence(evident_hub, "bob", {"README.md": b"x"})
    folder = evidence_folder("ann/x")
    model_folder("bob/x")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert evidence_folder("ann/x") == folder
    with pytest.raises(UsageError, match=r"\A[^\n]*'bob/x'[^\n]*\Z"):
        evidence_folder("bob/x")


def test_other_peoples_models_have_no_evidence_and_that_is_no_error(evident_hub):
    write_evidence(evident_hub, "ann", {})
    assert _files_of(evidence_folder("ann/x")) == {"config.json", "model.safetensors"}
