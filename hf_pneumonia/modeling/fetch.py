"""A model's name -> the folder of its files, a local one or the cache of a repository of the Hub.

Knows nothing of what is in the files.
"""

import errno
import warnings
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, get_token, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_pneumonia.errors import UsageError

# All of one commit. A pickle is not even downloaded, and transformers is not handed the repository's name:
# where safetensors are missing it would have the Hub convert other people's weights, and open a pull request.
_FILES = [
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "model*.safetensors",
    "gate.safetensors",
    "model.safetensors.index.json",
]
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_LOGIN = "`hf auth login`, or set HF_TOKEN"


def model_folder(name: str, revision: str | None = None) -> Path:
    """Folder of a model's files, fetched where it is a repository of the Hub.

    Args:
        name: run folder, any local folder, or a repository (user/name).
        revision: branch, tag or commit of a repository.

    Raises:
        UsageError: there is no such model, it can't be had, or it has no weights in safetensors.
    """
    folder = Path(name).expanduser()
    _check_folder(name, folder)
    if folder.is_dir():
        if revision is not None:
            raise _wrong(name, f"a folder has no revision {revision!r}; leave it out")
        files = [path.name for path in folder.iterdir()]
        _check_weights(name, files, files)
        return folder
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Not enough free disk space"
            )  # said in one line if it comes to it
            fetched = Path(snapshot_download(name, revision=revision, allow_patterns=_FILES))
        files = [path.name for path in fetched.glob("*")]  # the folder is missing where no file matched
        there = files if _has_weights(files) else HfApi().list_repo_files(name, revision=revision)
    # RuntimeError: the Xet client's, a full disk among them.
    except (httpx2.HTTPError, OSError, ValueError, RuntimeError, EntryNotFoundError) as error:
        raise _wrong(name, _reason(error, revision)) from error
    if "config.json" not in there:
        raise _wrong(name, "there is no model in it (config.json is missing)")
    _check_weights(name, files, there)
    return fetched


def _wrong(name: str, problem: str) -> UsageError:
    return UsageError(f"expected a run folder or a Hub repository, got {name!r}: {problem}")


def _check_folder(name: str, folder: Path) -> None:
    """What can be said better of a folder than transformers does."""
    problem = None
    if folder.is_dir() and not (folder / "config.json").is_file():
        problem = "there is no model in it (config.json is missing)"
        if any(folder.glob("checkpoint-*")):
            problem = "its training is not finished; go on with --resume_from_checkpoint true"
    elif folder.is_file():
        problem = "it is a file"
    elif not folder.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        problem = "no such folder"
    if problem:
        raise _wrong(name, problem)


def _has_weights(files: list[str]) -> bool:
    return any(file.startswith("model") and file.endswith(".safetensors") for file in files)


def _check_weights(name: str, files: list[str], there: list[str]) -> None:
    if _has_weights(files):
        return
    if pickles := sorted(file for file in there if file.endswith(_PICKLES) and file != "training_args.bin"):
        raise UsageError(
            f"{name}: only pickled weights ({pickles[0]}), which are never loaded; convert them to "
            "safetensors"
        )
    raise _wrong(name, "there are no weights in it (model.safetensors is missing)")


def _reason(error: BaseException, revision: str | None) -> str:
    """Why a repository can't be had, in a few words, and what to do."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__

    def first(*kinds: type) -> BaseException | None:
        return next((one for one in chain if isinstance(one, kinds)), None)

    full = (errno.ENOSPC, errno.EDQUOT)
    if any(getattr(one, "errno", None) in full or "No space left" in str(one) for one in chain):
        return f"no space left in {constants.HF_HUB_CACHE}; free some, or set HF_HOME to a folder with more"
    if denied := first(PermissionError):
        return f"no permission to write {denied.filename}; set HF_HOME to a folder of yours"
    if first(RevisionNotFoundError):
        return f"it has no branch, tag or commit {revision!r}"
    if first(GatedRepoError):
        return f"its owner grants access on its page; ask there, then {_LOGIN}"
    answer = first(HfHubHTTPError)
    status = answer.response.status_code if answer else 0
    # The Hub answers 401 to a stranger who asks for what is not there.
    if first(RepositoryNotFoundError) or (status == 401 and get_token() is None):
        return f"no such repository, or a private one and no token that opens it; {_LOGIN}"
    if status:
        refused = {401: "the Hub refuses the token", 403: "the token gives no right to read it"}
        todo = _LOGIN if status in refused else "try later"
        return f"{refused.get(status, 'the Hub failed')} ({status}); {todo}"
    if constants.is_offline_mode():
        return "it is not on this machine, and HF_HUB_OFFLINE keeps it from being fetched"
    if first(httpx2.TransportError, ConnectionError, LocalEntryNotFoundError):
        return "no connection to the Hub, and it was not fetched before"
    return (str(error) or type(error).__name__).splitlines()[0]
