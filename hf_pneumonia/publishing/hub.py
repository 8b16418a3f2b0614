"""A finished run -> one commit on the Hub, of files that are named here and of no others."""

from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi

from hf_pneumonia.errors import UsageError

# The sheet of samples stays at home, and so do report and predictions: they show or name patients' films.
PUBLISHED = (
    "config.json",
    "model.safetensors",
    "plots/curves.png",
    "plots/confusion_matrix.png",
    "plots/roc.png",
    "plots/reliability.png",
    "plots/robustness.png",
    "plots/class_distribution.png",
)


def publish_run(run: Path, repo: str, private: bool, api: HfApi) -> str:
    """Upload the network and the plots of a finished run as one commit.

    Returns:
        Address of the commit.

    Raises:
        UsageError: the folder holds no finished run.
    """
    missing = [name for name in ("report.json", *PUBLISHED) if not (run / name).is_file()]
    if missing:
        raise UsageError(f"{run} is no finished run of train.py: {missing[0]} is missing")
    api.create_repo(repo, private=private, exist_ok=True)
    commit = api.create_commit(
        repo,
        [CommitOperationAdd(name, str(run / name)) for name in PUBLISHED],
        commit_message="Publish a fine-tuned network",
        parent_commit=api.repo_info(repo).sha,
    )
    return commit.commit_url
