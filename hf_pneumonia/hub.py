"""Upload to and download from a repository on the Hugging Face Hub, in one commit."""

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
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

from hf_pneumonia.errors import DISK_FULL, UsageError

_LOST_RACE = (409, 412)  # another commit came first

_FIXES = {
    401: "The token is invalid or expired: run `hf auth login`, or set HF_TOKEN",
    402: "The Hub requires a payment: see its pricing page",
    403: "The token has no write access there: check the user name, or create a token with write access",
    404: "Check the name",
    429: "Too many requests: try again in some minutes",
}


@dataclass(frozen=True)
class Commit:
    """The state of a repository after `commit_files`.

    Attributes:
        url: web page of the commit.
        sha: hash of the commit, 40 hex digits.
        changed: false if all files were there already and no commit was made.
        others: names of the repository's other files, which were not changed.
        private: whether the repository is private.
    """

    url: str
    sha: str
    changed: bool
    others: list[str]
    private: bool


def check_repo_name(repo: str) -> None:
    """Check the name of a repository without a request.

    Raises:
        UsageError: it is not USER/NAME, or has invalid characters.
    """
    reason = "" if "/" in repo else ". Add the user name"
    try:
        if repo.count("/") == 1:
            return validate_repo_id(repo)
    except HFValidationError as error:
        reason = f". {str(error).splitlines()[0]}"
    raise UsageError("invalid-repo-name", f"Hub repository: expected USER/NAME, got {repo!r}{reason}")


def commit_files(  # type: ignore[return]  # the second turn returns or raises
    api: HfApi,
    repo: str,
    files: Mapping[str, Path | bytes],
    *,
    message: str,
    repo_type: str = "model",
    private: bool = False,
    revision: str = "main",
    stale: Collection[str] = (),
) -> Commit:
    """Publish files in one commit: all of them become visible at once, or none.

    Creates the repository and the branch if they don't exist. If another commit comes first, tries once more
    on top of it. Does not send unchanged files.

    Args:
        api: client with the token to use; without a token HF_TOKEN or the saved login is used.
        repo: USER/NAME.
        files: content or local path by name in the repository.
        message: first line of the commit message.
        repo_type: "model", or "space" for a Gradio Space.
        private: whether a new repository is private; an existing one must then be private, too.
        revision: branch; a new one starts from main.
        stale: outdated files, and folders as "name/", which the same commit deletes.

    Raises:
        UsageError: no token, no write access, no connection, `private` and a public repository, or another
            commit came first twice.
    """
    check_repo_name(repo)
    _check_token(api)
    with _explained(api, repo):
        private = _ensure_repo(api, repo, repo_type, private)
        for is_last in (False, True):
            try:
                head = _head(api, repo, repo_type, revision)
                others = set(api.list_repo_files(repo, repo_type=repo_type, revision=head)) - files.keys()
                old = {name for name in others if any(_covers(pattern, name) for pattern in stale)}
                # Skips unchanged files, and makes no commit if all are unchanged.
                commit = api.create_commit(
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
                changed = commit.oid != head
                return Commit(commit.commit_url, commit.oid, changed, sorted(others - old), private)
            except HfHubHTTPError as error:
                if is_last or error.response.status_code not in _LOST_RACE:
                    raise


def download_files(api: HfApi, repo: str, sha: str, files: dict[str, Path | bytes], folder: Path) -> None:
    """Download the files of a commit, and compare them with the files that were sent.

    Args:
        api: as for `commit_files`.
        repo: USER/NAME of a model repository.
        sha: hash of the commit.
        files: the files that were sent, as for `commit_files`.
        folder: existing folder to which the files are written.

    Raises:
        UsageError: a file is missing or differs, the disk is full, no connection.
    """
    with _explained(api, repo):
        for name, content in files.items():
            try:
                # Forced, because a cached copy would not show what is on the Hub.
                api.hf_hub_download(repo, name, revision=sha, local_dir=folder, force_download=True)
            except RemoteEntryNotFoundError as error:
                raise UsageError(
                    "file-missing-on-hub",
                    f"{repo}: expected {name} on the Hub, got none. Check the .gitignore there",
                ) from error
            if content_sha256(folder / name) != content_sha256(content):
                raise UsageError(
                    "file-differs-on-hub",
                    f"{repo}: expected {name} as sent, got other content. Publish again",
                )


def _ensure_repo(api: HfApi, repo: str, repo_type: str, private: bool) -> bool:
    """Create the repository if it does not exist; return whether it is private."""
    try:
        info = api.repo_info(repo, repo_type=repo_type)
    except RepositoryNotFoundError:
        # None instead of False: an organisation may have another default.
        sdk = "gradio" if repo_type == "space" else None
        api.create_repo(repo, repo_type=repo_type, private=private or None, space_sdk=sdk, exist_ok=True)
        info = api.repo_info(repo, repo_type=repo_type)
    if private and not info.private:
        raise UsageError(
            "repo-is-public",
            f"{repo}: expected a private repository, got a public one; nothing was sent. Make it private in "
            "its settings, or choose another name",
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
            "no-hub-token",
            "Hub token: expected one, got none. Run `hf auth login`, or set HF_TOKEN to one that can write",
        )
    # Checked here, because the libraries would quote the token in their messages.
    if not re.fullmatch("[!-~]+", token):
        raise UsageError(
            "invalid-hub-token",
            "Hub token: expected ASCII without spaces, got other characters. Run `hf auth login`, or set "
            "HF_TOKEN",
        )


def _covers(pattern: str, name: str) -> bool:
    return name.startswith(pattern) if pattern.endswith("/") else name == pattern


def content_sha256(content: Path | bytes) -> str:
    """Return the SHA-256 of a file's content, as hexadecimal digits."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with open(content, "rb") as file:
        return sha_fileobj(file).hex()


@contextmanager
def _explained(api: HfApi, repo: str) -> Iterator[None]:
    """Turn errors of the Hub and of the connection into UsageError, without the token in the message."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise UsageError("hub-offline", "HF_HUB_OFFLINE is set. Unset it to reach the Hub") from error
    except HfHubHTTPError as error:
        raise UsageError("hub-refusal", f"{repo}: {_refusal(error)}") from error
    except HTTPError as error:
        raise UsageError("hub-unreachable", _connection_failed(api, error)) from error
    except OSError as error:
        if error.errno in DISK_FULL:
            raise UsageError("no-space", f"{repo}: no disk space left for the download. Free some") from error
        if error.filename is not None:
            raise  # of a local file
        # hf_xet raises a bare ConnectionError, PermissionError ...
        raise UsageError("hub-unreachable", _connection_failed(api, error)) from error
    except (RuntimeError, ValueError) as error:
        # huggingface_hub wraps the errors of a large upload and of a forced download in these.
        if not isinstance(error.__cause__, HTTPError | OSError):
            raise
        with _explained(api, repo):
            raise error.__cause__ from None


def _refusal(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    if status in _LOST_RACE:
        return "another commit came first twice. Try again later"
    reason = (error.server_message or "no reason given").splitlines()[0]
    fix = _FIXES.get(status, "Try again later" if status >= 500 else "")
    return f"the Hub answered {status} ({reason})" + (f". {fix}" if fix else "")


def _connection_failed(api: HfApi, error: Exception) -> str:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return f"{api.endpoint}: connection failed ({reason}). Check the network, and try again"
