"""Refusal rates of the OOD check on drawings, photographs, other body parts, and transformed test images.

    python benchmarks/ood.py RUN

RUN is a folder of train.py whose images are still in place. The photographs are crops of the three that come
with scikit-learn and matplotlib. Hands, knees, skulls and CT slices are simulated by sums of attenuation, as
in radiographs. They represent what people may upload. The method was developed with such images in view, so
that it may refuse fewer images of other kinds; no statistics are fitted to them. The last line is JSON.
"""

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from measuring import finish
from PIL import Image, ImageDraw

from hf_pneumonia import PneumoniaClassifier
from hf_pneumonia.data.images import read_image
from hf_pneumonia.evaluation.intervals import wilson

SIDE = 224  # of the generated images, in pixels
IMAGES_PER_KIND, TEST_IMAGES = 20, 100  # images per kind; test images per transformation

Draw = Callable[[np.random.Generator], Image.Image]

TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "test images as they are": lambda pixels: pixels,
    "inverted": lambda pixels: 255 - pixels,
    "on their side": np.rot90,
    "upside down": lambda pixels: np.rot90(pixels, 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN")
    folder = parser.parse_args().run
    classifier = PneumoniaClassifier.from_pretrained(folder)
    with open(folder / "predictions_test.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    chosen = np.random.default_rng(0).permutation(len(rows))[:TEST_IMAGES]  # of both classes
    images = [np.asarray(read_image(rows[row]["file"])) for row in chosen]
    asked = {
        **{
            name: [Image.fromarray(np.ascontiguousarray(turn(image))) for image in images]
            for name, turn in TRANSFORMS.items()
        },
        **ood_pictures(IMAGES_PER_KIND),
    }
    found = {}
    for name, pictures in asked.items():
        refused = sum(bool(one.reason) for one in classifier(pictures))
        low, high = wilson(refused, len(pictures))
        found[name] = {"pictures": len(pictures), "refused": refused, "wilson95": [low, high]}
        print(f"{name:25}{refused:5} of {len(pictures):4}   {low:.1%} to {high:.1%}")
    finish(benchmark="ood", run=folder.name, kinds=found)


def ood_pictures(count: int, seed: int = 0) -> dict[str, list[Image.Image]]:
    """Generate images that somebody may upload in place of a chest X-ray.

    Args:
        count: number of images of each kind.
        seed: of the random variation.

    Returns:
        Kind -> Pillow images of mode 'RGB' or 'L'.
    """
    photographs = _photographs()

    def photograph(rng: np.random.Generator) -> Image.Image:
        return _cut(photographs[rng.integers(len(photographs))], rng)

    kinds: dict[str, Draw] = {
        "colour photographs": photograph,
        "gray photographs": lambda rng: photograph(rng).convert("L"),
        "drawings": _drawing,
        "pages of text": _page,
        "hands": _hand,
        "knees": _knee,
        "skulls": _skull,
        "CT slices": _slice,
        "blank": _blank,
        "noise": _noise,
    }
    return {
        name: [draw(np.random.default_rng([seed, kind, number])) for number in range(count)]
        for kind, (name, draw) in enumerate(kinds.items())
    }


def _photographs() -> list[Image.Image]:
    import matplotlib.cbook
    from sklearn.datasets import load_sample_images

    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        portrait = Image.open(file).convert("RGB")
    return [portrait, *map(Image.fromarray, load_sample_images().images)]


def _cut(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Crop between half and all of each side, and mirror at random."""
    width, height = (int(side * rng.uniform(0.5, 1)) for side in picture.size)
    left, top = (
        rng.integers(0, all_ - part + 1) for all_, part in zip(picture.size, (width, height), strict=True)
    )
    part = picture.crop((left, top, left + width, top + height))
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part


def _drawing(rng: np.random.Generator) -> Image.Image:
    ground, ink = ((255, 255, 255), (20, 20, 20)) if rng.random() < 0.7 else ((15, 15, 15), (240, 240, 240))
    picture = Image.new("RGB", (SIDE, SIDE), ground)
    pen = ImageDraw.Draw(picture)
    for _ in range(rng.integers(5, 15)):
        (x0, x1), (y0, y1) = np.sort(rng.integers(0, SIDE, (2, 2)), axis=1).tolist()
        shape = [pen.ellipse, pen.rectangle, pen.line][rng.integers(3)]
        if shape == pen.line:
            pen.line((x0, y0, x1, y1), fill=ink, width=int(rng.integers(1, 6)))
        else:
            filled = tuple(rng.integers(0, 256, 3).tolist()) if rng.random() < 0.3 else None
            shape((x0, y0, x1, y1), outline=ink, width=int(rng.integers(1, 6)), fill=filled)
    return picture


def _page(rng: np.random.Generator) -> Image.Image:
    picture = Image.new("L", (SIDE, SIDE), 250)
    pen = ImageDraw.Draw(picture)
    letters = list("abcdefghijklmnopqrstuvwxyz      ")
    for top in range(15, SIDE - 15, int(rng.integers(12, 22))):
        pen.text((15, top), "".join(rng.choice(letters, rng.integers(15, 48))), fill=20)
    return picture


def _hand(rng: np.random.Generator) -> Image.Image:
    tissue, bone = _canvas(), _canvas()
    wrist = np.array([0.5, 0.95])
    for finger, (angle, length) in enumerate(
        zip((-50, -18, -4, 10, 24), (0.2, 0.3, 0.34, 0.31, 0.25), strict=True)
    ):
        direction = _direction(angle + rng.normal(0, 3))
        knuckle = wrist + _direction(angle * 0.6) * (0.32 if finger else 0.22)
        _rod(tissue, wrist, knuckle, 0.09)
        _rod(tissue, knuckle, knuckle + direction * length, 0.045)
        _rod(bone, wrist + _direction(angle) * 0.07, knuckle - direction * 0.02, 0.018)
        joints = knuckle + direction * np.cumsum([0, 0.45, 0.3, 0.25])[:, None] * length
        for start, stop in zip(joints[:-1], joints[1:], strict=True):
            _rod(bone, start + direction * 0.012, stop - direction * 0.012, 0.015)
    _rod(tissue, wrist, wrist + (0, 0.4), 0.11)
    for side in (-0.04, 0.04):
        _rod(bone, wrist + (side, 0.02), wrist + (side, 0.4), 0.03)
    return _radiograph(tissue, bone, rng)


def _knee(rng: np.random.Generator) -> Image.Image:
    tissue, bone = _canvas(), _canvas()
    centre, turn = np.array([0.5, 0.5]) + rng.normal(0, 0.03, 2), _direction(rng.normal(0, 6))
    _rod(tissue, centre - turn * 0.7, centre + turn * 0.7, 0.2 + rng.uniform(0, 0.06))
    _rod(bone, centre + turn * 0.06, centre + turn * 0.7, 0.06)
    _rod(bone, centre - turn * 0.06, centre - turn * 0.7, 0.055)
    across = np.array([-turn[1], turn[0]])
    for end in (0.09, -0.07):
        _rod(bone, centre + turn * end - across * 0.06, centre + turn * end + across * 0.06, 0.07)
    _rod(bone, centre - turn * 0.1 + across * 0.13, centre - turn * 0.7 + across * 0.1, 0.02)
    return _radiograph(tissue, bone, rng)


def _skull(rng: np.random.Generator) -> Image.Image:
    tissue, bone = _canvas(), _canvas()
    x, y = 0.5 + rng.normal(0, 0.02), 0.42 + rng.normal(0, 0.02)
    wide, high = 0.27 + rng.uniform(0, 0.05), 0.34 + rng.uniform(0, 0.04)
    tissue += _ellipsoid(x, y, wide, high)
    bone += _ellipsoid(x, y, wide, high) - _ellipsoid(x, y, wide - 0.03, high - 0.03)
    bone += 0.5 * _ellipsoid(x, y + 0.36, 0.13, 0.16)
    for side in (-1, 1):
        bone -= 0.35 * _ellipsoid(x + side * 0.11, y + 0.12, 0.07, 0.06)
    bone -= 0.3 * _ellipsoid(x, y + 0.22, 0.035, 0.07)
    for tooth in np.linspace(-0.07, 0.07, 8):
        _rod(bone, np.array([x + tooth, y + 0.36]), np.array([x + tooth, y + 0.41]), 0.009)
    _rod(tissue, np.array([x, y + 0.4]), np.array([x, 1.2]), 0.13)
    return _radiograph(tissue, 2 * bone.clip(0), rng)


def _slice(rng: np.random.Generator) -> Image.Image:
    """Simulate an axial CT slice of the chest in a soft-tissue or lung window."""
    x, y = 0.5 + rng.normal(0, 0.02), 0.5 + rng.normal(0, 0.02)
    wide, deep = 0.42 + rng.uniform(-0.03, 0.03), 0.3 + rng.uniform(-0.03, 0.03)
    picture = np.where(_inside(x, y, wide, deep), 0.5, 0.02)
    lung = rng.uniform(0.05, 0.25)
    for side in (-1, 1):
        picture[_inside(x + side * 0.2, y - 0.01, 0.15, 0.21)] = lung
        for angle in np.linspace(-1.2, 1.2, 6):
            picture[
                _inside(x + side * wide * 0.9 * np.cos(angle), y + deep * 0.9 * np.sin(angle), 0.03, 0.013)
            ] = 0.9
    picture[_inside(x + 0.04, y - 0.05, 0.12, 0.1)] = 0.6
    picture[_inside(x, y + deep * 0.65, 0.06, 0.06)] = 0.95
    picture[_inside(x, y + deep + 0.12, 0.5, 0.02)] = 0.3
    return _picture(picture + rng.normal(0, 0.03, picture.shape))


def _blank(rng: np.random.Generator) -> Image.Image:
    return _picture(rng.uniform(0, 1) + rng.normal(0, 0.005, (SIDE, SIDE)))


def _noise(rng: np.random.Generator) -> Image.Image:
    return _picture(rng.uniform(0, 1, (SIDE, SIDE)))


def _canvas() -> np.ndarray:
    return np.zeros((SIDE, SIDE))


def _direction(degrees: float) -> np.ndarray:
    """Return the (x, y) unit vector of an angle: 0 points up, 90 to the right; y grows downwards."""
    return np.array([np.sin(np.radians(degrees)), -np.cos(np.radians(degrees))])


def _places() -> np.ndarray:
    """Return (SIDE, SIDE, 2) x and y of each pixel in [0, 1]."""
    return np.stack(np.meshgrid(*[(np.arange(SIDE) + 0.5) / SIDE] * 2), axis=-1)


def _rod(canvas: np.ndarray, start: np.ndarray, stop: np.ndarray, radius: float) -> None:
    """Add a round rod between two points, where it is thicker than the present tissue."""
    places, along = _places() - start, stop - start
    part = (places @ along / (along @ along)).clip(0, 1)
    away = np.square(places - part[..., None] * along).sum(-1)
    np.maximum(canvas, 2 * np.sqrt((radius**2 - away).clip(0)), out=canvas)


def _ellipsoid(x: float, y: float, wide: float, high: float) -> np.ndarray:
    """Return the thickness of an ellipsoid with half axes `wide`, `high` and `wide`."""
    places = (_places() - (x, y)) / (wide, high)
    return 2 * wide * np.sqrt((1 - np.square(places).sum(-1)).clip(0))


def _inside(x: float, y: float, wide: float, high: float) -> np.ndarray:
    return _ellipsoid(x, y, wide, high) > 0


def _radiograph(tissue: np.ndarray, bone: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Render thickness of tissue and bone as a radiograph, bright where attenuation is high."""
    bright = 1 - np.exp(-(rng.uniform(2, 3.5) * tissue + rng.uniform(8, 14) * bone))
    return _picture(bright / bright.max() * rng.uniform(0.85, 1) + rng.normal(0, 0.015, bright.shape))


def _picture(values: np.ndarray) -> Image.Image:
    return Image.fromarray((values * 255).clip(0, 255).round().astype(np.uint8))


if __name__ == "__main__":
    main()
