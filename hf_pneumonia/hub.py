"""Files -> one commit of a repository on the Hub, and back. It knows nothing of models."""

import errno
import hashlib
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import sha_fileobj

from hf_pneumonia.errors import UsageError

_LOST_RACE = (409, 412)  # somebody else's commit came first

_REMEDIES = {
    401: "the token is not valid (any more): `hf auth login`, or set HF_TOKEN anew",
    402: "the Hub asks for money for this; see its pricing page",
    403: "the token has no right to write there: check the user's name, or make a token that has",
    404: "check the name",
    429: "too many requests: try again in some minutes",
}


@dataclass(frozen=True)
class Commit:
    """The state of a repository after `commit_files`.

    Attributes:
        url: of the commit, for a person.
        sha: its hash, 40 hex digits.
        changed: false where everything was there already, and no commit was made.
        others: names of the files in it that were left alone.
        private: whether only its owner sees the repository.
    """

    url: str
    sha: str
    changed: bool
    others: list[str]
    private: bool


def check_repo_name(repo: str) -> None:
    """Refuse a name that no repository of the Hub can have, without a request.

    Raises:
        UsageError: it is not USER/NAME, or has characters that no name has.
    """
    reason = "" if "/" in repo else ": the user's name is missing"
    try:
        if repo.count("/") == 1:
            return validate_repo_id(repo)
    except HFValidationError as error:
        reason = f": {str(error).splitlines()[0]}"
    raise UsageError("repo-name", f"expected a repository of the Hub as USER/NAME, got {repo!r}{reason}")


def commit_files(
    api: HfApi,
    repo: str,
    files: dict[str, Path | bytes],
    *,
    message: str,
    repo_type: str = "model",
    private: bool = False,
    revision: str = "main",
    stale: Collection[str] = (),
) -> Commit:
    """Publish files in one commit: all of them become visible at once, or none.

    Repository and branch are made where missing. Where somebody else commits at the same time, a second try
    is made on top of theirs. Files that are the same already are not sent.

    Args:
        api: with the token to use, or none for HF_TOKEN or the saved login.
        repo: USER/NAME.
        files: content, or where it lies, by name in the repository.
        message: the commit's first line.
        repo_type: "model", or "space" for one of Gradio's.
        private: only its owner may see a repository that is made now.
        revision: branch; a new one starts from the main one.
        stale: names, and folders as "name/", that would contradict `files`: the same commit deletes them.

    Raises:
        UsageError: no token, no right, no connection, a repository that everybody can see while `private` was
            asked for, or somebody else's commit came first twice.
    """
    check_repo_name(repo)
    _check_token(api)
    with _explained(api, repo):
        private = _ensure_repo(api, repo, repo_type, private)
        for is_last in (False, True):
            try:
                head = _head(api, repo, repo_type, revision)
                there = set(api.list_repo_files(repo, repo_type=repo_type, revision=head)) - files.keys()
                old = {name for name in there if any(_covers(pattern, name) for pattern in stale)}
                # It sends no file that is the same there, and makes no commit where all are.
                done = api.create_commit(
                    repo,
                    [
                        *(CommitOperationAdd(name, file) for name, file in files.items()),
                        *(CommitOperationDelete(name) for name in sorted(old)),
                    ],
                    commit_message=message,
                    repo_type=repo_type,
                    revision=revision,
                    parent_commit=head,
                )
                return Commit(done.commit_url, done.oid, done.oid != head, sorted(there - old), private)
            except HfHubHTTPError as error:
                if is_last or error.response.status_code not in _LOST_RACE:
                    raise


def download_files(api: HfApi, repo: str, sha: str, files: dict[str, Path | bytes], folder: Path) -> None:
    """Fetch files of a model's commit, and compare them with what was sent.

    Args:
        api: as for `commit_files`.
        repo: USER/NAME.
        sha: of the commit.
        files: what was sent.
        folder: exists; the files are written there under their names.

    Raises:
        UsageError: a file is missing or differs, the disk is full, no connection.
    """
    with _explained(api, repo):
        for name, content in files.items():
            try:
                # Forced: what lies in the cache tells nothing of what lies on the Hub.
                api.hf_hub_download(repo, name, revision=sha, local_dir=folder, force_download=True)
            except RemoteEntryNotFoundError as error:
                raise UsageError(
                    "download-files", f"{repo}: {name} is missing on the Hub; does its .gitignore name it?"
                ) from error
            if content_sha256(folder / name) != content_sha256(content):
                raise UsageError(
                    "download-files", f"{repo}: {name} is not on the Hub as it was sent; publish again"
                )


def file_size(content: Path | bytes) -> int:
    """Return the size in bytes of a file that is to be sent."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _ensure_repo(api: HfApi, repo: str, repo_type: str, private: bool) -> bool:
    """Make the repository where it is missing; return whether it is private."""
    try:
        info = api.repo_info(repo, repo_type=repo_type)
    except RepositoryNotFoundError:
        # None leaves it to what an organisation has chosen for its own.
        sdk = "gradio" if repo_type == "space" else None
        api.create_repo(repo, repo_type=repo_type, private=private or None, space_sdk=sdk, exist_ok=True)
        info = api.repo_info(repo, repo_type=repo_type)
    if private and not info.private:
        raise UsageError(
            "ensure-repo",
            f"{repo} is there already, and everybody can see it: nothing was sent; make it private in its "
            "settings, or choose another name",
        )
    return bool(info.private)


def _head(api: HfApi, repo: str, repo_type: str, revision: str) -> str:
    try:
        return api.repo_info(repo, repo_type=repo_type, revision=revision).sha
    except RevisionNotFoundError:
        api.create_branch(repo, branch=revision, repo_type=repo_type, exist_ok=True)
        return api.repo_info(repo, repo_type=repo_type, revision=revision).sha


def _check_token(api: HfApi) -> None:
    token = get_token() if api.token in (None, True) else api.token
    if not token:
        raise UsageError(
            "token",
            "no token of the Hub found: `hf auth login`, or set HF_TOKEN to one that has the right to write",
        )
    # The libraries below would quote it in their messages.
    if not re.fullmatch("[!-~]+", token):
        raise UsageError(
            "token",
            "the token of the Hub has characters that no token has: `hf auth login`, or set HF_TOKEN anew",
        )


def _covers(pattern: str, name: str) -> bool:
    return name.startswith(pattern) if pattern.endswith("/") else name == pattern


def content_sha256(content: Path | bytes) -> str:
    """Return the SHA-256 of a file that is to be sent, as hexadecimal digits."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with open(content, "rb") as file:
        return sha_fileobj(file).hex()


@contextmanager
def _explained(api: HfApi, repo: str) -> Iterator[None]:
    """Turn errors of the Hub and of the connection into one line without the token."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise UsageError(
            "explained", "HF_HUB_OFFLINE is set, and without the Hub nothing can be sent: unset it"
        ) from error
    except HfHubHTTPError as error:
        raise UsageError("explained", f"{repo}: {_refusal(error)}") from error
    except HTTPError as error:
        raise UsageError("explained", _broken(api, error)) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UsageError(
                "explained", f"{repo}: no space left here for what comes from the Hub; free some"
            ) from error
        if error.filename is not None:
            raise  # a file of this machine
        # hf_xet's own: a bare ConnectionError, PermissionError ...
        raise UsageError("explained", _broken(api, error)) from error
    except (RuntimeError, ValueError) as error:
        # So huggingface_hub wraps what interrupts the upload of a large file, and a download that is forced.
        if not isinstance(error.__cause__, HTTPError | OSError):
            raise
        with _explained(api, repo):
            raise error.__cause__ from None


def _refusal(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    if status in _LOST_RACE:
        return "somebody else commits to it; try again later"
    said = (error.server_message or "").splitlines() or ["no reason given"]
    remedy = _REMEDIES.get(status, "try again later" if status >= 500 else "")
    return f"the Hub refuses with {status} ({said[0]})" + (f"; {remedy}" if remedy else "")


def _broken(api: HfApi, error: Exception) -> str:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return f"the connection to {api.endpoint} failed ({reason}); check the network, and try again"
