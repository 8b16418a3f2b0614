import base64
import io

from PIL import Image

from hf_pneumonia.page.data_uri import thumbnail_uri


def test_what_a_file_said_beside_its_pixels_stays_here_and_the_film_is_left_as_it_is():
    film = Image.new("L", (400, 200), 90)
    film.info["comment"] = b"Anna"
    head, encoded = thumbnail_uri(film, 100).split(",")
    data = base64.b64decode(encoded)
    assert head == "data:image/jpeg;base64" and b"Anna" not in data
    assert Image.open(io.BytesIO(data)).size == (100, 50)
    assert film.size == (400, 200) and film.info == {"comment": b"Anna"}
