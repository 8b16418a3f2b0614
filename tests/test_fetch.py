import errno
import http.server
import json
import threading

import pytest
from huggingface_hub import HfApi, constants

from hf_pneumonia.errors import UsageError
from hf_pneumonia.hub import commit_files
from hf_pneumonia.modeling import fetch as module
from hf_pneumonia.modeling.fetch import evidence_folder, model_folder

SHA = "a" * 40
REPOSITORIES = {
    "pickle": {"config.json": b"{}", "pytorch_model.bin": b"x", "training_args.bin": b"x"},
    "empty": {"README.md": b"x"},
    "bare": {"config.json": b"{}", "training_args.bin": b"x"},
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
def hub(monkeypatch, tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.shutdown()
    server.server_close()


def _problem(name: str, revision: str | None = None) -> str:
    with pytest.raises(UsageError) as error:
        model_folder(name, revision)
    assert "\n" not in str(error.value) and name in str(error.value)
    return str(error.value)


def test_of_a_repository_only_what_is_loaded_is_fetched(hub):
    folder = model_folder("u/whole")
    assert {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == {
        "config.json": b"{}", "model.safetensors": b"y"
    }  # fmt: skip
    assert folder.name == SHA and not any("bin" in path or "checkpoint" in path for path in hub.asked)


def test_what_was_fetched_is_there_without_a_connection(hub, monkeypatch):
    folder = model_folder("u/whole")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    assert model_folder("u/whole") == folder and hub.asked == []
    assert "HF_HUB_OFFLINE keeps it from being fetched" in _problem("u/pickle")


@pytest.mark.parametrize(
    "name, problem",
    [
        (
            "u/pickle",
            r"only pickled weights (pytorch_model.bin), which are never loaded; convert them to safetens",
        ),
        ("u/empty", "there is no model in it (config.json is missing)"),
        ("u/bare", "there are no weights in it (model.safetensors is missing)"),
        ("u/none", "no such repository, or a private one and no token that opens it; `hf auth login`"),
        ("u/stranger", "no such repository, or a private one and no token that opens it; `hf auth login`"),
        ("u/token", "no such repository, or a private one and no token that opens it"),
        ("u/forbidden", "the token gives no right to read it (403); `hf auth login`"),
        ("u/gated", "its owner grants access on its page; ask there"),
        ("u/broken", "the Hub failed (500); try later"),
        ("u/a name", "Repo id must use alphanumeric chars"),
    ],
)
def test_what_stands_between_a_repository_and_its_model_is_one_line(hub, name, problem):
    assert problem in _problem(name)
    assert not any("bin" in path for path in hub.asked)


def test_a_token_that_is_refused_and_a_branch_that_is_not_there_are_said(hub, monkeypatch):
    assert "it has no branch, tag or commit 'try'" in _problem("u/branch", "try")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    message = _problem("u/token")
    assert "the Hub refuses the token (401)" in message and "hf_secret" not in message


def test_no_connection_and_a_full_disk_are_one_line(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "no connection to the Hub, and it was not fetched before" in _problem("u/whole")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "snapshot_download", full)
    message = _problem("u/whole")
    assert f"no space left in {constants.HF_HUB_CACHE}; free some, or set HF_HOME" in message


def test_a_folder_is_itself_and_has_no_revision(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    assert model_folder(str(tmp_path)) == tmp_path
    assert "a folder has no revision 'main'; leave it out" in _problem(str(tmp_path), "main")
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.pth")
    assert "only pickled weights (weights.pth)" in _problem(str(tmp_path))


def test_a_run_that_was_killed_before_its_report_is_no_model_yet(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "checkpoint-9").mkdir()
    assert model_folder(str(tmp_path)) == tmp_path  # as other people's trainings leave a finished model
    (tmp_path / "checkpoint-9" / "manifest.json").write_text("{}")
    assert "its training is not finished; go on with --resume" in _problem(str(tmp_path))
    (tmp_path / "report.json").write_text("{}")
    assert model_folder(str(tmp_path)) == tmp_path


def write_evidence(hub, owner: str, files: dict[str, bytes]) -> HfApi:
    """A model `ann/x` on the local Hub, with these files beside its weights."""
    api = HfApi(hub.url, token=hub.user(owner))
    weights = {"config.json": b"{}", "model.safetensors": b"y"}
    commit_files(api, f"{owner}/x", weights | files, message="A model")
    return api


@pytest.fixture
def evident_hub(local_hub, monkeypatch, tmp_path):
    """The local Hub for code that is not handed an HfApi, with a cache of its own."""
    monkeypatch.setattr(constants, "ENDPOINT", local_hub.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", local_hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return local_hub


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


def test_the_evidence_is_of_the_commit_whose_weights_are_here(evident_hub):
    api = write_evidence(evident_hub, "ann", {"README.md": b"of the first"})
    folder = model_folder("ann/x")
    commit_files(api, "ann/x", {"README.md": b"of the second", "model.safetensors": b"z"}, message="Another")
    assert (evidence_folder("ann/x") / "README.md").read_bytes() == b"of the first"
    assert (folder / "model.safetensors").read_bytes() == b"y"


def test_evidence_that_was_fetched_stays_and_what_was_not_is_one_line(evident_hub, monkeypatch):
    write_evidence(evident_hub, "ann", {"README.md": b"x"})
    write_evidence(evident_hub, "bob", {"README.md": b"x"})
    folder = evidence_folder("ann/x")  # weights and all
    model_folder("bob/x")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert evidence_folder("ann/x") == folder
    with pytest.raises(UsageError, match="^[^\n]*'bob/x'[^\n]*HF_HUB_OFFLINE[^\n]*$"):
        evidence_folder("bob/x")
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE"):
        evidence_folder("cy/x")


def test_other_peoples_models_have_no_evidence_and_that_is_no_error(evident_hub):
    write_evidence(evident_hub, "ann", {})
    assert _files_of(evidence_folder("ann/x")) == {"config.json", "model.safetensors"}


def test_the_evidence_of_a_folder_is_in_it(tmp_path):
    assert evidence_folder(str(tmp_path)) == tmp_path
