"""Overlay detection: text and colour that were burned into an image after it was taken.

A network may learn to read "A-P" or an exposure time if only images with pneumonia have one.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops

# From this many rows on an image is listed as having text. In 300 full-size images a side marker alone gives
# 0, electrodes and cables up to 5, "A-P" 10 and more, lines of text 20 and more.
TEXT_ROWS = 8

# Images with a shorter side (pixels) are not searched for text: their letters are illegible.
TEXT_SIDE = 400

# From this share of coloured pixels on an image is listed as having colour.
COLOUR_SHARE = 0.001

_HUE_SIDE = 128  # side in pixels to which an image is reduced before its hues are measured

_CONTRAST = 64  # gray levels between a stroke of a letter and its background on both sides
_COLOUR = 64  # difference between channels; compression and a tint stay below it


def text_rows(image: Image.Image) -> int:
    """Count the rows of pixels of a gray image that look like a line of letters.

    Such a row is near the top or bottom edge and crosses four or more thin bright strokes within a tenth of
    its width. Small images always give 0.
    """
    width, height = image.size
    if min(width, height) < TEXT_SIDE:
        return 0
    # Text is in the corners; the middle, with ribs and electrodes, is skipped.
    edge = height // 6
    stroke, window = round(0.006 * width), width // 10
    rows = 0
    for top in (0, height - edge):
        strip = np.asarray(image.crop((0, top, width, top + edge)))
        middle = strip[:, stroke:-stroke]
        ground = np.maximum(strip[:, : -2 * stroke], strip[:, 2 * stroke :])
        bright = middle - np.minimum(middle, ground) >= _CONTRAST
        bright = bright[bright.any(axis=1)]  # most rows have none, and the steps below are slower
        starts = bright[:, 1:] > bright[:, :-1]
        starts = starts[np.count_nonzero(starts, axis=1) >= 4]
        before = np.cumsum(starts, axis=1)
        rows += int(((before[:, window:] - before[:, :-window]).max(axis=1, initial=0) >= 4).sum())
    return rows


def colour_share(source: str | Path | bytes) -> float:
    """Return the share of clearly coloured pixels, 0 to 1, of an image file or its bytes; 0 for DICOM."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.mode not in ("RGB", "RGBA", "P", "PA"):
                return 0.0
            image.draft("RGB", (256, 256))  # a JPEG is decoded at a fraction of its size
            image = image.convert("RGB")
    except Image.UnidentifiedImageError:
        return 0.0  # DICOM
    if _is_gray(image):
        return 0.0
    red, green, blue = image.split()
    difference = ImageChops.lighter(ImageChops.difference(red, green), ImageChops.difference(green, blue))
    difference = ImageChops.lighter(difference, ImageChops.difference(blue, red))
    return sum(difference.histogram()[_COLOUR + 1 :]) / (difference.width * difference.height)


def hue_spread(image: Image.Image) -> float:
    """Measure how far the colours of an RGB image are from one tint over grays: 0 for a tinted radiograph.

    A tint makes red - green and blue - green parabolas in the gray level. The result is the mean absolute
    residual of such a fit, in gray levels, 0 to 255. Of 5,216 radiographs saved as RGB the highest is 0.0;
    six photographs have 8 to 25, a colour scale laid over a radiograph 8 and more, a retina 5.
    """
    if _is_gray(image):
        return 0.0
    step = -(-max(image.size) // _HUE_SIDE)
    pixels = np.asarray(image.reduce(step) if step > 1 else image, dtype=np.float32).reshape(-1, 3)
    gray = pixels.mean(1) / 255
    difference = pixels[:, ::2] - pixels[:, 1:2]
    tint = np.stack([np.ones_like(gray), gray, gray**2], axis=1)
    residual = difference - tint @ np.linalg.lstsq(tint, difference, rcond=None)[0]
    return float(np.abs(residual).mean())


def _is_gray(image: Image.Image) -> bool:
    """Return whether the three channels are equal, as in a gray image saved as RGB."""
    pixels = np.asarray(image)
    return bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all())
