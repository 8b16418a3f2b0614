"""The environment of a process that the page starts: this one's, less what is nobody else's business."""

import os
from collections.abc import Sequence
from pathlib import Path

import hf_pneumonia

_SECRET = ("TOKEN", "SECRET", "KEY", "PASSW", "CREDENTIAL")  # in names of environment variables


def without_secrets(kept: Sequence[str] = ()) -> dict[str, str]:
    """This process's own environment without what looks like a token, and with this package to be found.

    Args:
        kept: beginnings of names that stay though they look like one.
    """
    root = str(Path(hf_pneumonia.__file__).parents[1])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    plain = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(tuple(kept)) or not any(word in name.upper() for word in _SECRET)
    }
    # Safe: `python -m` would look for modules in the folder where the server was started first (3.11 on).
    return {**plain, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
