"""An image and its heat map, side by side, with opacity and zoom that the browser does alone; thumbnails."""

import base64
import io
from pathlib import Path
from typing import Any
from uuid import uuid4

import gradio as gr
import numpy as np
from gradio.utils import get_upload_folder
from PIL import Image

from hf_pneumonia.evaluation.plots import HEAT, OPAQUE

# Longest side of the image that the browser gets. A laptop has room for half of that, before it is zoomed.
MOST_PIXELS = 1024

_QUALITY = 90  # of its JPEG

_WHERE = "Where the network looked. It marks what spoke for pneumonia, not the disease."
_NOWHERE = "Where the network looked: nothing on this image spoke for pneumonia."
NO_HEAT_MAP = "Without a heat map: networks of this kind give none."

_HERE = Path(__file__).parent


def viewer() -> gr.HTML:
    """Return the component; its value is None or a `viewer_value`.

    The markup is fixed, and viewer.js fills it: no text of a file is ever read as HTML, and zoom and opacity
    live through a new image.
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
        image: of mode 'L', of any size; it is left as it is.
        heat_map: (h, w) float, 0 to 1, of the whole image squashed to the network's input, from `heat_maps`;
            None where there is none.
        no_heat_map: the caption then.

    Returns:
        `image`, a JPEG of at most MOST_PIXELS a side, and `heat`, a PNG of the heat map's size, or None, as
        gr.FileData of files in Gradio's cache; `width` and `height` of the JPEG; the `caption`. The PNG is
        orange with the heat as its alpha: stretched over the image at an opacity of OPAQUE it looks as
        `lay_over` does.
    """
    image = _shrunk(image, MOST_PIXELS)
    heat, caption = None, no_heat_map
    if heat_map is not None:
        layer = Image.new("RGB", heat_map.shape[::-1], HEAT)
        layer.putalpha(Image.fromarray((heat_map * 255).round().astype(np.uint8)))
        heat = _cached(layer, "png")
        caption = _WHERE if heat_map.any() else _NOWHERE
    return {
        "image": _cached(image, "jpeg", quality=_QUALITY),
        "heat": heat,
        "width": image.width,
        "height": image.height,
        "caption": caption,
    }


def thumbnail_uri(image: Image.Image, side: int) -> str:
    """Return a JPEG of at most `side` pixels a side as a data URI: it is part of the page, and in no file."""
    data = io.BytesIO()
    _shrunk(image, side).save(data, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def _shrunk(image: Image.Image, side: int) -> Image.Image:
    """A copy that fits a square, without comments, which may name a patient and which Pillow keeps."""
    image = image.copy()
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    image.info = {}
    return image


def _cached(image: Image.Image, kind: str, **options: int) -> dict[str, Any]:
    folder = Path(get_upload_folder())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{uuid4().hex}.{kind}"  # a name that nobody guesses
    image.save(path, **options)
    return gr.FileData(path=str(path)).model_dump()
