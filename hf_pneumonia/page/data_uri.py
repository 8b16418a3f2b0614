"""Pictures -> data URIs: what a browser is sent lies in no file."""

import base64
import io

from PIL import Image


def data_uri(image: Image.Image, kind: str, **options: int) -> str:
    """A picture as it stands in HTML.

    Args:
        image: is left as it is.
        kind: "JPEG" or "PNG".
        options: of Pillow's `save`.
    """
    # What a file said beside its pixels stays here: Pillow hands on a JPEG's comment, and it may name a
    # patient.
    image = image.copy()
    image.info = {}
    data = io.BytesIO()
    image.save(data, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"


def thumbnail_uri(film: Image.Image, side: int) -> str:
    """A film as a JPEG of at most `side` pixels a side."""
    small = film.copy()
    small.thumbnail((side, side))
    return data_uri(small, "JPEG", quality=80)
