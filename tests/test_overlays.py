import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from test_images import _bytes

from hf_pneumonia.data.overlays import COLOUR_SHARE, TEXT_ROWS, colour_share, text_rows


def _image(width: int = 1200, height: int = 900) -> Image.Image:
    """A smooth image, dark at the corners and bright in the middle, with grain."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    gray = 40 + 130 * np.exp(-1.5 * (x**2 + y**2)) + np.random.default_rng(0).normal(0, 4, (height, width))
    return Image.fromarray(gray.clip(0, 255).astype(np.uint8))


def _write(image: Image.Image, text: str, at: tuple[int, int], size: int = 28, fill=255) -> Image.Image:
    image = image.copy()
    ImageDraw.Draw(image).text(at, text, fill=fill, font=ImageFont.load_default(size))
    return image


@pytest.mark.parametrize("at", [(20, 20), (850, 850)])
def test_a_line_of_text_in_a_corner_is_found_and_more_lines_are_more_rows(at):
    image = _write(_image(), "A-P SUPINE 14:35", at)
    assert text_rows(_write(image, "BED 12 SUPINE", (20, 60))) > text_rows(image) >= TEXT_ROWS


NO_TEXT = {
    "nothing": _image(),
    "a side marker": _write(_image(), "R", (60, 60), size=60),
    "text in the middle": _write(_image(), "A-P SUPINE 14:35", (400, 430)),
    "text on an equally bright background": _write(
        Image.new("L", (1200, 900), 250), "A-P SUPINE 14:35", (20, 20)
    ),
    "text on a small image": _write(Image.new("L", (399, 1000)), "A-P SUPINE 14:35", (2, 2), size=12),
}


@pytest.mark.parametrize("name", NO_TEXT)
def test_other_bright_objects_and_small_images_have_no_text(name):
    assert text_rows(NO_TEXT[name]) == 0


def _with_patch(colour="red", mode: str = "RGB") -> Image.Image:
    """A patch of 60 x 90 on 600 x 450 pixels: 2%."""
    image = _image(600, 450).convert(mode)
    image.paste(colour, (100, 200, 160, 290))
    return image


PATCH = 60 * 90 / (600 * 450)
LARGE = _with_patch().resize((1200, 900), Image.Resampling.NEAREST)
TINTED = np.dstack([np.asarray(_image()) * channel for channel in (1, 0.95, 0.85)]).astype(np.uint8)

COLOURED = {
    **{colour: (_bytes(_with_patch(colour)), PATCH, 1e-6) for colour in ("red", "lime", "blue", "yellow")},
    "RGBA": (_bytes(_with_patch(mode="RGBA")), PATCH, 1e-6),
    "a palette": (_bytes(_with_patch().quantize(64)), PATCH, 1e-3),
    "JPEG": (_bytes(LARGE, "jpeg", quality=90), PATCH, 0.1 * PATCH),
    "gray saved as RGB": (_bytes(_image().convert("RGB")), 0, 0),
    "gray saved as a palette": (_bytes(_image(600, 450).quantize(64)), 0, 0),
    "gray saved as an RGB JPEG": (_bytes(_image().convert("RGB"), "jpeg"), 0, 0),
    "a tint": (_bytes(Image.fromarray(TINTED)), 0, COLOUR_SHARE),
    "CMYK": (_bytes(Image.new("CMYK", (50, 50)), "jpeg"), 0, 0),
    "16 bits": (_bytes(Image.new("I;16", (50, 50))), 0, 0),
    "DICOM": (bytes(128) + b"DICM" + bytes(100), 0, 0),
}


@pytest.mark.parametrize("name", COLOURED)
def test_the_colour_share_is_the_area_drawn_in_colour(name):
    content, share, allowed = COLOURED[name]
    assert colour_share(content) == pytest.approx(share, abs=allowed)
