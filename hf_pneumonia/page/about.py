"""The tab "About the model": the model's card and plots, from its run folder or repository.

The files are untrusted: anyone may have written them. A model may lack them.
"""

import base64
import re
from pathlib import Path

import gradio as gr

from hf_pneumonia.errors import UsageError
from hf_pneumonia.hub import content_sha256
from hf_pneumonia.modeling.saved import LARGEST_PLOT, evidence_folder
from hf_pneumonia.publishing.card import PLOTS

_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(?:.*?\r?\n)?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_WEIGHTS = re.compile(r"SHA-256 of `model\.safetensors`:\s*([0-9a-f]{64})")
_LARGEST_CARD = 100_000  # characters; a card of this project has 18,000


def about_tab(model: str) -> None:
    """Add the tab's components to the open gr.Blocks or gr.Tab.

    Args:
        model: run folder, any local folder, or a repository of the Hub (user/name).
    """
    text, plots = read_evidence(model)
    gr.Markdown(text, latex_delimiters=[], elem_classes="about")
    if plots:
        images = "".join(_image(name, file) for name, file in plots.items())
        gr.HTML(
            f'<div class="plots">{images}</div>',
            css_template=Path(__file__).with_name("about.css").read_text(encoding="utf-8"),
            apply_default_css=False,
        )


def read_evidence(model: str) -> tuple[str, dict[str, Path]]:
    """Return a model's card as Markdown without HTML and images, and its plots by their names.

    The README.md or LICENSE of the model's examples follows the card. If the card is missing, or belongs to
    other weights, a sentence replaces it.

    Args:
        model: as for `about_tab`.
    """
    try:
        folder = evidence_folder(model)
    except UsageError as error:
        return f"The model card can't be read: {error}", {}
    card, plots = _read_text(folder / "README.md"), {}
    stated, weights = _WEIGHTS.search(card), folder / "model.safetensors"
    if stated and weights.is_file() and stated[1] != content_sha256(weights):
        parts = ["The model card is not shown: it belongs to other weights."]
    elif card:
        parts = [plain_markdown(card)]
        plots = {name: folder / name for name in PLOTS if _is_plot(folder / name)}
    else:
        parts = ["This model has no model card."]
    if source := _read_text(folder / "examples" / "README.md") or _read_text(folder / "examples" / "LICENSE"):
        parts += ["## Source of the examples", plain_markdown(source)]
    return "\n\n".join(parts), plots


def plain_markdown(text: str) -> str:
    """Return Markdown without front matter and images, its HTML escaped: it can load and run nothing."""
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", _FRONT_MATTER.sub("", text[:_LARGEST_CARD]))
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", re.sub(r"!+\[", "[", text))


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _is_plot(path: Path) -> bool:
    return path.is_file() and path.stat().st_size <= LARGEST_PLOT


def _image(name: str, file: Path) -> str:
    """The plot as HTML, with its data inside."""
    data = base64.b64encode(file.read_bytes()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{PLOTS[name]}">'
