"""The page as a whole: its head, its tabs, its looks. What a tab does is the tab's business."""

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from hf_pneumonia.data.film import read_film
from hf_pneumonia.inference.prediction import FilmClassifier
from hf_pneumonia.page.about import about_tab
from hf_pneumonia.page.api import add_endpoints
from hf_pneumonia.page.evidence import read_evidence
from hf_pneumonia.page.examples import Example
from hf_pneumonia.page.many_films import many_films_tab
from hf_pneumonia.page.one_film import one_film_tab

TITLE = "Pneumonia on chest films"
NOTE = "Not a medical device. For research and teaching: a film is read by a person who is trained for it."

# Fonts of the reader's own machine: nothing is fetched from anywhere but the page's own server.
_FONT = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_FONT_MONO = ("ui-monospace", "Consolas", "monospace")

_HERE = Path(__file__).parent


def build_page(
    classifier: FilmClassifier,
    read: Callable[[str | bytes], Image.Image] = read_film,
    examples: Sequence[Example] = (),
    model: str | None = None,
) -> gr.Blocks:
    """The page, to be launched with `looks()`.

    Args:
        classifier: that answers.
        read: path or bytes -> film of mode 'L', or UnreadableFilm.
        examples: that the tab "One film" offers.
        model: the run folder or repository of which the tab "About the model" tells; None
            leaves that tab out.
    """
    evidence = None if model is None else read_evidence(model)
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as page:
        gr.HTML(_head(classifier), apply_default_css=False, elem_id="head")
        gr.HTML(f'<p role="note">{NOTE}</p>', apply_default_css=False, elem_id="no-device")
        with gr.Tabs():
            with gr.Tab("One film"):
                one_film_tab(classifier, read, examples)
            with gr.Tab("Many films"):
                many_films_tab(classifier, read)
            if evidence is not None:
                with gr.Tab("About the model"):
                    about_tab(evidence)
        add_endpoints(classifier, read)
    return page


def looks() -> dict[str, Any]:
    """Arguments of `launch` that say how the page looks: sober, light or dark as the reader's machine is."""
    theme = gr.themes.Default(
        primary_hue="sky", secondary_hue="sky", neutral_hue="slate", font=_FONT, font_mono=_FONT_MONO
    )
    return {
        "theme": theme,
        "css": (_HERE / "page.css").read_text(encoding="utf-8"),
        "footer_links": ["api"],
    }


def _head(classifier: FilmClassifier) -> str:
    notes = "".join(f'<p class="quiet note">{escape(note)}</p>' for note in classifier.notes)
    return f'<h1>{TITLE}</h1><p class="quiet">Model: {escape(classifier.name)}</p>{notes}'
