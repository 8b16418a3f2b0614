"""The answer card (decision, probability, threshold, uncertain band) and the viewer of image and heat map."""

import base64
import io
import math
from html import escape
from pathlib import Path
from typing import Any
from uuid import uuid4

import gradio as gr
import numpy as np
from gradio.utils import get_upload_folder
from PIL import Image

from hf_pneumonia.evaluation.plots import HEAT, OPAQUE
from hf_pneumonia.inference.classifier import (
    NORMAL,
    NOT_A_CHEST_XRAY,
    NOT_ASSESSED,
    PNEUMONIA,
    REFUSED,
    UNCERTAIN,
)

# A decision of the page, in addition to the classifier's DECISIONS.
UNREADABLE = "could not be read"

# The decision as the first line of an answer, and as `prediction` of the API.
WORDS = {
    PNEUMONIA: "Pneumonia",
    UNCERTAIN: "Uncertain: needs review by a radiologist",
    NORMAL: "Normal",
    NOT_A_CHEST_XRAY: "Not a chest X-ray",
    NOT_ASSESSED: "Not assessed",
    UNREADABLE: "Could not be read",
}

# Full, half, empty and crossed circles: distinct without colour.
_LINE = 'stroke="currentColor" stroke-width="2.5"'
_CIRCLE = f'<circle cx="10" cy="10" r="8" fill="none" {_LINE}/>'
_SHAPES = {
    PNEUMONIA: '<circle cx="10" cy="10" r="9.25" fill="currentColor"/>',
    UNCERTAIN: _CIRCLE + '<path d="M10 2a8 8 0 0 1 0 16z" fill="currentColor"/>',
    NORMAL: _CIRCLE,
    NOT_A_CHEST_XRAY: f'{_CIRCLE}<path d="M4.5 4.5l11 11" {_LINE}/>',
    NOT_ASSESSED: f'{_CIRCLE}<path d="M4.5 10h11" {_LINE}/>',
    UNREADABLE: f'{_CIRCLE}<path d="M4.5 4.5l11 11m0-11l-11 11" {_LINE}/>',
}

# In percent: 100 * 0.29 is a little less than 29 and must not be floored to 28%.
_ROUNDING = 1e-5


def shape(decision: str) -> str:
    """Return a decision's icon: an svg element in the colour of its text, hidden from screen readers."""
    return f'<svg viewBox="0 0 20 20" aria-hidden="true">{_SHAPES[decision]}</svg>'


def percent(probability: float) -> str:
    """Return a probability in whole percent, floored, with "< 1%" and "> 99%" at the ends."""
    hundredths = 100 * probability
    if hundredths < 1 - _ROUNDING:
        return "< 1%"
    if hundredths > 99 + _ROUNDING:
        return "> 99%"
    return f"{math.floor(hundredths + _ROUNDING)}%"


def answer_panel() -> gr.HTML:
    """Return the component of the answer, a live region. Its value is "" or an `answer_html`."""
    return gr.HTML(
        "",
        # Screen readers announce changes only in a region that exists before its content.
        html_template='<div class="answer-region" role="status" aria-live="polite" aria-atomic="false">'
        "${value || '<p class=\"answer-empty\">The answer appears here.</p>'}</div>",
        css_template=Path(__file__).with_name("answer.css").read_text(encoding="utf-8"),
        js_on_load=None,
        apply_default_css=False,
    )


def prediction_line(decision: str, probability: float | None) -> str:
    """Return the answer as one line of plain text.

    Args:
        decision: one of DECISIONS, or UNREADABLE.
        probability: of pneumonia, 0 to 1; used for "pneumonia" and "normal" only.

    Returns:
        The class with its confidence, which is never below 50%. A threshold other than 0.5 may select the
        less likely class; the line then states the probability of pneumonia instead.
    """
    if decision not in (PNEUMONIA, NORMAL):
        return WORDS[decision]
    confidence = probability if decision == PNEUMONIA else 1 - probability
    if confidence < 0.5:
        return (
            f"Prediction: {WORDS[decision]} at this threshold "
            f"(probability of pneumonia: {percent(probability)})"
        )
    return f"Prediction: {WORDS[decision]} (Confidence: {percent(confidence)})"


def answer_html(
    probability: float | None,
    threshold: float,
    band: tuple[float, float] | None,
    decision: str,
    reason: str = "",
) -> str:
    """Return the card of one answer as HTML for `answer_panel`.

    Args:
        probability: of pneumonia, 0 to 1; not used, and may be None, for a refused image.
        threshold: from which the image is called pneumonia.
        band: lowest and highest uncertain probability at that threshold, or None.
        decision: one of DECISIONS. The card of a refused image states no probability.
        reason: why the image is refused, one line of plain text; with another decision it is a warning.
    """
    line, has_confidence, confidence = prediction_line(decision, probability).partition(" (")
    if has_confidence:  # kept together where the line breaks
        confidence = f' <span class="answer-whole">({escape(confidence)}</span>'
    if decision in REFUSED:
        line += f": {escape(reason)}" if reason else ""
        rest = '<p class="answer-quiet">No probability is given.</p>'
    else:
        warning = f"<p>Warning: {escape(reason)}. The result may be meaningless.</p>" if reason else ""
        rest = warning + _bar(probability, threshold, band)
    return (
        f'<div class="answer answer-{decision.replace(" ", "-")}">'
        f'<p class="answer-line">{shape(decision)}<span>{line}{confidence}</span></p>{rest}</div>'
    )


def _bar(probability: float, threshold: float, band: tuple[float, float] | None) -> str:
    """The value's label is above the bar and the threshold's below it, so that they never overlap."""
    label = [f"Probability of pneumonia {percent(probability)}", f"threshold {percent(threshold)}"]
    stretch = legend = ""
    if band is not None:
        low, high = band
        ends = " to ".join(dict.fromkeys((percent(low), percent(high))))
        label.append(f"uncertain: {ends}")
        stretch = f'<i class="answer-band" style="left:{_place(low)};width:{_place(high - low)}"></i>'
        legend = (
            '<p class="answer-quiet"><i class="answer-swatch"></i>'
            f"<span>Uncertain range (needs review): {ends}</span></p>"
        )
    return (
        '<p class="answer-title">Probability of pneumonia</p>'
        f'<div class="answer-scale" role="img" aria-label="{escape("; ".join(label))}">'
        f"<b>0%</b>{_label('answer-value', probability, percent(probability))}"
        f'<div class="answer-track"><i class="answer-fill" style="width:{_place(probability)}"></i>{stretch}'
        f'<i class="answer-tick" style="left:{_place(threshold)}"></i>'
        f'<i class="answer-mark" style="left:{_place(probability)}"></i></div>'
        f"{_label('answer-point', threshold, f'Threshold {percent(threshold)}')}<b>100%</b></div>"
        f"{legend}"
    )


def _label(name: str, at: float, text: str) -> str:
    """Shift the label left by the same share of its width, so that it stays within the bar."""
    style = f"left:{_place(at)};transform:translateX(-{_place(at)})"
    return f'<div class="{name}"><span style="{style}">{escape(text)}</span></div>'


def _place(share: float) -> str:
    return f"{100 * share:.2f}%"


# Longest side of the image in the browser: twice what a laptop shows before zooming.
MAX_SIDE = 1024

_JPEG_QUALITY = 90

_CAPTION = "Heat map: regions that raised the probability of pneumonia. It does not outline the disease."
_EMPTY_CAPTION = "Heat map: no region raised the probability of pneumonia."
NO_HEAT_MAP = "No heat map: this network does not support one."

_HERE = Path(__file__).parent


def viewer() -> gr.HTML:
    """Return the component of image and heat map. Its value is None or a `viewer_value`.

    The markup is fixed, and viewer.js fills it in: text of a file is never parsed as HTML, and a new image
    keeps the opacity.
    """
    return gr.HTML(
        html_template=(_HERE / "viewer.html").read_text(encoding="utf-8"),
        css_template=(_HERE / "viewer.css").read_text(encoding="utf-8"),
        js_on_load=(_HERE / "viewer.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        opacity=round(100 * OPAQUE),
    )


def viewer_value(
    image: Image.Image, heat_map: np.ndarray | None, no_heat_map: str = NO_HEAT_MAP
) -> dict[str, Any]:
    """Return the viewer's value for an image.

    Args:
        image: of mode 'L', of any size; not modified.
        heat_map: (h, w) float, 0 to 1, of the whole image squashed to the network's input, from `heat_maps`;
            or None.
        no_heat_map: the caption without a heat map.

    Returns:
        `image`, a JPEG of at most MAX_SIDE a side, and `heat`, a PNG of the heat map's size, or None, as
        gr.FileData of files in Gradio's cache; `width` and `height` of the JPEG; the `caption`. The PNG is
        orange with the heat as its alpha: stretched over the image at an opacity of OPAQUE it looks like
        `overlay_heat_map`.
    """
    image = _shrunk(image, MAX_SIDE)
    heat, caption = None, no_heat_map
    if heat_map is not None:
        layer = Image.new("RGB", heat_map.shape[::-1], HEAT)
        layer.putalpha(Image.fromarray((heat_map * 255).round().astype(np.uint8)))
        heat = _cached(layer, "png")
        caption = _CAPTION if heat_map.any() else _EMPTY_CAPTION
    return {
        "image": _cached(image, "jpeg", quality=_JPEG_QUALITY),
        "heat": heat,
        "width": image.width,
        "height": image.height,
        "caption": caption,
    }


def thumbnail_uri(image: Image.Image, side: int) -> str:
    """Return a JPEG of at most `side` pixels a side as a data URI, without writing a file."""
    data = io.BytesIO()
    _shrunk(image, side).save(data, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def _shrunk(image: Image.Image, side: int) -> Image.Image:
    """A copy that fits a square, without the metadata that Pillow keeps: it may name a patient."""
    image = image.copy()
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    image.info = {}
    return image


def _cached(image: Image.Image, kind: str, **options: int) -> dict[str, Any]:
    folder = Path(get_upload_folder())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{uuid4().hex}.{kind}"  # not guessable
    image.save(path, **options)
    return gr.FileData(path=str(path)).model_dump()
