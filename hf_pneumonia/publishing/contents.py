"""A finished run -> the files that it publishes, by their names in the repository, and no others."""

from pathlib import Path

from hf_pneumonia.errors import UsageError

# Of figures only: plots/shortcuts.png and plots/samples.png show films, and stay.
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


def public_files(run: Path, repo: str) -> dict[str, Path | bytes]:
    """Everything that publishing a run sends.

    Args:
        run: folder of a finished run of train.py.
        repo: user/name, under which it will stand.

    Returns:
        Path in the repository -> file, or its content.

    Raises:
        UsageError: a file is missing.
    """
    for name in ("report.json", *PUBLISHED):
        if not (run / name).is_file():
            raise UsageError(f"{run} is no finished run of train.py: {name} is missing; train again")
    return {name: run / name for name in PUBLISHED}
