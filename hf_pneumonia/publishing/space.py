"""A published model -> the files of a Gradio Space that serves it: page, package, and what they need."""

import platform
import re
from importlib.metadata import version
from pathlib import Path

import yaml

import hf_pneumonia
from hf_pneumonia.errors import UsageError
from hf_pneumonia.publishing.private import check_source_code

_PACKAGE = Path(hf_pneumonia.__file__).parent
_ROOT = _PACKAGE.parent

# Brought by timm, and not named in requirements.txt for the reason given there. Together they fit, and a
# Space that is rebuilt next year answers as it does today.
_BESIDE = ("torch", "torchvision")

# What the package consists of.
_SUFFIXES = (".py", ".md", ".css", ".js", ".html")

_TEXT = """
Films in, answers out: this page serves [{repo}](https://huggingface.co/{repo}), whose card says what it was
trained on, how good it is, and where it is not to be used.

**This is no medical device.** It is for research and teaching. Uploads are deleted within ten minutes, and no
name or pixel of them is logged.

Films may be JPEG, PNG (16 bits too) or DICOM files, of 20 MB and 40 megapixels at most; many of them at a
time, or a zip file of them. From a program:

```python
from gradio_client import Client, handle_file

answer = Client("USER/SPACE").predict(handle_file("film.jpeg"), api_name="/predict")
print(answer["decision"], answer["probability"])  # such as: pneumonia 0.96
```

`python app.py` in a copy of this folder, after `pip install -r requirements.txt`, serves the same page
elsewhere; `--model`, or `MODEL_ID` in the environment, another model. A private model needs `HF_TOKEN` among
the Space's secrets.
"""


def space_files(repo: str) -> dict[str, Path | bytes]:
    """What a Space holds that serves a model.

    Args:
        repo: the model's repository, user/name. It stands under `models` at the head of README.md, where the
            Hub looks for it and app.py does.

    Returns:
        Content, or the file that has it, of each name in the Space.

    Raises:
        UsageError: app.py and requirements.txt are not beside the package, as in an installation by pip; or
            there is a token or the home folder in a file.
    """
    beside = [_ROOT / name for name in ("app.py", "requirements.txt")]
    if missing := [path.name for path in beside if not path.is_file()]:
        raise UsageError(f"--space needs a checkout of the project: {missing[0]} is not beside its package")
    package = {
        path.relative_to(_ROOT).as_posix(): path
        for path in sorted(_PACKAGE.rglob("*"))
        if path.suffix in _SUFFIXES
    }
    files = {
        "README.md": _readme(repo).encode(),
        "app.py": _ROOT / "app.py",
        "requirements.txt": _pinned((_ROOT / "requirements.txt").read_text()).encode(),
        **package,
    }
    check_source_code(files)
    return files


def _readme(repo: str) -> str:
    head = {
        "title": "Pneumonia on chest films",
        "emoji": "🩻",
        "colorFrom": "gray",
        "colorTo": "blue",
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        "python_version": ".".join(platform.python_version_tuple()[:2]),
        "app_file": "app.py",
        "models": [repo],
        "license": "apache-2.0",
        "short_description": "Research and teaching only: no medical device",
    }
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n{_TEXT.format(repo=repo)}"


def _pinned(requirements: str) -> str:
    """The requirements at the versions that run here, which are those that the model was verified with."""
    names = re.findall(r"^([\w.-]+)", requirements, re.MULTILINE)
    # A wheel's local version (2.15.0+cpu) is on no index.
    return "".join(f"{name}=={version(name).split('+')[0]}\n" for name in (*names, *_BESIDE))
