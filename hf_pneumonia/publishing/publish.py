"""Publication of a finished run as a model repository, and of the app as a Space, on the Hub."""

import json
import logging
import platform
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import jinja2
import torch
import yaml
from huggingface_hub import HfApi

import hf_pneumonia
from hf_pneumonia.data.files import read_json
from hf_pneumonia.data.manifest import MANIFEST
from hf_pneumonia.errors import UsageError
from hf_pneumonia.hub import Commit, commit_files, content_sha256, download_files
from hf_pneumonia.inference.classifier import COMPANION_FILES
from hf_pneumonia.modeling.build import network_input
from hf_pneumonia.modeling.saved import SavedModel, load_model
from hf_pneumonia.publishing.card import PLOTS, TEMPLATE, card, eval_result_files
from hf_pneumonia.publishing.private import check_private, check_source_code
from hf_pneumonia.publishing.public_report import (
    RECIPE_KEYS,
    public_recipe,
    public_report,
    recipe_yaml,
    summarise_manifest,
)
from hf_pneumonia.training.checkpoints import checkpoints

COPIED_FILES = ("config.json", "model.safetensors")
OPTIONAL_FILES = ("gate.safetensors",)  # missing for a network trained on too few images

# Words in the front matter of every card.
_FRONT_MATTER = ("license", "library name", "pipeline tag", "datasets", "model index", "type", "value")


def public_files(run: Path, repo: str) -> dict[str, Path | bytes]:
    """Return all files to publish for a run: its own, and generated ones.

    The result is deterministic: the same run gives the same bytes.

    Args:
        run: folder of a finished run of train.py.
        repo: user/name of the published model.

    Returns:
        Path in the repository -> file, or its content.

    Raises:
        UsageError: a file is missing or damaged, the report lacks a value that the card needs, or a file
            fails `check_private`.
    """
    for name in ("report.json", "recipe.yaml", MANIFEST, *COPIED_FILES, *PLOTS):
        if not (run / name).is_file():
            raise UsageError(
                "not-a-finished-run",
                f"{run}: expected a finished run of train.py, got no {name}. Train again",
            )
    try:
        report, config = (read_json(run / name) for name in ("report.json", "config.json"))
        if not isinstance(report, dict) or not isinstance(config, dict):
            raise ValueError("not an object")
        _check_weights(run, report, config)
        made, innocent = _made_files(run, report, config, repo)
        _json(config)  # refuses NaN
    except (KeyError, TypeError, jinja2.UndefinedError) as error:
        raise UsageError(
            "report-incomplete",
            f"{run / 'report.json'}: expected {error}, which the model card needs, got none. "
            "Train again with this version",
        ) from error
    except ValueError as error:  # also NaN and infinity, from _json
        raise UsageError(
            "damaged-json",
            f"{run}: expected valid JSON in report.json and config.json, got an error ({error}). Train again",
        ) from error
    there = [name for name in OPTIONAL_FILES if (run / name).is_file()]
    files = made | {name: run / name for name in (*COPIED_FILES, *there, *PLOTS)}
    check_private(files, run, innocent)
    return dict(sorted(files.items()))


def write_card(run: Path) -> None:
    """Write the model card of a finished run to its README.md.

    Raises:
        UsageError: as for `public_files`.
    """
    content = public_files(run, f"USER/{run.resolve().name}")["README.md"]
    (run / "README.md").write_bytes(content)  # type: ignore[arg-type]  # a made file: bytes


def _made_files(run: Path, report: dict, config: dict, repo: str) -> tuple[dict[str, Path | bytes], str]:
    """Return the generated files of a run, and the words that are allowed in them even as image names."""
    manifest = summarise_manifest(run, report)
    sources = list(manifest["sources"])
    recipe = public_recipe(report["recipe"], sources)
    public = public_report(report, sources)
    all_public = all(source["kind"] != "local" for source in manifest["sources"].values())
    files: dict[str, Path | bytes] = {
        "README.md": card(public, config, recipe, manifest, repo).encode(),
        "report.json": _json(public),
        "recipe.yaml": recipe_yaml(recipe, all_public, report["recipe"]).encode(),
        "manifest.json": _json(manifest),
        **eval_result_files(public, recipe, manifest, repo),
    }
    innocent = [TEMPLATE.read_text(encoding="utf-8"), *PLOTS.values(), repo, *RECIPE_KEYS, *sources]
    innocent += public["checks"]["subgroups"]["families"]  # each is shared by at least five patients
    innocent += [*_keys(public), *_keys(config), *_FRONT_MATTER]
    innocent += [str(value) for value in (*recipe.values(), *report["versions"].values(), report["device"])]
    return files, " ".join(innocent)


def _keys(value: object) -> Iterator[str]:
    """Yield all keys of nested tables, except those of `families`, which are made of file names."""
    if isinstance(value, list):
        for item in value:
            yield from _keys(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _keys(item if key != "families" else list(item.values()))


def _check_weights(run: Path, report: dict, config: dict) -> None:
    """Refuse weights and a config that are not those of the report."""
    stated = config.get("pneumonia")
    if not isinstance(stated, dict) or "threshold" not in stated:
        raise UsageError(
            "config-incomplete",
            f"{run / 'config.json'}: expected an operating point, got none. Train again with this version",
        )
    if stated["threshold"] != report["operating_point"]["threshold"]:
        raise UsageError(
            "mixed-runs", f"{run}: expected config.json and report.json of one run, got two. Train again"
        )
    # Reports of earlier versions have no hashes.
    for key, name in (("weights_sha256", "model.safetensors"), ("gate_sha256", "gate.safetensors")):
        file = run / name
        if key in report and (not file.is_file() or report[key] != content_sha256(file)):
            raise UsageError(
                "weights-differ-from-report",
                f"{run / name}: expected the file that report.json lists, got none or another. Train again",
            )


def _json(value: dict) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


logger = logging.getLogger(__name__)

# Weights that other programs may prefer to ours; most of these formats can execute code.
_FOREIGN = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack", ".keras", ".joblib")

# Files of an earlier model that loaders would read, and its metrics.
_STALE = (".eval_results/", *COMPANION_FILES)

_MANY = 20  # a folder with more files is listed in one line

_IMAGES = 4  # random images on which the downloaded model is compared

_PACKAGE = Path(hf_pneumonia.__file__).parent
_ROOT = _PACKAGE.parent

# Dependencies of timm, not in requirements.txt (see there); pinned so that a rebuilt Space predicts the same.
_BESIDE = ("torch", "torchvision")

_SUFFIXES = (".py", ".md", ".css", ".js", ".html")

_SPACE_README = """
Demo of [{repo}](https://huggingface.co/{repo}), a classifier of pneumonia on chest X-rays. Its model card
describes the training data, the evaluation and the limits.

**Not a medical device.** For research and teaching only. Uploads are deleted within ten minutes; their names
and pixels are not logged.

Upload one or more JPEG, PNG (8 or 16 bits) or DICOM files, or a zip file of them. The limit is 20 MB and 40
megapixels per image. From a program:

```python
from gradio_client import Client, handle_file

answer = Client("USER/SPACE").predict(handle_file("image.jpeg"), api_name="/predict")
print(answer["decision"], answer["probability"])  # for example: pneumonia 0.96
```

To run the app elsewhere, copy this folder and run `pip install -r requirements.txt` and `python app.py`. To
serve another model, pass `--model` or set the environment variable `MODEL_ID`. For a private model, set the
secret `HF_TOKEN` in the Space's settings.
"""


def prepare_run(run: Path, repo: str) -> dict[str, Path | bytes]:
    """Check a run and return the files to publish, without network access.

    Args:
        run: folder of a finished run of train.py.
        repo: USER/NAME on the Hub.

    Returns:
        Path in the repository -> file, or its content.

    Raises:
        UsageError: the folder is not a finished run, or its files are damaged.
    """
    _check_run(run)
    _load(run)
    return public_files(run, repo)


def listing(files: dict[str, Path | bytes]) -> list[str]:
    """Return lines with the files and their sizes, large folders in one line, and the total."""
    inside = Counter(name.partition("/")[0] for name in files if "/" in name)
    sizes: Counter[str] = Counter()
    for name, content in sorted(files.items()):
        folder = name.partition("/")[0]
        many = inside[folder] > _MANY
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        sizes[f"{folder}/ ({inside[folder]} files)" if many else name] += size
    sizes[f"total of {len(files)} files"] = sum(sizes.values())
    width = max(map(len, sizes))
    return [f"  {name:{width}}  {_readable(size):>8}" for name, size in sizes.items()]


def publish_model(
    api: HfApi,
    run: Path,
    files: dict[str, Path | bytes],
    repo: str,
    *,
    private: bool = False,
    revision: str = "main",
) -> Commit:
    """Publish a run as one commit, download it again and compare the predictions.

    Args:
        api: with the token to use; without one, HF_TOKEN or the saved login is used.
        run: the run's folder.
        files: from `prepare_run`.
        repo: USER/NAME, created if missing.
        private: create the repository as private.
        revision: branch, created if missing.

    Raises:
        UsageError: the upload fails, or the downloaded model differs from the run.
    """
    message = "Publish a fine-tuned network"
    commit = commit_files(api, repo, files, message=message, private=private, revision=revision, stale=_STALE)
    for name in commit.others:
        if name.endswith(_FOREIGN):
            logger.warning("%s: also contains %s, not part of this run; delete it if unused", repo, name)
    try:
        with tempfile.TemporaryDirectory() as folder:
            download_files(api, repo, commit.sha, files, Path(folder))
            same = torch.equal(_logits(_load(Path(folder))), _logits(_load(run)))
    except UsageError as error:
        raise UsageError(error.code, f"published as {commit.url}, but not verified: {error}") from error
    if not same:
        raise UsageError(
            "published-model-differs",
            f"{commit.url}: expected the predictions of {run}, got others after a download. Publish again",
        )
    return commit


def publish_space(api: HfApi, repo: str, space: str, *, private: bool = False) -> Commit:
    """Create or update a Gradio Space that serves a model on the Hub, as one commit.

    Args:
        api: as for `publish_model`.
        repo: the model's repository, USER/NAME.
        space: USER/SPACE, created if missing.
        private: create the Space as private.

    Raises:
        UsageError: the upload fails.
    """
    return commit_files(
        api,
        space,
        space_files(repo),
        message=f"Serve {repo}",
        repo_type="space",
        private=private,
        stale=("hf_pneumonia/",),  # remove modules that have been renamed since
    )


def space_files(repo: str) -> dict[str, Path | bytes]:
    """Return the files of a Gradio Space that serves a model: app, package and pinned requirements.

    Args:
        repo: the model's repository, user/name, written to `models` in the front matter of README.md, where
            the Hub and app.py look for it.

    Returns:
        Path in the Space -> file, or its content.

    Raises:
        UsageError: app.py or requirements.txt is not beside the package, as after an installation with pip;
            or a file contains a token or the path of the home folder.
    """
    beside = [_ROOT / name for name in ("app.py", "requirements.txt")]
    if missing := [path.name for path in beside if not path.is_file()]:
        raise UsageError(
            "space-needs-checkout",
            f"--space: expected {missing[0]} beside {_PACKAGE.name}, got none. Run it in a checkout",
        )
    package = {
        path.relative_to(_ROOT).as_posix(): path
        for path in sorted(_PACKAGE.rglob("*"))
        if path.suffix in _SUFFIXES
    }
    files: dict[str, Path | bytes] = {
        "README.md": _space_readme(repo).encode(),
        "app.py": _ROOT / "app.py",
        "requirements.txt": _pinned((_ROOT / "requirements.txt").read_text()).encode(),
        **package,
    }
    check_source_code(files)
    return files


def _check_run(run: Path) -> None:
    problem = None
    if not run.is_dir():
        problem = "it is a file" if run.is_file() else "no such folder"
    elif not (run / "report.json").is_file() and _seeds(run):
        problem = f"it contains one run per seed. Choose one of {', '.join(_seeds(run))}"
    elif checkpoints(run):
        problem = "its training is not finished. Resume it with --resume_from_checkpoint true"
    elif not (run / "report.json").is_file():
        problem = "report.json is missing. Train again"
    elif not (run / "model.safetensors").is_file():
        problem = "it has a report but no weights, like an evaluation. Publish the run that was evaluated"
    if problem:
        raise UsageError(
            "not-a-finished-run",
            f"RUN: expected the folder of a finished run of train.py, got {str(run)!r}: {problem}",
        )


def _seeds(run: Path) -> list[str]:
    return sorted(str(path) for path in run.glob("seed-*") if path.is_dir())


def _load(folder: Path) -> SavedModel:
    # An absolute path can't be mistaken for the name of a repository.
    return load_model(str(folder.resolve()))


@torch.inference_mode()
def _logits(saved: SavedModel) -> torch.Tensor:
    """Return the logits of a few fixed noise images."""
    size = (_IMAGES, saved.image_size, saved.image_size)
    images = torch.randint(256, size, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return saved.model(network_input(images)).logits


def _readable(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.{0 if unit == 'B' else 1}f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _space_readme(repo: str) -> str:
    head = {
        "title": "Pneumonia on chest X-rays",
        "emoji": "🩻",
        "colorFrom": "gray",
        "colorTo": "blue",
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        "python_version": ".".join(platform.python_version_tuple()[:2]),
        "app_file": "app.py",
        "models": [repo],
        "license": "apache-2.0",
        "short_description": "Research and teaching only, not a medical device",
    }
    front_matter = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    return f"---\n{front_matter}---\n{_SPACE_README.format(repo=repo)}"


def _pinned(requirements: str) -> str:
    """Pin the requirements to the installed versions, with which the model was verified."""
    names = re.findall(r"^([\w.-]+)", requirements, re.MULTILINE)
    # PyPI does not have local versions such as 2.15.0+cpu.
    return "".join(f"{name}=={version(name).split('+')[0]}\n" for name in (*names, *_BESIDE))
