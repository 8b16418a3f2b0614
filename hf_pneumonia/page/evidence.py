"""A model's card, plots and examples, from its run folder or repository.

Anybody may have written these files. A model without them is no error.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from hf_pneumonia.errors import UsageError
from hf_pneumonia.hub import content_sha256
from hf_pneumonia.modeling.fetch import (
    EXAMPLES,
    LARGEST_EXAMPLE,
    LARGEST_PLOT,
    MOST_EXAMPLES,
    evidence_folder,
)
from hf_pneumonia.publishing.contents import PLOTS

_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(?:.*?\r?\n)?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_WEIGHTS = re.compile(r"SHA-256 of `model\.safetensors`:\s*([0-9a-f]{64})")
_LARGEST_CARD = 100_000  # characters; a card of this project has 18,000


@dataclass(frozen=True)
class Evidence:
    """What a model says of itself.

    Attributes:
        card: Markdown without HTML and images; empty where there is none.
        plots: PNG files by their names in the repository ("plots/roc.png").
        examples_source: Markdown, from the README.md or LICENSE of the examples; empty where there is none.
        missing: a sentence on each thing that is missing.
    """

    card: str
    plots: dict[str, Path]
    examples_source: str
    missing: list[str]


def read_evidence(model: str | os.PathLike, revision: str | None = None) -> Evidence:
    """Read a model's card and plots.

    Args:
        model: run folder, any local folder, or a repository of the Hub (user/name).
        revision: branch, tag or commit of a repository.
    """
    try:
        folder = evidence_folder(os.fspath(model), revision)
    except UsageError as error:
        return Evidence("", {}, "", [f"The model card can't be read: {error}."])
    card = _read_text(folder / "README.md")
    source = _read_text(folder / "examples" / "README.md") or _read_text(folder / "examples" / "LICENSE")
    missing = [] if card else ["This model has no card."]
    plots = {name: folder / name for name in PLOTS if card and _is_small(folder / name, LARGEST_PLOT)}
    stated, weights = _WEIGHTS.search(card), folder / "model.safetensors"
    if stated and weights.is_file() and stated[1] != content_sha256(weights):
        card, plots = "", {}
        missing.append("The card is of other weights than these, so it is not shown.")
    return Evidence(plain_markdown(card), plots, plain_markdown(source), missing)


def plain_markdown(text: str) -> str:
    """Markdown without front matter, images and HTML: it fetches nothing, and its HTML is shown as text."""
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", _FRONT_MATTER.sub("", text[:_LARGEST_CARD]))
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", re.sub(r"!+\[", "[", text))


def example_files(model: str | os.PathLike, revision: str | None = None) -> list[Path]:
    """Images of a model's folder `examples`, by name: MOST_EXAMPLES at most, none above LARGEST_EXAMPLE.

    Their names may be patients', and are not for showing.

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


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _is_small(path: Path, largest: int) -> bool:
    return path.is_file() and path.stat().st_size <= largest
