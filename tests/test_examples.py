import base64
import io
import re

import numpy as np
from PIL import Image

from hf_pneumonia.data.phantom import simulate_patient
from hf_pneumonia.data.phantom_folder import _split
from hf_pneumonia.errors import UnreadableFilm
from hf_pneumonia.page.examples import SIMULATED, Example, gallery_html, real_examples, simulated_examples


def test_the_simulated_examples_are_films_of_the_test_split_two_of_each_class():
    examples = simulated_examples()
    captions = [example.caption for example in examples]
    assert captions == 2 * ["Simulated, normal"] + 2 * ["Simulated, pneumonia"]
    held_out = [film.image for patient in range(1, 19) if _split(patient) == "test" for film in
                simulate_patient(patient)]  # fmt: skip
    for example in examples:
        assert example.film.mode == "L" and example.note == SIMULATED
        assert any(np.array_equal(example.film, film) for film in held_out)


def test_real_examples_are_read_by_the_pages_own_decoder_and_a_damaged_one_is_left_out(tmp_path, caplog):
    film = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))

    def read(path):
        if "good" not in path:
            raise UnreadableFilm("not an image")
        return film

    paths = [tmp_path / name for name in ("bad.png", "good.dcm")]
    (example,) = real_examples(paths, read)
    assert example.film is film and example.caption == "Example 1" and "good" not in example.note
    assert "not an image" in caplog.text and "bad" not in caplog.text


def test_the_gallery_has_a_button_with_a_small_picture_for_each_and_names_are_no_markup():
    film = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (400, 2)))
    html = gallery_html([Example(film, '<b>"x"</b>', '" onclick="alert(1)')])
    assert html.count("<button") == 1 and "<b>" not in html and 'onclick="' not in html
    data = base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])
    with Image.open(io.BytesIO(data)) as thumbnail:
        assert thumbnail.size == (160, 125) and thumbnail.format == "JPEG"
    assert film.size == (512, 400)
