"""A heat map in colour over its film. The one way of colouring, for the error sheet and for single films."""

from PIL import Image

# One colour, and more of it where it is hotter: every eye tells a colour from a film's grays, and more of it
# from less. Of a rainbow or "plasma" laid over gray, the colour-blind can't tell some levels apart.
ORANGE = (255, 140, 0)
OPAQUE = 0.7  # at the hottest place: what lies under it is still seen


def lay_over(film: Image.Image, heat: Image.Image) -> Image.Image:
    """Colour a film by its heat map, the more the hotter; where nothing was seen, the film stays as it is.

    Args:
        film: of mode 'L'.
        heat: of mode 'L' and the film's size, 0 (nothing) to 255 (the most).

    Returns:
        Image of mode 'RGB' and that size.
    """
    opacity = heat.point([round(OPAQUE * level) for level in range(256)])
    return Image.composite(Image.new("RGB", film.size, ORANGE), film.convert("RGB"), opacity)
