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


def _fails(match: str, call, *args, **options) -> str:
    with pytest.raises(UsageError, match=match) as error:
        call(*args, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_files_arrive_as_one_commit_and_come_back_as_they_were_sent(ann, local_hub, tmp_path):
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
    # A copy in the cache is not taken for what lies on the Hub.
    assert f"GET /ann/x/resolve/{commit.sha}/model.safetensors" in local_hub.requests


def test_what_is_stale_goes_with_the_same_commit_and_what_is_others_stays(ann, local_hub):
    others = {"results/a.yaml": b"a", "resultsfrom.txt": b"b", "old.json": b"c", "mine.txt": b"d"}
    _send(ann, {**FILES, **others})
    commit = _send(ann, stale=["results/", "old.json", "config.json", "never.txt"])
    repository = local_hub.repositories["model", "ann/x"]
    assert repository.contents() == {**FILES, "resultsfrom.txt": b"b", "mine.txt": b"d"}
    assert len(repository.messages) == 3
    assert commit.others == [".gitattributes", "mine.txt", "resultsfrom.txt"]


def test_a_commit_that_somebody_came_before_is_made_on_top_of_theirs_once(ann, local_hub):
    _send(ann)
    repository, changed = local_hub.repositories["model", "ann/x"], {**FILES, "config.json": b"new"}
    local_hub.rivals = 1
    _send(ann, changed)
    assert repository.contents() == {**changed, "rival-2.txt": b"somebody else's"}
    local_hub.rivals = 2
    _fails("ann/x: somebody else commits to it", _send, ann, {**FILES, "config.json": b"newer"})
    assert local_hub.rivals == 0 and repository.contents()["config.json"] == b"new"


@pytest.mark.parametrize("files", [FILES, {"config.json": b"{}"}], ids=["upload", "commit"])
def test_of_a_connection_that_breaks_halfway_nothing_is_visible_and_a_second_try_works(
    ann, local_hub, monkeypatch, files
):
    monkeypatch.setattr("time.sleep", lambda _: None)  # huggingface_hub waits between its own tries
    local_hub.broken = True
    _fails(f"the connection to {local_hub.url} failed", _send, ann, files)
    repository = local_hub.repositories["model", "ann/x"]
    assert repository.contents() == {}
    local_hub.broken = False
    assert _send(ann, files).changed and repository.contents() == files


def test_who_may_not_write_is_told_why_and_the_token_is_not_shown(local_hub):
    _send(HfApi(local_hub.url, local_hub.user("ann")))
    bob = local_hub.user("bob")
    for token, repo, reason in (
        ("hf_wrong", "ann/x", "401 .*the token is not valid"),
        (bob, "ann/x", "403 .*no right to write there"),
        (bob, "ann/new", "403 .*no right to write there"),
        ("hf_no\x01token", "ann/x", "the token of the Hub has characters that no token has"),
    ):
        message = _fails(reason, _send, HfApi(local_hub.url, token), {"config.json": b"new"}, repo)
        assert token not in message and "hf_no" not in message
    assert list(local_hub.repositories) == [("model", "ann/x")]
    assert local_hub.repositories["model", "ann/x"].contents() == FILES


def test_without_a_token_nobody_is_asked(local_hub):
    _fails("no token of the Hub found", _send, HfApi(local_hub.url, False))
    assert local_hub.requests == []


def test_what_is_private_is_seen_by_its_owner_only_and_never_sent_to_a_public_repository(ann, local_hub):
    _send(ann, private=True)
    assert ann.repo_info("ann/x").private
    for token in (local_hub.user("bob"), False):
        with pytest.raises(RepositoryNotFoundError):
            HfApi(local_hub.url, token).repo_info("ann/x")
    assert not _send(ann).changed  # without --private it stays what it is
    assert ann.repo_info("ann/x").private
    _send(ann, repo="ann/public")
    message = "everybody can see it: nothing was sent"
    _fails(message, _send, ann, {"config.json": b"secret"}, "ann/public", private=True)
    assert local_hub.repositories["model", "ann/public"].contents() == FILES


def test_a_new_branch_starts_from_main_and_leaves_it_alone(ann, local_hub):
    _send(ann)
    branch = "trial/128-px"
    commit = _send(ann, {"config.json": b"on the branch"}, revision=branch)
    repository = local_hub.repositories["model", "ann/x"]
    assert repository.contents(branch) == {**FILES, "config.json": b"on the branch"}
    assert repository.contents() == FILES and repository.branches[branch] == commit.sha
    assert not _send(ann, {"config.json": b"on the branch"}, revision=branch).changed


def test_a_name_that_no_repository_has_is_refused_before_anybody_is_asked(ann, local_hub):
    for name in ("x", "", "ann/", "a/b/c", "ann/x y", "https://huggingface.co/ann/x"):
        _fails("USER/NAME, got", _send, ann, repo=name)
    assert local_hub.requests == []


def test_offline_and_a_hub_that_does_not_answer_are_one_line_each(ann, monkeypatch, tmp_path):
    gone = HfApi("http://127.0.0.1:9", ann.token)
    for call in ((_send, gone), (download_files, gone, "a/b", "0", FILES, tmp_path)):
        _fails("the connection to http://127.0.0.1:9 failed", *call)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    _fails("HF_HUB_OFFLINE is set", _send, ann)


def test_a_file_that_comes_back_changed_or_not_at_all_is_an_error(ann, local_hub, tmp_path):
    commit = _send(ann)
    sent = {**FILES, "config.json": b"{}!"}
    _fails("config.json is not", download_files, ann, "ann/x", commit.sha, sent, tmp_path)
    _fails("new is missing", download_files, ann, "ann/x", commit.sha, {"new": b""}, tmp_path)
    _fails("refuses with 404", download_files, ann, "ann/x", "0" * 40, FILES, tmp_path)
