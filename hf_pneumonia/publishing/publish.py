"""A finished run -> the files that it publishes, by an allow-list; a model on the Hub, checked after it arrived; a Space."""

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
from hf_pneumonia.data.manifest import MANIFEST
from hf_pneumonia.errors import UsageError
from hf_pneumonia.hub import Commit, commit_files, content_sha256, download_files, file_size
from hf_pneumonia.inference.classifier import READ_ALONG
from hf_pneumonia.modeling.build import network_input
from hf_pneumonia.modeling.saved import SavedModel, load_model
from hf_pneumonia.publishing.card import TEMPLATE, card, eval_result_files
from hf_pneumonia.publishing.private import check_private, check_source_code
from hf_pneumonia.publishing.public_report import (
    RECIPE_KEYS,
    public_recipe,
    public_report,
    recipe_yaml,
    summarise_manifest,
)
from hf_pneumonia.training.checkpoints import checkpoints

AS_THEY_ARE = ("config.json", "model.safetensors")
WHERE_THERE = ("gate.safetensors",)  # a network trained on a handful of images has none

# Plots of numbers only: plots/shortcuts.png and plots/samples.png show images, and stay.
PLOTS = (
    "plots/curves.png",
    "plots/confusion_matrix.png",
    "plots/roc.png",
    "plots/reliability.png",
    "plots/robustness.png",
    "plots/class_distribution.png",
)

# Words in the front matter of every card.
_FRONT_MATTER = ("license", "library name", "pipeline tag", "datasets", "model index", "type", "value")


def public_files(run: Path, repo: str) -> dict[str, Path | bytes]:
    """Return everything that publishing a run sends: files of it as they are, and files made of it here.

    The same run gives the same bytes.

    Args:
        run: folder of a finished run of train.py.
        repo: user/name of the published model.

    Returns:
        Path in the repository -> file, or its content.

    Raises:
        UsageError: a file is missing or damaged, the report lacks what the card needs, or something names
            this machine, an image or a patient (`check_private`).
    """
    for name in ("report.json", "recipe.yaml", MANIFEST, *AS_THEY_ARE, *PLOTS):
        if not (run / name).is_file():
            raise UsageError(
                "public-files", f"{run} is no finished run of train.py: {name} is missing; train again"
            )
    report, config = (_read_json(run / name) for name in ("report.json", "config.json"))
    try:
        _check_weights(run, report, config)
        made, innocent = _made_files(run, report, config, repo)
    except (KeyError, TypeError, jinja2.UndefinedError) as error:
        raise UsageError(
            "public-files",
            f"{run / 'report.json'} lacks {error}, which the card needs; train again with this version",
        ) from error
    there = [name for name in WHERE_THERE if (run / name).is_file()]
    files = made | {name: run / name for name in (*AS_THEY_ARE, *there, *PLOTS)}
    check_private(files, run, innocent)
    return dict(sorted(files.items()))


def write_card(run: Path) -> None:
    """Write the model card of a finished run as its README.md; publishing makes it again.

    Raises:
        UsageError: as `public_files`.
    """
    (run / "README.md").write_bytes(public_files(run, f"USER/{run.resolve().name}")["README.md"])


def _made_files(run: Path, report: dict, config: dict, repo: str) -> tuple[dict[str, Path | bytes], str]:
    """The files that are made of a run; and the words of every card, whatever its images are called."""
    manifest = summarise_manifest(run, report)
    sources = list(manifest["sources"])
    recipe = public_recipe(report["recipe"], sources)
    public = public_report(report, sources)
    everybodys = all(source["kind"] != "local" for source in manifest["sources"].values())
    files: dict[str, Path | bytes] = {
        "README.md": card(public, config, recipe, manifest, repo).encode(),
        "report.json": _json(public),
        "recipe.yaml": recipe_yaml(recipe, everybodys, report["recipe"]).encode(),
        "manifest.json": _json(manifest),
        **eval_result_files(public, recipe, manifest, repo),
    }
    said = [TEMPLATE.read_text(encoding="utf-8"), repo, *RECIPE_KEYS, *sources]
    said += public["checks"]["subgroups"]["families"]  # letters that images of five patients or more share
    said += [*_keys(public), *_keys(config), *_FRONT_MATTER]
    said += [str(value) for value in (*recipe.values(), *report["versions"].values(), report["device"])]
    return files, " ".join(said)


def _keys(value: object) -> Iterator[str]:
    """The keys of a table and of those in it, but for those that are made of the names of files."""
    if isinstance(value, list):
        for one in value:
            yield from _keys(one)
    elif isinstance(value, dict):
        for key, one in value.items():
            yield key
            yield from _keys(one if key != "families" else list(one.values()))


def _check_weights(run: Path, report: dict, config: dict) -> None:
    """Refuse weights and a config that the report does not describe."""
    stated = config.get("pneumonia")
    if not isinstance(stated, dict) or "threshold" not in stated:
        raise UsageError(
            "weights", f"{run / 'config.json'} states no operating point; train again with this version"
        )
    if stated["threshold"] != report["operating_point"]["threshold"]:
        raise UsageError("weights", f"{run}: config.json and report.json are of different runs; train again")
    # Reports of earlier versions do not say.
    for key, name in (("weights_sha256", "model.safetensors"), ("gate_sha256", "gate.safetensors")):
        file = run / name
        if key in report and (not file.is_file() or report[key] != content_sha256(file)):
            raise UsageError(
                "weights",
                f"{run}: {name} is missing or damaged, or not the one that report.json speaks of; train again",
            )


def _read_json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except ValueError as error:
        raise UsageError("json", f"{path} is damaged ({error}); train again") from error
    if not isinstance(found, dict):
        raise UsageError("json", f"{path} is damaged (no table of keys); train again")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _json(value: dict) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


logger = logging.getLogger(__name__)

# Weights that others' programs may load before ours, most of them by running what is in them.
_FOREIGN = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack", ".keras", ".joblib")

# Files of an earlier model that loaders would read beside the new one's, and figures of other weights.
_STALE = (".eval_results/", *READ_ALONG)

_MANY = 20  # files of a folder, from which on nobody reads their names

_IMAGES = 4  # on which what came back is compared

_PACKAGE = Path(hf_pneumonia.__file__).parent
_ROOT = _PACKAGE.parent

# Brought by timm, and not named in requirements.txt for the reason given there. Together they fit, and a
# Space that is rebuilt next year answers as it does today.
_BESIDE = ("torch", "torchvision")

_SUFFIXES = (".py", ".md", ".css", ".js", ".html")

_SPACE_README = """
Images in, answers out: this page serves [{repo}](https://huggingface.co/{repo}), whose card says what it was
trained on, how good it is, and where it is not to be used.

**This is no medical device.** It is for research and teaching. Uploads are deleted within ten minutes, and no
name or pixel of them is logged.

Images may be JPEG, PNG (16 bits too) or DICOM files, of 20 MB and 40 megapixels at most; many of them at a
time, or a zip file of them. From a program:

```python
from gradio_client import Client, handle_file

answer = Client("USER/SPACE").predict(handle_file("image.jpeg"), api_name="/predict")
print(answer["decision"], answer["probability"])  # such as: pneumonia 0.96
```

`python app.py` in a copy of this folder, after `pip install -r requirements.txt`, serves the same page
elsewhere; `--model`, or `MODEL_ID` in the environment, another model. A private model needs `HF_TOKEN` among
the Space's secrets.
"""


def prepare_run(run: Path, repo: str) -> dict[str, Path | bytes]:
    """Check a run, and return what publishing it would send. No network.

    Args:
        run: folder of a finished run of train.py.
        repo: USER/NAME, under which it will stand.

    Returns:
        Path in the repository -> file, or its content.

    Raises:
        UsageError: the folder holds no finished run, or its files are damaged.
    """
    _check_run(run)
    try:
        _load(run)
    except UsageError as error:
        raise UsageError("prepare-run", f"{run} can't be published: {error}") from error
    return public_files(run, repo)


def listing(files: dict[str, Path | bytes]) -> list[str]:
    """Return the files and their sizes, a line each, or one for a folder of many; and their sum."""
    inside = Counter(name.partition("/")[0] for name in files if "/" in name)
    sizes: Counter[str] = Counter()
    for name, content in sorted(files.items()):
        folder = name.partition("/")[0]
        many = inside[folder] > _MANY
        sizes[f"{folder}/ ({inside[folder]} files)" if many else name] += file_size(content)
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
    """Send a run as one commit, fetch it again by the commit's hash, and compare its answers with the run's.

    Args:
        api: with the token to use, or none for HF_TOKEN or the saved login.
        run: the run's folder.
        files: from `prepare_run`.
        repo: USER/NAME, made where missing.
        private: only its owner may see a repository that is made now.
        revision: branch, made where missing.

    Raises:
        UsageError: it can't be sent, or what came back is not what was sent.
    """
    message = "Publish a fine-tuned network"
    commit = commit_files(api, repo, files, message=message, private=private, revision=revision, stale=_STALE)
    for name in commit.others:
        if name.endswith(_FOREIGN):
            logger.warning("%s also holds %s, which is not of this run: delete it if it is yours", repo, name)
    try:
        with tempfile.TemporaryDirectory() as folder:
            download_files(api, repo, commit.sha, files, Path(folder))
            same = torch.equal(_answers(_load(Path(folder))), _answers(_load(run)))
    except UsageError as error:
        raise UsageError("publish-model", f"sent as {commit.url}, but not checked: {error}") from error
    if not same:
        raise UsageError(
            "publish-model", f"what came back from {commit.url} answers otherwise than {run}; publish again"
        )
    return commit


def publish_space(api: HfApi, repo: str, space: str, *, private: bool = False) -> Commit:
    """Make or update a Gradio Space that serves a model of the Hub, as one commit.

    Args:
        api: as for `publish_model`.
        repo: the model, USER/NAME.
        space: USER/SPACE, made where missing.
        private: only its owner may see a Space that is made now.

    Raises:
        UsageError: it can't be sent.
    """
    return commit_files(
        api,
        space,
        space_files(repo),
        message=f"Serve {repo}",
        repo_type="space",
        private=private,
        stale=("hf_pneumonia/",),  # a module that was renamed since would lie beside the new one
    )


def space_files(repo: str) -> dict[str, Path | bytes]:
    """Return the files of a Gradio Space that serves a model: page, package, and pinned requirements.

    Args:
        repo: the model's repository, user/name. It is under `models` in the front matter of README.md, where
            the Hub and app.py look for it.

    Returns:
        Path in the Space -> file, or its content.

    Raises:
        UsageError: app.py and requirements.txt are not beside the package, as in an installation by pip; or
            there is a token or the home folder in a file.
    """
    beside = [_ROOT / name for name in ("app.py", "requirements.txt")]
    if missing := [path.name for path in beside if not path.is_file()]:
        raise UsageError(
            "space-files", f"--space needs a checkout of the project: {missing[0]} is not beside its package"
        )
    package = {
        path.relative_to(_ROOT).as_posix(): path
        for path in sorted(_PACKAGE.rglob("*"))
        if path.suffix in _SUFFIXES
    }
    files = {
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
        problem = f"it holds a run per seed; choose one of {', '.join(_seeds(run))}"
    elif checkpoints(run):
        problem = "its training is not finished; go on with --resume_from_checkpoint true"
    elif not (run / "report.json").is_file():
        problem = "report.json is missing"
    elif not (run / "model.safetensors").is_file():
        problem = "it has a report but no weights, as an evaluation has; publish the run that was evaluated"
    if problem:
        raise UsageError(
            "run", f"expected the folder of a finished run of train.py, got {str(run)!r}: {problem}"
        )


def _seeds(run: Path) -> list[str]:
    return sorted(str(path) for path in run.glob("seed-*") if path.is_dir())


def _load(folder: Path) -> SavedModel:
    # An absolute path is never taken for the name of a repository.
    return load_model(str(folder.resolve()))


@torch.inference_mode()
def _answers(saved: SavedModel) -> torch.Tensor:
    """Logits of a few images of noise, the same each time."""
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
        "short_description": "Research and teaching only: no medical device",
    }
    front_matter = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    return f"---\n{front_matter}---\n{_SPACE_README.format(repo=repo)}"


def _pinned(requirements: str) -> str:
    """The requirements at the versions that run here, which are those that the model was verified with."""
    names = re.findall(r"^([\w.-]+)", requirements, re.MULTILINE)
    # A wheel's local version (2.15.0+cpu) is on no index.
    return "".join(f"{name}=={version(name).split('+')[0]}\n" for name in (*names, *_BESIDE))
