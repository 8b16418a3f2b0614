"""The tab "About the model": its figures, plots and card, all from its own run folder or repository."""

from pathlib import Path

import gradio as gr

from hf_pneumonia.page.card_html import card_html, picture_html
from hf_pneumonia.page.evidence import Evidence
from hf_pneumonia.page.figures import figures, notices

# Beside the tables, which have their numbers for who can't see them.
_PLOTS = {
    "plots/roc.png": "ROC curves of validation and test: sensitivity by 1 - specificity.",
    "plots/reliability.png": "Reliability of validation and test: share of pneumonia by probability.",
}

# In the card, which has these two as well; they are sent once.
_CARD_PLOTS = {
    "plots/confusion_matrix.png": "Confusion matrix of the test films at threshold 0.5.",
    "plots/curves.png": "Loss and figures by epoch of the training.",
    "plots/robustness.png": "Figures by degree of blur, noise, compression, exposure, rotation, resolution.",
    "plots/class_distribution.png": "Films of each class in each split.",
}


def about_tab(evidence: Evidence) -> None:
    """The tab's parts, in the open gr.Blocks or gr.Tab."""
    _html(about_html(evidence))
    if evidence.card:
        with gr.Accordion("The whole model card", open=False):
            _html(whole_card_html(evidence))


def about_html(evidence: Evidence) -> str:
    """What a model says of itself in short: notices, figures, plots, decisions, data and limits."""
    parts = [card_html(text, {}, "figures") for text in figures(evidence.report, evidence.config)]
    if evidence.examples_source:
        source = card_html(evidence.examples_source, {}, "examples")
        parts.append(f"<h2>Where its examples come from</h2>{source}")
    html = card_html(notices(evidence.report, evidence.missing), {})
    html += f'<div class="sections">{"".join(f"<section>{part}</section>" for part in parts)}</div>'
    if pictures := _pictures(evidence, _PLOTS):
        html += f'<h2>Curves</h2><div class="plots">{"".join(pictures.values())}</div>'
    return html


def whole_card_html(evidence: Evidence) -> str:
    """The model card, with those plots that `about_html` does not show."""
    return card_html(evidence.card, _pictures(evidence, _CARD_PLOTS))


def _pictures(evidence: Evidence, described: dict[str, str]) -> dict[str, str]:
    there = {name: evidence.plots[name] for name in described if name in evidence.plots}
    return {name: picture_html(file, described[name]) for name, file in there.items()}


def _html(value: str) -> None:
    gr.HTML(
        value,
        css_template=Path(__file__).with_name("about.css").read_text(encoding="utf-8"),
        js_on_load=None,
        apply_default_css=False,
        elem_classes="about",
    )
