import hashlib
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

from hf_pneumonia.errors import UsageError
from hf_pneumonia.hub import check_repo_name, commit_files, download_files

FILES = {"config.json": b"{}", "model.safetensors": b"\0weights" * 9999, "plots/röntgen.png": b"\x89PNG"}


@pytest.fixture
def ann(local_hub) -> HfApi:
    return HfApi(local_hub.url, local_hub.user("ann"))


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """Nobody waits: the pauses that were asked for."""
    asked = []
    monkeypatch.setattr("time.sleep", asked.append)
    return asked


def _send(api: HfApi, files=FILES, repo="ann/x", **options):
    return commit_files(api, repo, files, message="Publish", **options)


def _contents(repository, revision="main") -> dict[str, bytes]:
    tree = repository.trees[repository.resolve(revision)]
    return {name: file.content for name, file in tree.items() if name != ".gitattributes"}


def _fails(match: str, *args, **options) -> str:
    with pytest.raises(UsageError, match=match) as error:
        _send(*args, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_files_arrive_as_one_commit_and_come_back_as_they_were_sent(ann, local_hub, tmp_path):
    (tmp_path / "weights").write_bytes(FILES["model.safetensors"])
    files = {**FILES, "model.safetensors": tmp_path / "weights"}
    commit = _send(ann, files)
    repository = local_hub.repositories["model", "ann/x"]
    assert list(repository.messages.values()) == ["initial commit", "Publish"]
    assert _contents(repository) == FILES
    assert (commit.sha, commit.changed, commit.others) == (
        repository.branches["main"],
        True,
        [".gitattributes"],
    )
    assert commit.url == f"{local_hub.url}/ann/x/commit/{commit.sha}"
    download_files(ann, "ann/x", commit.sha, files, tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == FILES


def test_the_same_files_again_make_no_commit_and_write_nothing(ann, local_hub):
    first = _send(ann)
    local_hub.requests.clear()
    again = _send(ann, stale=["old.txt", "old/"])
    assert (again.url, again.sha, again.changed) == (first.url, first.sha, False)
    assert {request.split()[0] for request in local_hub.requests} == {"GET"}


def test_of_changed_files_only_those_are_sent(ann, local_hub, tmp_path):
    first = _send(ann)
    local_hub.requests.clear()
    changed = {**FILES, "config.json": b'{"a": 1}'}
    second = _send(ann, changed)
    repository = local_hub.repositories["model", "ann/x"]
    assert second.changed and repository.parents[second.sha] == first.sha
    assert _contents(repository) == changed
    assert not [request for request in local_hub.requests if request.startswith("PUT")]
    download_files(ann, "ann/x", first.sha, FILES, tmp_path)  # the old commit is still there


def test_what_is_stale_goes_with_the_same_commit_and_what_is_others_stays(ann, local_hub):
    others = {"results/a.yaml": b"a", "resultsfrom.txt": b"b", "old.json": b"c", "mine.txt": b"d"}
    _send(ann, {**FILES, **others})
    commit = _send(ann, stale=["results/", "old.json", "config.json", "never.txt"])
    repository = local_hub.repositories["model", "ann/x"]
    assert _contents(repository) == {**FILES, "resultsfrom.txt": b"b", "mine.txt": b"d"}
    assert len(repository.messages) == 3
    assert commit.others == [".gitattributes", "mine.txt", "resultsfrom.txt"]


def test_a_commit_that_others_came_before_is_made_on_top_of_theirs(ann, local_hub, pauses):
    _send(ann)
    local_hub.rivals = 2
    changed = {**FILES, "config.json": b"new"}
    _send(ann, changed)
    repository = local_hub.repositories["model", "ann/x"]
    assert _contents(repository) == {
        **changed,
        "rival-2.txt": b"somebody else's",
        "rival-3.txt": b"somebody else's",
    }
    assert list(repository.messages.values())[2:] == ["somebody else's commit"] * 2 + ["Publish"]


def test_a_rival_who_changes_the_same_file_is_not_mistaken_for_us(ann, local_hub, pauses, monkeypatch):
    _send(ann)
    changed = {**FILES, "plots/röntgen.png": b"new"}
    create_commit = ann.create_commit

    def second(*args, **options):
        monkeypatch.setattr(ann, "create_commit", create_commit)
        _send(HfApi(local_hub.url, ann.token), {"config.json": b"a rival's"})
        return create_commit(*args, **options)

    monkeypatch.setattr(ann, "create_commit", second)
    _send(ann, changed)
    # config.json was as it should be when we looked first, and no longer when we committed.
    assert _contents(local_hub.repositories["model", "ann/x"]) == changed


def test_after_five_tries_it_gives_up_with_nothing_of_ours_there(ann, local_hub, pauses):
    _send(ann)
    local_hub.rivals, pauses[:] = 99, []
    _fails("ann/x: others commit to it all the time; try again later", ann, {**FILES, "config.json": b"new"})
    assert pauses == sorted(pauses) and len(set(pauses)) == len(pauses) == 4
    assert local_hub.rivals == 94
    assert _contents(local_hub.repositories["model", "ann/x"])["config.json"] == b"{}"


@pytest.mark.parametrize("where", ["cut_uploads", "cut_commits"])
def test_of_a_connection_that_breaks_halfway_nothing_is_visible_and_a_second_try_works(
    ann, local_hub, pauses, where
):
    setattr(local_hub, where, 99)
    _fails(f"the connection to {local_hub.url} failed .*try again", ann)
    repository = local_hub.repositories["model", "ann/x"]
    assert _contents(repository) == {} and len(repository.messages) == 1
    local_hub.calm()
    assert _send(ann).changed
    assert _contents(repository) == FILES


def test_an_upload_that_breaks_once_is_taken_up_again(ann, local_hub, pauses):
    local_hub.cut_uploads = 1
    assert _send(ann).changed
    assert len([request for request in local_hub.requests if request.startswith("PUT")]) == 2


def test_where_only_the_answer_got_lost_the_second_try_finds_everything_there(ann, local_hub):
    local_hub.lost_answers = 1
    _fails("the connection to .* failed", ann)
    assert not _send(ann).changed
    assert list(local_hub.repositories["model", "ann/x"].messages.values()) == ["initial commit", "Publish"]


def test_who_may_not_write_is_told_why_and_the_token_is_not_shown(local_hub, monkeypatch):
    _send(HfApi(local_hub.url, local_hub.user("ann")))
    reader, stranger = local_hub.user("ann", may_write=False), local_hub.user("bob")
    changed = {"config.json": b"new"}
    for token, repo, reason in (
        ("hf_wrong", "ann/x", "401 .*the token is not valid"),
        ("hf_wrong", "ann/new", "401 .*the token is not valid"),
        (reader, "ann/x", "403 .*no right to write there"),
        (reader, "ann/new", "403 .*no right to write there"),
        (stranger, "ann/x", "403 .*no right to write there"),
        (stranger, "ann/new", "403 .*no right to write there"),
        ("hf_no\x01token", "ann/x", "the token of the Hub has characters that no token has"),
        ("hf_nö", "ann/x", "the token of the Hub has characters that no token has"),
    ):
        message = _fails(reason, HfApi(local_hub.url, token), changed, repo)
        assert token not in message and "hf_no" not in message
    assert list(local_hub.repositories) == [("model", "ann/x")]
    assert _contents(local_hub.repositories["model", "ann/x"]) == FILES


def test_without_a_token_nobody_is_asked(local_hub, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    for token in (None, False):
        _fails("no token of the Hub found: `hf auth login`, or set HF_TOKEN", HfApi(local_hub.url, token))
    assert local_hub.requests == []


def test_the_token_of_the_environment_and_the_saved_login_are_taken(local_hub, monkeypatch, tmp_path):
    saved, set_ = local_hub.user("saved"), local_hub.user("set")
    (tmp_path / "token").write_text(saved + "\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert _send(HfApi(local_hub.url), repo="saved/x").changed
    monkeypatch.setenv("HF_TOKEN", set_)
    assert _send(HfApi(local_hub.url), repo="set/x").changed


def test_a_private_repository_is_seen_by_its_owner_only(ann, local_hub):
    _send(ann, private=True)
    assert ann.repo_info("ann/x").private
    for token in (local_hub.user("bob"), False):
        with pytest.raises(RepositoryNotFoundError):
            HfApi(local_hub.url, token).repo_info("ann/x")
    assert not _send(ann).changed  # without --private it stays what it is
    assert ann.repo_info("ann/x").private


def test_what_is_meant_to_be_private_is_not_sent_to_a_public_repository(ann, local_hub):
    _send(ann)
    message = "everybody can see it: nothing was sent"
    _fails(message, ann, {"config.json": b"secret"}, private=True)
    assert _contents(local_hub.repositories["model", "ann/x"]) == FILES


@pytest.mark.parametrize("branch", ["v2", "trial/128-px"])
def test_a_new_branch_starts_from_main_and_leaves_it_alone(ann, local_hub, branch):
    _send(ann)
    commit = _send(ann, {"config.json": b"on the branch"}, revision=branch)
    repository = local_hub.repositories["model", "ann/x"]
    assert _contents(repository, branch) == {**FILES, "config.json": b"on the branch"}
    assert _contents(repository) == FILES and repository.branches[branch] == commit.sha
    assert not _send(ann, {"config.json": b"on the branch"}, revision=branch).changed


def test_a_space_is_one_of_gradios_and_its_front_matter_is_checked(ann, local_hub):
    app = {"app.py": b"", "README.md": b"---\nsdk: gradio\n---\n"}
    commit = _send(ann, app, repo_type="space")
    assert local_hub.repositories["space", "ann/x"].settings == {"sdk": "gradio"}
    assert commit.url == f"{local_hub.url}/spaces/ann/x/commit/{commit.sha}"
    again = _send(ann, app, repo_type="space")
    assert (again.url, again.changed) == (commit.url, False)
    _fails('400 .*"sdk" must be one of', ann, {**app, "README.md": b"---\nsdk: tk\n---\n"}, repo_type="space")
    assert ("model", "ann/x") not in local_hub.repositories


@pytest.mark.parametrize(
    "name",
    ["x", "", "/x", "ann/", "a/b/c", "ann/x y", "ann/..", "ann/ä/", "https://huggingface.co/ann/x", "-a/b-"],
)
def test_a_name_that_no_repository_has_is_refused_before_anybody_is_asked(name, ann, local_hub):
    _fails("expected a repository of the Hub as USER/NAME, got", ann, repo=name)
    assert local_hub.requests == []


def test_a_missing_user_is_named_as_what_is_missing():
    with pytest.raises(UsageError, match="got 'x': the user's name is missing"):
        check_repo_name("x")
    check_repo_name("some-user/Some_model.v2")


@pytest.mark.parametrize("revision", ["", "a b", "-x", "a..b", "x~1", "0" * 40])
def test_what_is_no_branch_is_refused(revision, ann, local_hub):
    _fails("expected the name of a branch", ann, revision=revision)
    assert local_hub.requests == []


def test_offline_and_a_hub_that_does_not_answer_are_one_line_each(ann, monkeypatch):
    _fails("the connection to http://127.0.0.1:9 failed", HfApi("http://127.0.0.1:9", ann.token))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    _fails("HF_HUB_OFFLINE is set", ann)


def _download_fails(match: str, *args) -> None:
    with pytest.raises(UsageError, match=match) as error:
        download_files(*args)
    assert "\n" not in str(error.value)


def test_a_file_that_comes_back_changed_or_not_at_all_is_an_error(ann, local_hub, tmp_path):
    commit = _send(ann)
    for name in FILES:
        sent = {**FILES, name: FILES[name] + b"!"}
        _download_fails(f"{name} is not on the Hub as it was sent", ann, "ann/x", commit.sha, sent, tmp_path)
    _download_fails("new is missing on the Hub", ann, "ann/x", commit.sha, {"new": b""}, tmp_path)
    _download_fails("refuses with 404", ann, "ann/x", "0" * 40, FILES, tmp_path)
    _download_fails("refuses with 404", ann, "ann/none", commit.sha, FILES, tmp_path)


def test_a_file_that_the_repository_ignores_is_missed_when_it_is_fetched(ann, tmp_path):
    _send(ann, {".gitignore": b"*.safetensors\n"})
    commit = _send(ann)
    _download_fails("model.safetensors is missing .* .gitignore", ann, "ann/x", commit.sha, FILES, tmp_path)


def test_a_cached_copy_is_not_taken_for_what_lies_on_the_hub(ann, local_hub, tmp_path):
    commit = _send(ann)
    ann.hf_hub_download("ann/x", "model.safetensors", cache_dir=tmp_path / "cache")
    local_hub.requests.clear()
    download_files(ann, "ann/x", commit.sha, FILES, tmp_path)
    assert f"GET /ann/x/resolve/{commit.sha}/model.safetensors" in local_hub.requests


def test_a_full_disk_and_a_lost_connection_while_fetching_are_one_line(ann, local_hub, tmp_path, monkeypatch):
    commit = _send(ann)

    def to_a_full_disk(*_, **__):
        with open("/dev/full", "wb") as file:
            file.write(b"x")

    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.http_get", to_a_full_disk)
        _download_fails("ann/x: no space left", ann, "ann/x", commit.sha, FILES, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
        _download_fails("no space left to fetch ann/x again", ann, "ann/x", commit.sha, FILES, tmp_path)
    gone = HfApi("http://127.0.0.1:9", ann.token)
    _download_fails("the connection to http://127.0.0.1:9 failed", gone, "ann/x", commit.sha, FILES, tmp_path)


@pytest.mark.parametrize("lfs", [False, True])
def test_the_local_hub_names_files_as_git_does(lfs, tmp_path):
    from local_hub import File

    file = File(b"some content", lfs)
    stored = tmp_path / "stored"
    stored.write_bytes(file.pointer if lfs else file.content)
    git = subprocess.run(["git", "hash-object", stored], capture_output=True, text=True, check=True)
    assert file.blob == git.stdout.strip()
    if lfs:
        assert hashlib.sha256(file.content).hexdigest() in Path(stored).read_text()


def test_the_local_hub_tells_what_was_committed(ann, local_hub):
    first, second = _send(ann), _send(ann, {"plots/roc.png": b"1"}, revision="v2")
    assert ann.whoami()["name"] == "ann"
    branches = {ref.name: ref.target_commit for ref in ann.list_repo_refs("ann/x").branches}
    assert branches == {"main": first.sha, "v2": second.sha}
    (weights,) = ann.get_paths_info("ann/x", ["model.safetensors", "none"])
    assert weights.lfs.sha256 == hashlib.sha256(FILES["model.safetensors"]).hexdigest()
    top = {entry.path for entry in ann.list_repo_tree("ann/x")}
    assert top == {".gitattributes", "config.json", "model.safetensors", "plots"}
    plots = {entry.path for entry in ann.list_repo_tree("ann/x", "plots", revision="v2")}
    assert plots == {"plots/röntgen.png", "plots/roc.png"}
    with pytest.raises(EntryNotFoundError):
        list(ann.list_repo_tree("ann/x", "none"))
    with pytest.raises(RevisionNotFoundError):
        ann.repo_info("ann/x", revision="v3")
