"""A finished run -> the files that it publishes, by their names in the repository, and no others."""

import json
from collections.abc import Iterator
from pathlib import Path

import jinja2

from hf_pneumonia.data.manifest import MANIFEST
from hf_pneumonia.errors import UsageError
from hf_pneumonia.hub import content_sha256
from hf_pneumonia.publishing.card import TEMPLATE, card, eval_result_files
from hf_pneumonia.publishing.private import check_private
from hf_pneumonia.publishing.public_report import (
    RECIPE_KEYS,
    public_recipe,
    public_report,
    recipe_yaml,
    summarise_manifest,
)

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
            raise UsageError(f"{run} is no finished run of train.py: {name} is missing; train again")
    report, config = (_read_json(run / name) for name in ("report.json", "config.json"))
    try:
        _check_weights(run, report, config)
        made, innocent = _made_files(run, report, config, repo)
    except (KeyError, TypeError, jinja2.UndefinedError) as error:
        raise UsageError(
            f"{run / 'report.json'} lacks {error}, which the card needs; train again with this version"
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
        raise UsageError(f"{run / 'config.json'} states no operating point; train again with this version")
    if stated["threshold"] != report["operating_point"]["threshold"]:
        raise UsageError(f"{run}: config.json and report.json are of different runs; train again")
    # Reports of earlier versions do not say.
    for key, name in (("weights_sha256", "model.safetensors"), ("gate_sha256", "gate.safetensors")):
        file = run / name
        if key in report and (not file.is_file() or report[key] != content_sha256(file)):
            raise UsageError(
                f"{run}: {name} is missing or damaged, or not the one that report.json speaks of; train again"
            )


def _read_json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except ValueError as error:
        raise UsageError(f"{path} is damaged ({error}); train again") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} is damaged (no table of keys); train again")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _json(value: dict) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
