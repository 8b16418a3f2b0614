"""A model's name -> the folder of its files, local or in the Hub's cache, without pickles; and its evidence.

Knows nothing of what is in the files.
"""

import glob
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
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
# A GatedRepoError is a RepositoryNotFoundError, too.
_REASONS = {
    GatedRepoError: "its owner grants access on its page; ask there, then `hf auth login`",
    RepositoryNotFoundError: "no such repository, or a private one and no token that opens it; "
    "`hf auth login`, or set HF_TOKEN",
    RevisionNotFoundError: "it has no such branch, tag or commit",
}


def model_folder(name: str, revision: str | None = None) -> Path:
    """Return the folder of a model's files, which are fetched where it is a repository of the Hub.

    Args:
        name: run folder, any local folder, or a repository (user/name).
        revision: branch, tag or commit of a repository.

    Raises:
        UsageError: there is no such model, it can't be had, or it has no weights in safetensors.
    """
    folder = Path(name).expanduser()
    if folder.exists():
        if revision is not None:
            raise _wrong(name, f"a folder has no revision {revision!r}; leave it out")
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise _wrong(name, "no such folder")
    else:
        with _explained(name):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=_FILES))
    # By the manifest: other people's trainings leave checkpoints beside a finished model.
    if not (folder / "report.json").is_file() and any(folder.glob("checkpoint-*/manifest.json")):
        raise _wrong(name, "its training is not finished; go on with --resume_from_checkpoint true")
    if not (folder / "config.json").is_file():
        raise _wrong(name, "there is no model in it (config.json is missing)")
    if not any(folder.glob("model*.safetensors")):
        raise _wrong(
            name,
            "there are no weights in it (model.safetensors is missing); pickled ones, such as "
            "pytorch_model.bin, are never loaded: convert them to safetensors",
        )
    return folder


def evidence_folder(name: str, revision: str | None = None) -> Path:
    """Return the folder where a model's card, report, plots and examples lie, as far as it has any.

    Of a repository those of the commit whose weights `model_folder` gives; where the Hub can't be asked now,
    what was fetched before.

    Args, Raises: as `model_folder`.
    """
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    model = model_folder(name, revision)
    try:
        with _explained(name):
            # Without a pattern all would be fetched.
            if wanted := [glob.escape(path) for path in _evidence(name, model.name)]:
                snapshot_download(name, revision=model.name, allow_patterns=wanted)
    except UsageError:
        if not (model / "README.md").exists() and not (model / "report.json").exists():
            raise
    return model


def _evidence(name: str, commit: str) -> list[str]:
    """Paths of a commit that `_EVIDENCE` lets through; of too many the first by name."""
    entries = list(HfApi().list_repo_tree(name, revision=commit))
    for folder in [entry.path for entry in entries if isinstance(entry, RepoFolder)]:
        if folder in ("plots", "examples"):
            entries += HfApi().list_repo_tree(name, folder, revision=commit)
    sizes = {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}
    found: list[str] = []
    for patterns, number, largest in _EVIDENCE:
        matching = [path for path in sorted(sizes) if any(fnmatchcase(path, one) for one in patterns)]
        found += [path for path in matching if sizes[path] <= largest][:number]
    return found


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Tell what may happen on the way to the Hub and back in one line."""
    try:
        yield
    # RuntimeError: the Xet client's, a full disk among them.
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        reasons = [reason for kind, reason in _REASONS.items() if isinstance(error, kind)]
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise _wrong(name, [*reasons, said][0]) from error


def _wrong(name: str, problem: str) -> UsageError:
    return UsageError(f"expected a run folder or a Hub repository, got {name!r}: {problem}")
