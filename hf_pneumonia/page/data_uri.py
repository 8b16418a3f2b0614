"""Thumbnails as data URIs: they travel inside the page, and lie in no file."""

import base64
import io

from PIL import Image


def thumbnail_uri(film: Image.Image, side: int) -> str:
    """A film as a JPEG of at most `side` pixels a side, as it stands in HTML."""
    small = film.copy()
    small.thumbnail((side, side))
    # What a file said beside its pixels stays here: Pillow hands on a JPEG's comment, and it may name a
    # patient.
    small.info = {}
    data = io.BytesIO()
    small.save(data, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
