import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from hf_pneumonia.errors import UsageError
from hf_pneumonia.hub import commit_files, download_files

FILES = {"config.json": b"{}", "model.safetensors": b"\0weights" * 9999, "plots/röntgen.png": b"\x89PNG"}


@pytest.fixture
def ann(local_hub) -> HfApi:
    return HfApi(local_hub.url, local_hub.user("ann"))


def _send(api: HfApi, files=FILES, repo="ann/x", **options):
    return commit_files(api, repo, files, message="Publish", **options)


def _fails(code: str, match: str, call, *args, **options) -> str:
    with pytest.raises(UsageError, match=match) as error:
        call(*args, **options)
    assert error.value.code == code and "\n" not in str(error.value)
    return str(error.value)


def test_files_arrive_as_one_commit_and_are_downloaded_unchanged(ann, local_hub, tmp_path):
    (tmp_path / "weights").write_bytes(FILES["model.safetensors"])
    commit = _send(ann, {**FILES, "model.safetensors": tmp_path / "weights"})
    repository = local_hub.repositories["model", "ann/x"]
    assert list(repository.messages.values()) == ["initial commit", "Publish"]
    assert repository.contents() == FILES and commit.changed
    assert commit.url == f"{local_hub.url}/ann/x/commit/{commit.sha}"
    ann.hf_hub_download("ann/x", "model.safetensors", cache_dir=tmp_path / "cache")
    local_hub.requests.clear()
    download_files(ann, "ann/x", commit.sha, FILES, tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == FILES
    # A copy in the cache does not replace the download.
    assert f"GET /ann/x/resolve/{commit.sha}/model.safetensors" in local_hub.requests


def test_the_commit_deletes_stale_files_and_keeps_others(ann, local_hub):
    others = {"results/a.yaml": b"a", "resultsfrom.txt": b"b", "old.json": b"c", "mine.txt": b"d"}
    _send(ann, {**FILES, **others})
    commit = _send(ann, stale=["results/", "old.json", "config.json", "never.txt"])
    repository = local_hub.repositories["model", "ann/x"]
    assert repository.contents() == {**FILES, "resultsfrom.txt": b"b", "mine.txt": b"d"}
    assert len(repository.messages) == 3
    assert commit.others == [".gitattributes", "mine.txt", "resultsfrom.txt"]


def test_a_commit_is_tried_once_more_on_top_of_another_that_came_first(ann, local_hub):
    _send(ann)
    repository, changed = local_hub.repositories["model", "ann/x"], {**FILES, "config.json": b"new"}
    local_hub.rivals = 1
    _send(ann, changed)
    assert repository.contents() == {**changed, "rival-2.txt": b"somebody else's"}
    local_hub.rivals = 2
    _fails("hub-refusal", "^ann/x: ", _send, ann, {**FILES, "config.json": b"newer"})
    assert local_hub.rivals == 0 and repository.contents()["config.json"] == b"new"


@pytest.mark.parametrize("files", [FILES, {"config.json": b"{}"}], ids=["upload", "commit"])
def test_after_a_broken_connection_nothing_is_visible_and_a_second_try_works(
    ann, local_hub, monkeypatch, files
):
    monkeypatch.setattr("time.sleep", lambda _: None)  # huggingface_hub waits between its own tries
    local_hub.broken = True
    _fails("hub-unreachable", local_hub.url, _send, ann, files)
    repository = local_hub.repositories["model", "ann/x"]
    assert repository.contents() == {}
    local_hub.broken = False
    assert _send(ann, files).changed and repository.contents() == files


def test_without_write_access_the_message_says_why_and_does_not_show_the_token(local_hub):
    _send(HfApi(local_hub.url, local_hub.user("ann")))
    bob = local_hub.user("bob")
    for token, repo, code, reason in (
        ("hf_wrong", "ann/x", "hub-refusal", "401 .*HF_TOKEN"),
        (bob, "ann/x", "hub-refusal", "403 .*write access"),
        (bob, "ann/new", "hub-refusal", "403 .*write access"),
        ("hf_no\x01token", "ann/x", "invalid-hub-token", "HF_TOKEN"),
    ):
        message = _fails(code, reason, _send, HfApi(local_hub.url, token), {"config.json": b"new"}, repo)
        assert token not in message and "hf_no" not in message
    assert list(local_hub.repositories) == [("model", "ann/x")]
    assert local_hub.repositories["model", "ann/x"].contents() == FILES


def test_without_a_token_no_request_is_sent(local_hub):
    _fails("no-hub-token", "HF_TOKEN", _send, HfApi(local_hub.url, False))
    assert local_hub.requests == []


def test_private_files_are_visible_to_their_owner_only_and_never_sent_to_a_public_repository(ann, local_hub):
    _send(ann, private=True)
    assert ann.repo_info("ann/x").private
    for token in (local_hub.user("bob"), False):
        with pytest.raises(RepositoryNotFoundError):
            HfApi(local_hub.url, token).repo_info("ann/x")
    assert not _send(ann).changed  # without --private it stays what it is
    assert ann.repo_info("ann/x").private
    _send(ann, repo="ann/public")
    _fails("repo-is-public", "ann/public", _send, ann, {"config.json": b"secret"}, "ann/public", private=True)
    assert local_hub.repositories["model", "ann/public"].contents() == FILES


def test_a_new_branch_starts_from_main_and_does_not_change_it(ann, local_hub):
    _send(ann)
    branch = "trial/128-px"
    commit = _send(ann, {"config.json": b"on the branch"}, revision=branch)
    repository = local_hub.repositories["model", "ann/x"]
    assert repository.contents(branch) == {**FILES, "config.json": b"on the branch"}
    assert repository.contents() == FILES and repository.branches[branch] == commit.sha
    assert not _send(ann, {"config.json": b"on the branch"}, revision=branch).changed


def test_an_invalid_repository_name_is_refused_before_any_request(ann, local_hub):
    for name in ("x", "", "ann/", "a/b/c", "ann/x y", "https://huggingface.co/ann/x"):
        _fails("invalid-repo-name", "USER/NAME", _send, ann, repo=name)
    assert local_hub.requests == []


def test_offline_mode_and_an_unreachable_hub_are_one_line_each(ann, monkeypatch, tmp_path):
    gone = HfApi("http://127.0.0.1:9", ann.token)
    for call in ((_send, gone), (download_files, gone, "a/b", "0", FILES, tmp_path)):
        _fails("hub-unreachable", "http://127.0.0.1:9", *call)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    _fails("hub-offline", "HF_HUB_OFFLINE", _send, ann)


def test_a_missing_or_changed_file_is_an_error(ann, local_hub, tmp_path):
    commit = _send(ann)
    sent = {**FILES, "config.json": b"{}!"}
    _fails("file-differs-on-hub", "config.json", download_files, ann, "ann/x", commit.sha, sent, tmp_path)
    _fails("file-missing-on-hub", "new", download_files, ann, "ann/x", commit.sha, {"new": b""}, tmp_path)
    _fails("hub-refusal", "404", download_files, ann, "ann/x", "0" * 40, FILES, tmp_path)
