import base64
import io

import numpy as np
from PIL import Image

from hf_pneumonia.page.data_uri import data_uri, thumbnail_uri


def _decoded(uri: str, kind: str) -> tuple[bytes, Image.Image]:
    head, data = uri.split(",", 1)
    assert head == f"data:image/{kind};base64"
    return base64.b64decode(data), Image.open(io.BytesIO(base64.b64decode(data)))


def test_a_png_brings_the_same_pixels():
    pixels = np.arange(600, dtype=np.uint16).reshape(20, 30).astype(np.uint8)
    np.testing.assert_array_equal(_decoded(data_uri(Image.fromarray(pixels), "PNG"), "png")[1], pixels)


def test_what_a_file_said_beside_its_pixels_stays_here_and_the_film_is_left_as_it_is():
    film = Image.new("L", (400, 200), 90)
    film.info["comment"] = b"Anna"
    for uri in (data_uri(film, "JPEG", quality=90), thumbnail_uri(film, 100)):
        assert b"Anna" not in _decoded(uri, "jpeg")[0]
    assert _decoded(thumbnail_uri(film, 100), "jpeg")[1].size == (100, 50)
    assert film.size == (400, 200) and film.info == {"comment": b"Anna"}
