"""A model's name -> the folder of its files, a local one or the cache of a repository of the Hub; and of what
the model publishes of itself.

Knows nothing of what is in the files.
"""

import errno
import glob
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
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
from huggingface_hub.hf_api import RepoFile, RepoFolder

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
# What a model publishes of itself beside its weights: which files, how many of them at most, and how large
# each may be in bytes. What is more, or larger, is not fetched; and of a local folder not shown.
LARGEST_TEXT, LARGEST_PLOT = 5_000_000, 4_000_000
MOST_EXAMPLES, LARGEST_EXAMPLE = 8, 20_000_000
EXAMPLES = (".jpeg", ".jpg", ".png", ".dcm")
_EVIDENCE = (
    (("README.md", "report.json"), 2, LARGEST_TEXT),
    (("plots/*.png",), 16, LARGEST_PLOT),
    (tuple(f"examples/*{ending}" for ending in EXAMPLES), MOST_EXAMPLES, LARGEST_EXAMPLE),
    (("examples/README.md", "examples/LICENSE"), 2, 100_000),
)
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
    with _explained(name, revision):
        fetched = Path(snapshot_download(name, revision=revision, allow_patterns=_FILES))
        files = [path.name for path in fetched.glob("*")]  # the folder is missing where no file matched
        there = files if _has_weights(files) else HfApi().list_repo_files(name, revision=revision)
    if "config.json" not in there:
        raise _wrong(name, "there is no model in it (config.json is missing)")
    _check_weights(name, files, there)
    return fetched


def evidence_folder(name: str, revision: str | None = None) -> Path:
    """Folder where a model's card, report, plots and examples lie, as far as it has any, beside its weights.

    Of a repository those of the commit whose weights `model_folder` fetched last, whatever has been committed
    since; and where they were fetched before, and the Hub can't be asked now, those.

    Args:
        name: run folder, any local folder, or a repository (user/name).
        revision: branch, tag or commit of a repository.

    Raises:
        UsageError: there is no such model, or its files can't be had.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    model = _fetched_before(name, revision) or model_folder(name, revision)
    try:
        with _explained(name, revision):
            wanted = [glob.escape(path) for path in _evidence(name, model.name)]
            if wanted:
                snapshot_download(name, revision=model.name, allow_patterns=wanted)
    except UsageError:
        if not (model / "README.md").exists() and not (model / "report.json").exists():
            raise
    return model


def _fetched_before(name: str, revision: str | None) -> Path | None:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_FILES, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError):  # ValueError: no name of a repository
        return None


def _evidence(name: str, commit: str) -> list[str]:
    """Paths of a commit that `_EVIDENCE` lets through; of too many the first by name."""
    entries = list(HfApi().list_repo_tree(name, revision=commit))
    for folder in ("plots", "examples"):
        if any(isinstance(entry, RepoFolder) and entry.path == folder for entry in entries):
            entries += HfApi().list_repo_tree(name, folder, revision=commit)
    sizes = {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}
    found: list[str] = []
    for patterns, number, largest in _EVIDENCE:
        matching = [path for path in sorted(sizes) if any(fnmatchcase(path, one) for one in patterns)]
        found += [path for path in matching if sizes[path] <= largest][:number]
    return found


@contextmanager
def _explained(name: str, revision: str | None) -> Iterator[None]:
    """What may happen on the way to the Hub and back, as one line."""
    try:
        with warnings.catch_warnings():
            # Said in one line if it comes to it.
            warnings.filterwarnings("ignore", "Not enough free disk space")
            yield
    # RuntimeError: the Xet client's, a full disk among them.
    except (httpx2.HTTPError, OSError, ValueError, RuntimeError, EntryNotFoundError) as error:
        raise _wrong(name, _reason(error, revision)) from error


def _wrong(name: str, problem: str) -> UsageError:
    return UsageError(f"expected a run folder or a Hub repository, got {name!r}: {problem}")


def _check_folder(name: str, folder: Path) -> None:
    """What can be said better of a folder than transformers does."""
    problem = None
    has_model = (folder / "config.json").is_file()
    # By the manifest: other people's trainings leave checkpoints beside a finished model.
    unfinished = not (folder / "report.json").is_file() and any(folder.glob("checkpoint-*/manifest.json"))
    if folder.is_dir() and (unfinished or not has_model):
        problem = "there is no model in it (config.json is missing)"
        if unfinished or any(folder.glob("checkpoint-*/")):
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
