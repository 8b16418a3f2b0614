"""A film and its heat map, side by side, with opacity and zoom that the browser does alone."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import gradio as gr
import numpy as np
from gradio.utils import get_upload_folder
from PIL import Image

from hf_pneumonia.evaluation.plots import HEAT, OPAQUE

# Longest side of the film that the browser gets. A laptop has room for half of that, before it is zoomed.
MOST_PIXELS = 1024

_QUALITY = 90  # of its JPEG

_WHERE = "Where the network looked. It marks what spoke for pneumonia, not the disease."
_NOWHERE = "Where the network looked: nothing on this film spoke for pneumonia."
NO_HEAT_MAP = "Without a heat map: networks of this kind give none."

_HERE = Path(__file__).parent


def viewer() -> gr.HTML:
    """The component; its value is None or a `viewer_value`.

    The markup is fixed, and viewer.js fills it: no text of a file is ever read as HTML, and zoom and opacity
    live through a new film.
    """
    return gr.HTML(
        html_template=(_HERE / "viewer.html").read_text(encoding="utf-8"),
        css_template=(_HERE / "viewer.css").read_text(encoding="utf-8"),
        js_on_load=(_HERE / "viewer.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        opacity=round(100 * OPAQUE),
    )


def viewer_value(
    film: Image.Image, heat_map: np.ndarray | None, no_heat_map: str = NO_HEAT_MAP
) -> dict[str, Any]:
    """What the viewer shows of a film.

    Args:
        film: of mode 'L', of any size; it is left as it is.
        heat_map: (h, w) float, 0 to 1, of the whole film squashed to the network's input, from `heat_maps`;
            None where there is none.
        no_heat_map: the caption then.

    Returns:
        `film`, a JPEG of at most MOST_PIXELS a side, and `heat`, a PNG of the heat map's size, or None, as
        gr.FileData of files in Gradio's cache; `width` and `height` of the JPEG; the `caption`. The PNG is
        orange all over, and opaque as much as it is hot: stretched over the film at an opacity of OPAQUE it
        looks as `lay_over` does.

    Raises:
        ValueError: the film is not gray, or the heat map is not one of numbers from 0 to 1.
    """
    if film.mode != "L":
        raise ValueError(f"expected a film of mode 'L', got {film.mode!r}; read_film gives one")
    film = _at_most(film, MOST_PIXELS)
    heat, caption = None, no_heat_map
    if heat_map is not None:
        heat = _cached(_layer(heat_map), "png")
        caption = _WHERE if np.any(heat_map) else _NOWHERE
    return {
        "film": _cached(film, "jpeg", quality=_QUALITY),
        "heat": heat,
        "width": film.width,
        "height": film.height,
        "caption": caption,
    }


def _cached(image: Image.Image, kind: str, **options: int) -> dict[str, Any]:
    image = image.copy()
    image.info = {}  # what a file said beside its pixels stays here
    folder = Path(get_upload_folder())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{uuid4().hex}.{kind}"  # which nobody guesses
    image.save(path, **options)
    return gr.FileData(path=str(path)).model_dump()


def _at_most(film: Image.Image, side: int) -> Image.Image:
    scale = side / max(film.size)
    if scale >= 1:
        return film
    size = tuple(max(1, round(scale * length)) for length in film.size)
    return film.resize(size, Image.Resampling.LANCZOS, reducing_gap=2)


def _layer(heat_map: np.ndarray) -> Image.Image:
    heat_map = np.asarray(heat_map)
    # Written so that nan fails.
    if heat_map.ndim != 2 or not heat_map.size or not (heat_map.min() >= 0 and heat_map.max() <= 1):
        raise ValueError(f"expected a heat map (h, w) of numbers from 0 to 1, got shape {heat_map.shape}")
    heat = Image.fromarray((heat_map * 255).round().astype(np.uint8))
    layer = Image.new("RGB", heat.size, HEAT)
    layer.putalpha(heat)
    return layer
