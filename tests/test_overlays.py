import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from hf_pneumonia.data.cache import open_store
from hf_pneumonia.data.overlays import COLOUR_SHARE, TEXT_ROWS, colour_share, text_rows


def _film(width: int = 1200, height: int = 900) -> Image.Image:
    """Smooth, dark at the corners and light in the middle, with a film's grain."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    gray = 40 + 130 * np.exp(-1.5 * (x**2 + y**2)) + np.random.default_rng(0).normal(0, 4, (height, width))
    return Image.fromarray(gray.clip(0, 255).astype(np.uint8))


def _write(film: Image.Image, text: str, at: tuple[int, int], size: int = 28, fill=255) -> Image.Image:
    film = film.copy()
    ImageDraw.Draw(film).text(at, text, fill=fill, font=ImageFont.load_default(size))
    return film


def _bytes(image: Image.Image, kind: str = "png", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("at", [(20, 20), (850, 850)])
def test_a_line_of_text_in_a_corner_is_seen_and_more_lines_are_more_rows(at):
    film = _write(_film(), "A-P SUPINE 14:35", at)
    assert text_rows(_write(film, "BED 12 SUPINE", (20, 60))) > text_rows(film) >= TEXT_ROWS


NO_TEXT = {
    "nothing": _film(),
    "a side marker": _write(_film(), "R", (60, 60), size=60),
    "text in the middle": _write(_film(), "A-P SUPINE 14:35", (400, 430)),
    "text on ground that is as light": _write(Image.new("L", (1200, 900), 250), "A-P SUPINE 14:35", (20, 20)),
    **{str(size): _write(Image.new("L", size), "A-P SUPINE 14:35", (2, 2), size=12)
       for size in ((1, 1), (3, 5000), (5000, 3), (399, 1000))},
}  # fmt: skip


@pytest.mark.parametrize("name", NO_TEXT)
def test_other_bright_things_and_small_films_have_no_text(name):
    assert text_rows(NO_TEXT[name]) == 0


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_gray_film_kept_as_a_colour_picture_has_no_colour(kind):
    assert colour_share(_bytes(_film().convert("RGB"), kind)) == 0
    assert colour_share(_bytes(_film(), kind)) == 0


def _with_patch(mode: str = "RGB") -> Image.Image:
    """A red patch of 60 x 90 on 600 x 450 pixels: 2%."""
    film = _film(600, 450).convert(mode)
    film.paste((255, 0, 0), (100, 200, 160, 290))
    return film


PATCH = 60 * 90 / (600 * 450)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_share_of_a_coloured_patch_is_its_area(mode):
    assert colour_share(_bytes(_with_patch(mode))) == pytest.approx(PATCH, abs=1e-6)


def test_a_palette_and_a_compressed_picture_give_nearly_the_area():
    assert colour_share(_bytes(_with_patch().quantize(64))) == pytest.approx(PATCH, abs=1e-3)
    assert colour_share(_bytes(_film(600, 450).quantize(64))) == 0
    image = _with_patch().resize((2400, 1800), Image.Resampling.NEAREST)
    assert colour_share(_bytes(image, "jpeg", quality=90)) == pytest.approx(PATCH, abs=0.1 * PATCH)


def test_a_tint_is_no_colour_that_was_drawn():
    gray = np.asarray(_film(), dtype=float)
    tinted = np.stack([gray, 0.95 * gray, 0.85 * gray], -1).astype(np.uint8)
    assert colour_share(_bytes(Image.fromarray(tinted))) < COLOUR_SHARE


def test_a_green_and_a_blue_line_are_colour_as_a_red_one_is():
    for colour in ("#00ff00", "#0000ff", "#ff00ff", "#ffff00"):
        film = _film(600, 450).convert("RGB")
        film.paste(colour, (0, 0, 600, 9))
        assert colour_share(_bytes(film)) == pytest.approx(0.02, abs=1e-6)


def test_what_has_no_red_green_and_blue_has_no_colour():
    for mode in ("L", "1", "I;16", "CMYK", "LA"):
        assert colour_share(_bytes(Image.new(mode, (50, 50)), "jpeg" if mode == "CMYK" else "png")) == 0
    assert colour_share(bytes(128) + b"DICM" + bytes(100)) == 0


def test_the_store_keeps_rows_of_text_and_colour_of_every_film_and_a_damaged_one_does_no_harm(tmp_path):
    whole = _bytes(_with_patch().resize((1200, 900), Image.Resampling.NEAREST), "jpeg", quality=95)
    films = [_bytes(_film()), _bytes(_write(_film(), "A-P SUPINE 14:35", (20, 20))), whole, whole[:20_000]]
    store = open_store([{"path": None, "bytes": film} for film in films], 32, tmp_path)
    assert list(store.unreadable) == [3]
    assert store.facts["text_rows"][0] == 0 and store.facts["text_rows"][1] >= TEXT_ROWS
    assert store.facts["colour_share"][[0, 1, 3]].tolist() == [0, 0, 0]
    assert store.facts["colour_share"][2] == pytest.approx(PATCH, rel=0.1)
    assert store.facts["width"].tolist() == [1200, 1200, 1200, 0]
