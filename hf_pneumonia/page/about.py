"""The tab "About the model": its card and its plots, from its run folder or repository."""

import base64
from pathlib import Path

import gradio as gr

from hf_pneumonia.page.evidence import Evidence

_ALT = {
    "plots/roc.png": "ROC curves of validation and test: sensitivity by 1 - specificity.",
    "plots/reliability.png": "Reliability of validation and test: share of pneumonia by probability.",
    "plots/confusion_matrix.png": "Confusion matrix of the test images at threshold 0.5.",
    "plots/curves.png": "Loss and metrics by epoch of the training.",
    "plots/robustness.png": "Metrics by degree of blur, noise, compression, exposure, rotation, resolution.",
    "plots/class_distribution.png": "Images of each class in each split.",
}


def about_tab(evidence: Evidence) -> None:
    """Add the tab's parts to the open gr.Blocks or gr.Tab."""
    text = "\n\n".join(filter(None, [*evidence.missing, evidence.card]))
    if evidence.examples_source:
        text += f"\n\n## Where its examples come from\n\n{evidence.examples_source}"
    gr.Markdown(text, latex_delimiters=[], elem_classes="about")
    if evidence.plots:
        gr.HTML(
            f'<div class="plots">{"".join(map(_image, evidence.plots.items()))}</div>',
            css_template=Path(__file__).with_name("about.css").read_text(encoding="utf-8"),
            apply_default_css=False,
        )


def _image(plot: tuple[str, Path]) -> str:
    """The plot as HTML that needs no other request."""
    name, file = plot
    data = base64.b64encode(file.read_bytes()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{_ALT[name]}">'
