"""Burned-in text and colour: cheap signs of what was drawn onto an image after it was taken.

A network may read "A-P" or an exposure time where only images of sick children have one.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops

# Rows from which on an image is listed as carrying text. In 300 full-size images a side marker alone has 0,
# electrodes and cables up to 5, "A-P" 10 and more, lines of text 20 and more.
TEXT_ROWS = 8

# Images with a shorter side (pixels) are not searched for text: letters are blurred, for a network too.
TEXT_SIDE = 400

# Share of coloured pixels from which on an image is listed as carrying colour.
COLOUR_SHARE = 0.001

_HUE_SIDE = 128  # pixels a side to which a picture is reduced before its hues are measured

_CONTRAST = 64  # gray levels that a stroke of a letter stands out from both of its sides
_COLOUR = 64  # difference between channels, beyond what compression and a tint leave


def text_rows(image: Image.Image) -> int:
    """Count the rows of pixels near the top and bottom edge of a gray image that look like a line of letters:
    they cross four or more thin bright strokes within a tenth of their width. Small images always give 0."""
    width, height = image.size
    if min(width, height) < TEXT_SIDE:
        return 0
    # Text stands in the corners; the middle, with ribs and electrodes, is not looked at.
    edge = height // 6
    stroke, window = round(0.006 * width), width // 10
    found = 0
    for top in (0, height - edge):
        strip = np.asarray(image.crop((0, top, width, top + edge)))
        middle = strip[:, stroke:-stroke]
        ground = np.maximum(strip[:, : -2 * stroke], strip[:, 2 * stroke :])
        bright = middle - np.minimum(middle, ground) >= _CONTRAST
        bright = bright[bright.any(axis=1)]  # most rows have none, and what follows is slower
        starts = bright[:, 1:] > bright[:, :-1]
        starts = starts[np.count_nonzero(starts, axis=1) >= 4]
        before = np.cumsum(starts, axis=1)
        found += int(((before[:, window:] - before[:, :-window]).max(axis=1, initial=0) >= 4).sum())
    return found


def colour_share(source: str | Path | bytes) -> float:
    """Share of clearly coloured pixels, 0 to 1, of an image that `read_image` can read; 0 for DICOM."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.mode not in ("RGB", "RGBA", "P", "PA"):
                return 0.0
            image.draft("RGB", (256, 256))  # a JPEG is decoded at a fraction of its size
            picture = image.convert("RGB")
    except Image.UnidentifiedImageError:
        return 0.0  # DICOM
    if _is_gray(picture):
        return 0.0
    red, green, blue = picture.split()
    apart = ImageChops.lighter(ImageChops.difference(red, green), ImageChops.difference(green, blue))
    apart = ImageChops.lighter(apart, ImageChops.difference(blue, red))
    return sum(apart.histogram()[_COLOUR + 1 :]) / (apart.width * apart.height)


def hue_spread(picture: Image.Image) -> float:
    """Mean distance of an RGB picture's colours from one tint over grays: 0 for radiographs, tinted ones too.

    The differences red - green and blue - green are fitted by a parabola in the gray level, which is what a
    tint leaves; the result is the mean absolute residual in gray levels, 0 to 255. Of 5,216 radiographs saved
    as RGB the highest is 0.0; six photographs have 8 to 25, a colour scale laid over a radiograph 8 and more,
    a retina 5.
    """
    if _is_gray(picture):
        return 0.0
    step = -(-max(picture.size) // _HUE_SIDE)
    pixels = np.asarray(picture.reduce(step) if step > 1 else picture, dtype=np.float32).reshape(-1, 3)
    gray = pixels.mean(1) / 255
    apart = pixels[:, ::2] - pixels[:, 1:2]
    tint = np.stack([np.ones_like(gray), gray, gray**2], axis=1)
    left = apart - tint @ np.linalg.lstsq(tint, apart, rcond=None)[0]
    return float(np.abs(left).mean())


def _is_gray(picture: Image.Image) -> bool:
    """Whether the three channels are one, as where a gray image was saved as RGB."""
    pixels = np.asarray(picture)
    return bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all())
