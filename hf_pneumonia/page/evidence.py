"""A model's run folder or repository -> what it says of itself, as far as that can be read.

The files may be anybody's, of any shape; a model without any is no error.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import jinja2

from hf_pneumonia.errors import UsageError
from hf_pneumonia.hub import content_sha256
from hf_pneumonia.modeling.fetch import (
    EXAMPLES,
    LARGEST_EXAMPLE,
    LARGEST_PLOT,
    LARGEST_TEXT,
    MOST_EXAMPLES,
    evidence_folder,
)
from hf_pneumonia.publishing.contents import PLOTS, public_files
from hf_pneumonia.training.run_folder import is_finished

_UNPUBLISHED = (
    "> Made of a run folder, as publishing it would. It is not published: nothing can be loaded by the name "
    "`local/...` yet.\n\n"
)

# What a report or a recipe of another shape than train.py's can make the card stumble over.
_OTHER_SHAPE = (LookupError, TypeError, ValueError, AttributeError, RecursionError, jinja2.TemplateError)


@dataclass(frozen=True)
class Evidence:
    """What a model says of itself.

    Attributes:
        report: report.json, of any shape; empty where there is none, or where it is of other weights.
        config: config.json, of any shape.
        card: Markdown of anybody, front matter included; empty where there is none.
        plots: PNG files by their names in the card ("plots/roc.png").
        examples_source: what the examples' README.md or LICENSE says; empty where there is none.
        missing: a sentence on each thing that is not there, and why.
    """

    report: dict
    config: dict
    card: str
    plots: dict[str, Path]
    examples_source: str
    missing: list[str]


def read_evidence(model: str | os.PathLike, revision: str | None = None) -> Evidence:
    """What a model says of itself. A run folder's card is the one that publishing would send.

    Args:
        model: run folder, any local folder, or a repository of the Hub (user/name).
        revision: branch, tag or commit of a repository.
    """
    try:
        folder = evidence_folder(os.fspath(model), revision)
    except UsageError as error:
        return Evidence({}, {}, "", {}, "", [f"What this model says of itself can't be had: {error}."])
    missing: list[str] = []
    report, config = (_read_json(folder / name, missing) for name in ("report.json", "config.json"))
    if not report and not missing:
        missing.append("This model publishes no report.")
    if report and not _is_of(report, config, folder):
        report = {}
        missing.append("Its report.json is of other weights than these: no figure of it is shown.")
    plots = {name: folder / name for name in PLOTS if report and _is_small(folder / name, LARGEST_PLOT)}
    source = [_read_text(folder / "examples" / name, []) for name in ("README.md", "LICENSE")]
    return Evidence(report, config, _card(folder, missing), plots, source[0] or source[1], missing)


def example_files(model: str | os.PathLike, revision: str | None = None) -> list[Path]:
    """Films that a model brings along: those of its folder `examples`, by name, MOST_EXAMPLES at most, none
    above LARGEST_EXAMPLE, and none at all where they can't be had. Their names may be patients', and are not
    for showing.

    Args:
        model, revision: as for `read_evidence`.
    """
    try:
        folder = evidence_folder(os.fspath(model), revision) / "examples"
    except UsageError:
        return []  # the tab of the model says why
    found = [path for path in sorted(folder.glob("*")) if path.suffix.lower() in EXAMPLES]
    found = [path for path in found if not path.name.startswith(".") and _is_small(path, LARGEST_EXAMPLE)]
    return found[:MOST_EXAMPLES]


def _card(folder: Path, missing: list[str]) -> str:
    if (folder / "README.md").is_file():
        return _read_text(folder / "README.md", missing)
    if not is_finished(folder):
        missing.append("This model publishes no card.")
        return ""
    try:
        card = public_files(folder, f"local/{folder.resolve().name}")["README.md"].decode()
        return _UNPUBLISHED + card.split("---\n", 2)[2]  # the front matter is for programs
    except UsageError as error:
        reason = str(error).replace(str(folder), "the run")
        if "nothing is sent" in reason:  # names what must not leave, and the page is for anybody
            reason = "it would name a film, a patient, a place of this machine, or a token"
    except _OTHER_SHAPE as error:
        reason = f"its report is not as train.py writes it ({type(error).__name__})"
    missing.append(f"No card can be made of this run: {reason}.")
    return ""


def _is_of(report: dict, config: dict, folder: Path) -> bool:
    """Whether a report is of the weights beside it, as far as it says; new weights may have been pushed."""
    weights, stated = report.get("weights_sha256"), config.get("pneumonia")
    if isinstance(weights, str) and (folder / "model.safetensors").is_file():
        return weights == content_sha256(folder / "model.safetensors")
    point = report.get("operating_point")
    known = isinstance(stated, dict) and isinstance(point, dict) and "threshold" in point
    return not known or stated.get("threshold") == point["threshold"]


def _read_json(path: Path, missing: list[str]) -> dict:
    text = _read_text(path, missing)
    if not text:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        missing.append(f"Its {path.name} is damaged: nothing of it is shown.")
        return {}
    return found


def _read_text(path: Path, missing: list[str]) -> str:
    """Content of a file; empty where it is not there."""
    try:
        if path.is_file() and not _is_small(path, LARGEST_TEXT):
            missing.append(f"Its {path.name} is too large to be shown.")
        elif path.is_file():
            return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        missing.append(f"Its {path.name} is no text.")
    except OSError as error:
        missing.append(f"Its {path.name} can't be read: {error.strerror}.")
    return ""


def _is_small(path: Path, largest: int) -> bool:
    return path.is_file() and path.stat().st_size <= largest
