"""Which model is served where none is named: that of the environment, of the Space, or the newest run."""

import os
from pathlib import Path

from huggingface_hub import metadata_load

from hf_pneumonia.errors import UsageError
from hf_pneumonia.training.run_folder import is_finished


def which_model(folder: Path) -> str:
    """Name of the model that a page serves by itself.

    Args:
        folder: of app.py. A Space names its model in its README.md there; a checkout has its runs below
            `runs`.

    Returns:
        `MODEL_ID` of the environment, else the first of the Space's `models`, else the folder of the run that
        was finished last.

    Raises:
        UsageError: there is none of these.
    """
    if named := os.environ.get("MODEL_ID", "").strip():
        return named
    readme = folder / "README.md"
    head = metadata_load(readme) if readme.is_file() else None
    if head and head.get("sdk") == "gradio" and head.get("models"):
        return head["models"][0]
    runs = [
        path.parent for path in (folder / "runs").glob("**/model.safetensors") if is_finished(path.parent)
    ]
    if not runs:
        raise UsageError(
            f"no --model given, and no finished run in {folder / 'runs'}; train one (train.py), or give "
            "--model RUN_OR_REPO"
        )
    return str(max(runs, key=lambda run: (run / "report.json").stat().st_mtime_ns))
