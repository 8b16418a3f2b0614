"""Simulated chest X-rays with known lesions: the built-in data set for tests, demos and benchmarks.

A patient is a set of path lengths: cm of soft tissue, lung, bone and gas along a parallel beam from front to
back. Their attenuations add up to one projection, which is positioned and exposed once per image. Disease
replaces part of the lung's air by fluid and changes nothing else: outside the lesion, an image is identical
to that of the same patient without disease, so a model can learn only the lesion. Results on these images do
not transfer to real patients.
"""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy import ndimage

VERSION = 1  # raise it whenever a seed gives other images, so that old caches are not reused

# Linear attenuation in 1/cm at 60 keV, about the mean energy of a filtered 100 kVp beam: NIST mass
# coefficients (Hubbell and Seltzer, NISTIR 5632) times densities of ICRU Report 44. Inflated lung has
# 0.26 g/cm3. Compact bone has 0.315 cm2/g x 1.92 g/cm3 = 0.60; children's bone is less mineralised.
SOFT, LUNG, BONE = 0.21, 0.053, 0.48

FIELD_CM = 22.5  # side of the field at the patient: the chest of a child of about four
CANVAS = 1.2  # side of the simulated body / side of the image: room to shift and rotate the patient
SIDES = (-1, 1)  # signs of x; the patient's right is on the left of the image, by convention

Tubes = list[tuple[np.ndarray, np.ndarray]]  # points (2, k) in cm and their volumes (k,) in cm3


@dataclass(frozen=True)
class PhantomImage:
    """One simulated image.

    Attributes:
        image: (size, size) uint8, dense tissue bright.
        lesion: (size, size) bool, the mask of the opacity; all false in a normal image.
        patient_id: such as "phantom0001".
        label: "NORMAL" or "PNEUMONIA".
        pattern: "none", "lobar", "patchy" or "diffuse".
    """

    image: np.ndarray
    lesion: np.ndarray
    patient_id: str
    label: str
    pattern: str


class _Chest(NamedTuple):
    """The canvas and the shared geometry of the organs: lengths in cm, curves over rows as (n, 1) float32."""

    x: np.ndarray  # (1, n), from the patient's right to left, 0 in the middle
    y: np.ndarray  # (n, 1), downwards
    pixel: float
    growth: float  # size / average child's size
    apex: float  # y of the top of the lungs
    base: float  # y of the deepest costophrenic angle
    width: np.ndarray  # midline to the inside of the ribs
    depth: np.ndarray  # of the chest cavity, front to back
    spine: np.ndarray  # x of the middle of the spine
    wall: float  # skin, fat and muscle on one side


def _chest(rng: Generator, size: int) -> _Chest:
    n, pixel, growth = round(size * CANVAS), FIELD_CM / size, rng.normal(1, 0.05)
    x = ((np.arange(n) + 0.5 - n / 2) * pixel).astype(np.float32)
    y, apex = x[:, None], -7.6 * growth
    base = 7.2 * growth + rng.normal(0, 0.5)  # a deeper or shallower breath
    s = np.clip((y - apex) / (base - apex), 0, 1)
    width = rng.normal(9.1, 0.45) * growth * (1 - (1 - s) ** rng.uniform(2.4, 3.0)) ** rng.uniform(0.44, 0.54)
    depth = rng.normal(10, 0.6) * growth * (0.35 + 0.65 * s**0.6)
    spine = rng.normal(0, 0.18) * np.sin(y / 7 + rng.uniform(0, 6)) + rng.normal(0, 0.1)
    return _Chest(x[None, :], y, pixel, growth, apex, base, width, depth, spine, rng.gamma(4, 0.3) + 0.9)


@functools.cache
def _spreading(n: int, knots: int) -> np.ndarray:
    """Return (n, knots) Gaussian weights that spread random numbers over `n` pixels at unit variance."""
    bumps = np.exp(-((np.linspace(0, knots - 1, n)[:, None] - np.arange(knots)) ** 2))
    return (bumps / np.linalg.norm(bumps, axis=1, keepdims=True)).astype(np.float32)


def _clouds(rng: Generator, chest: _Chest, scale: float) -> np.ndarray:
    """Return (n, n) smooth noise of unit variance with structures of about `scale` cm."""
    knots = max(3, round(chest.y.size * chest.pixel / scale))
    spread = _spreading(chest.y.size, knots)
    return spread @ rng.standard_normal((knots, knots), dtype=np.float32) @ spread.T


def _profile(chest: _Chest, heights: list[float], values: list[float], blur: float) -> np.ndarray:
    """Return (n, 1), a curve over the rows through `values` at `heights`, smoothed by `blur` (both in cm)."""
    curve = np.interp(chest.y[:, 0] / chest.growth, heights, values)
    return ndimage.gaussian_filter1d(curve, blur / chest.pixel, mode="nearest")[:, None].astype(np.float32)


def _round(squared: np.ndarray) -> np.ndarray:
    """Return the path through a round body of unit depth at a squared distance from its middle."""
    return np.sqrt(np.maximum(1 - squared, 0))


def _at(chest: _Chest, curve: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Interpolate a curve over the rows at the heights `y` (cm, any shape)."""
    return np.interp(y, chest.y[:, 0], curve[:, 0])


def _tube(x, y, radius, across: int, wall: float | None = None, z=0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return a tube of `radius` cm along the path x, y, z (..., m), as points in the plane and their volumes.

    Equal angles around the axis put more points at both edges, where the beam grazes the cortex of a bone.
    `wall` (cm) makes the tube a bone: a shell around marrow of a quarter of its density.
    """
    path = np.stack(np.broadcast_arrays(x, y, z)).astype(np.float32)
    dx, dy, dz = np.gradient(path, axis=-1)
    flat = np.sqrt(dx**2 + dy**2) + 1e-6
    angle = ((np.arange(across) + 0.5) * np.pi / across).astype(np.float32)
    radius = np.broadcast_to(np.float32(radius), flat.shape)[..., None]
    section = 2 * radius**2 * np.sin(angle) ** 2
    if wall is not None:
        section = 2 * radius * wall + 0.25 * section
    volume = section * (np.pi / across * np.sqrt(flat**2 + dz**2))[..., None]
    off = radius * np.cos(angle)
    px = path[0, ..., None] - off * (dy / flat)[..., None]
    py = path[1, ..., None] + off * (dx / flat)[..., None]
    return np.stack([px.ravel(), py.ravel()]), volume.ravel()


def _project(chest: _Chest, tubes: Tubes) -> np.ndarray:
    """Return (n, n), cm of the tubes along the beam; spread each point over its four nearest pixels."""
    n = chest.y.size
    x, y = np.concatenate([p for p, _ in tubes], axis=1) / chest.pixel + (n - 1) / 2
    volume = np.concatenate([v for _, v in tubes]) * ((x > 0) & (x < n - 1) & (y > 0) & (y < n - 1))
    left, top = (np.clip(v, 0, n - 2).astype(np.intp) for v in (x, y))
    fx, fy, at = x - left, y - top, top * n + left
    where = np.concatenate([at, at + 1, at + n, at + n + 1])
    share = np.concatenate([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy]) * np.tile(volume, 4)
    return (np.bincount(where, share, n * n).reshape(n, n) / chest.pixel**2).astype(np.float32)


def _body(rng: Generator, chest: _Chest) -> np.ndarray:
    """Return (n, n), cm of body including the lungs: trunk, neck, chin, and arms raised or at the sides."""
    x, y, g = chest.x, chest.y, chest.growth
    waist = float(chest.width.max()) / g + chest.wall
    widths = [3.6, 3.7, 4.6, 9.2, 10, waist, waist, waist - rng.uniform(0, 1)]
    half = g * _profile(chest, [-16, -11, -9.2, -7.4, -4.5, -1, 4, 9], widths, blur=0.8)
    thick = (0.93 + 0.05 * chest.wall) * _profile(chest, [-14, -9, -5, 3], [8, 8, 11, 13], blur=0.8)
    body = thick * _round((np.abs(x - 0.5 * chest.spine) / half) ** 3)  # flatter than an ellipse
    chin = -10.6 * g + rng.normal(0, 1.2)  # a small child's chin is often in the field
    body = np.maximum(body, 13 * _round(((x - rng.normal(0, 0.8)) ** 2 + (y - chin + 5) ** 2) / 25))
    raised, radius = rng.random() < 0.6, 1.7 + 0.35 * chest.wall
    for side in SIDES:
        turn = math.radians(rng.normal(-65, 9) if raised else rng.normal(76, 5))
        dx, dy = x - side * 9.6 * g, y + 6.2 * g  # from the shoulder
        along = dx * (side * math.cos(turn)) + dy * math.sin(turn)
        off = dx * math.sin(turn) - dy * (side * math.cos(turn))
        arm = 2 * radius * _round((off**2 + np.minimum(along, 0) ** 2) / radius**2)
        body = np.sqrt(body**2 + arm**2)
    return body


def _heart(rng: Generator, chest: _Chest) -> np.ndarray:
    """Return (n, n), the share (0 to 1) of the cavity's depth taken by heart, great vessels and thymus."""
    y = [-12, -8, -6, -4.6, -3.2, -1.5, 0.5, 2.5, 4.5, 6.5, 9]
    right = np.array([1.7, 1.8, 1.8, 1.8, 1.8, 2.1, 2.9, 3.2, 3.0, 2.3, 2])
    left = np.array([1.7, 1.9, 2.1, 2.6, 2.3, 3.0, 4.2, 5.4, 5.9, 5.2, 4])
    thymus, size = rng.exponential(0.45, 2) * (rng.random(2) < 0.5), rng.normal(1, 0.09)
    right[3:6] += thymus[0] * np.array([1, 1.2, 0.7])
    left[2:5] += thymus[1] * np.array([0.8, 1.2, 1])
    right[5:], left[5:] = size * right[5:], size * left[5:]
    right, left = (chest.growth * _profile(chest, y, border, blur=0.55) for border in (right, left))
    middle = (left - right) / 2 + 0.6 * chest.spine + rng.normal(0, 0.15)
    return 0.86 * _round(((chest.x - middle) / ((left + right) / 2)) ** 2)


def _diaphragm(rng: Generator, chest: _Chest) -> np.ndarray:
    """Return (1, n), the height of the diaphragm; its right dome is higher, above the liver."""
    x, top = chest.x / chest.growth, chest.base - rng.normal(3.1, 0.25)
    right = top + rng.uniform(0.09, 0.14) * (x + 3.6) ** 2
    left = top + rng.normal(0.7, 0.3) + rng.uniform(0.09, 0.14) * (x - 3.6) ** 2
    return right + (left - right) / (1 + np.exp(-x / 0.5))


def _ribs(rng: Generator, chest: _Chest) -> Tubes:
    """Return twelve pairs of ribs, from the spine to the start of the cartilage, which is radiolucent."""
    pair, turn = np.arange(12)[:, None], np.linspace(0.03, 1, 250)
    phi = turn * np.radians(np.interp(pair, [0, 2, 7, 9, 11], [130, 145, 140, 100, 50]))
    steep = 0.15 + 0.065 * pair  # lower ribs fall straighter from the spine
    drop = np.interp(pair, [0, 3, 8, 11], [2.4, 4.2, 6, 7]) * rng.normal(1, 0.12) * chest.growth
    fall = drop * ((1 - steep) * (1 - np.cos(phi)) / 2 + steep * phi / np.pi)
    fall -= 0.5 * (1 - steep) * np.sin(1.6 * phi)
    top, tubes = chest.apex - 0.1 + (chest.base - chest.apex) * (pair / 11) ** 0.93, []
    for side in SIDES:
        y = top + fall + rng.normal(0, 0.07, (12, 1))
        wall = np.maximum(_at(chest, chest.width, y) + 0.12, (3.3 + 1.1 * np.minimum(pair, 3)) * chest.growth)
        x = side * wall * np.sin(phi) ** 0.85 + _at(chest, chest.spine, y) * np.cos(phi / 2)
        z = -0.5 * _at(chest, chest.depth, y) * np.cos(phi)
        slope = np.abs(np.sin(np.arctan2(np.gradient(y, axis=1), np.gradient(x, axis=1))))
        radius = (0.34 - 0.14 * slope) * np.interp(turn, [0, 0.3, 0.9, 1], [0.8, 0.9, 1.1, 0.7])  # 7 x 4 mm
        tubes.append(_tube(x, y, radius * chest.growth, 8, wall=0.11, z=z))
    return tubes


def _shoulders(rng: Generator, chest: _Chest) -> Tubes:
    """Return clavicles, lateral borders and spines of the scapulae, and heads of the humeri."""
    tubes, t, g, lift = [], np.linspace(0, 1, 110), chest.growth, rng.normal(0.9, 0.5)
    wave = 2 * np.pi * t
    for side in SIDES:
        tilt, sway = lift + rng.normal(0, 0.25), rng.normal(0, 0.4)
        for x, y, radius, wall, across in (
            (1.2 + 7.4 * t, -6.3 - tilt * t - 0.45 * np.sin(wave), 0.36 + 0.09 * np.cos(wave), 0.13, 12),
            (9.1 + sway - 0.9 * t + 0.5 * np.sin(wave / 2), -5.8 + 6.3 * t, 0.22, 0.08, 8),
            (5.6 + sway + 3.6 * t, -4.9 - 1.9 * t, 0.22, 0.05, 8),
            (9.9 + 1.5 * t, -6.9 - 0.5 * t, _round((1.6 * t - 0.8) ** 2), 0.06, 32),
        ):
            tubes.append(_tube(side * x * g, y * g, radius * g, across, wall))
    return tubes


def _vertebrae(rng: Generator, chest: _Chest) -> tuple[np.ndarray, Tubes]:
    """Return cm of bone in the vertebral bodies (n, n), and rings for pedicles and spinous processes."""
    pitch, start = rng.normal(1.42, 0.05) * chest.growth, rng.random()
    off = np.abs((chest.y / pitch + start) % 1 - 0.5)  # 0 in the middle of a body, 0.5 in a disc
    half = chest.growth * _profile(chest, [-13, -8, 10], [0.95, 1.0, 1.35], blur=0.8)
    across = _round(np.square(np.square((chest.x - chest.spine) / half)))
    plates = np.exp(-(((off - 0.38) / 0.05) ** 2))
    bodies = across * (0.1 + 0.28 * np.clip((0.5 - off) / 0.16, 0, 1) + 0.12 * plates)
    y = (np.arange(-11, 12)[:, None] + 0.5 - start) * pitch
    middle, side, turn = _at(chest, chest.spine, y), 0.62 * _at(chest, half, y), np.linspace(0, 2 * np.pi, 16)
    rings = [(middle + s * side + 0.2 * np.cos(turn), y + 0.28 * np.sin(turn)) for s in SIDES]
    rings.append((middle + 0.1 * np.cos(turn), y + 0.3 * np.sin(turn)))
    return chest.growth * bodies, [_tube(*ring, 0.09, 4, wall=0.06) for ring in rings]


def _airways(rng: Generator, chest: _Chest) -> Tubes:
    """Return the gas of trachea and main bronchi, which shows in front of the mediastinum."""
    g, t, drift = chest.growth, np.linspace(0, 1, 160), rng.normal(-0.15, 0.15)
    tubes = [_tube(drift * t + 0.08 * np.sin(5 * t), -14 + (14 - 3 * g) * t, 0.42 * g, 12)]
    for reach, fall in ((-2.0, 1.7), (2.4, 1.3)):
        tubes.append(_tube(drift + reach * g * t, g * (fall * t**1.2 - 3), 0.3 * g * (1 - 0.35 * t), 8))
    return tubes


def _vessels(rng: Generator, chest: _Chest) -> Tubes:
    """Return the pulmonary vessels: seven stems at each hilum fork five times and get thinner."""
    side, tubes, g = np.repeat(SIDES, 7), [], chest.growth
    x, y = g * side * rng.normal(2.5, 0.2, 14), g * (rng.normal(-1.2, 0.5, 14) - 0.3 * side)
    heading = np.tile(np.linspace(-1.25, 1.35, 7), 2) + rng.normal(0, 0.15, 14)
    radius, length = g * rng.uniform(0.24, 0.4, 14), g * rng.uniform(1.5, 2.6, 14)
    for across, steps in ((12, 32), (9, 26), (6, 20), (4, 16), (3, 13), (2, 10)):
        t = np.linspace(0, 1, steps)
        turn = heading[:, None] + rng.normal(0, 0.3, (heading.size, 1)) * t
        px = x[:, None] + np.cumsum(np.cos(turn), 1) * (side * length / steps)[:, None]
        py = y[:, None] + np.cumsum(np.sin(turn), 1) * (length / steps)[:, None]
        tubes.append(_tube(px, py, radius[:, None] * (1 - 0.25 * t), across))
        twigs = 2 * heading.size
        x, y, side, heading, radius, length = (
            np.repeat(v, 2) for v in (px[:, -1], py[:, -1], side, turn[:, -1], radius, length)
        )
        heading = heading + np.tile([-1, 1], twigs // 2) * rng.uniform(0.1, 0.6, twigs)
        radius, length = radius * rng.uniform(0.55, 0.8, twigs), length * rng.uniform(0.6, 1, twigs)
    return tubes


def _bowel_gas(rng: Generator, chest: _Chest, dome: np.ndarray) -> np.ndarray:
    """Return (n, n), cm of gas in up to three loops of stomach and bowel, mostly on the left."""
    gas, ragged = np.zeros((chest.y.size, chest.x.size), np.float32), 0.4 * _clouds(rng, chest, 1.0)
    for _ in range(rng.integers(0, 4)):
        x, low = rng.normal(4, 2), rng.uniform(1.2, 4.5)
        y = float(np.interp(x, chest.x[0], dome[0])) + low
        far = ((chest.x - x) / rng.uniform(0.7, 2.2)) ** 2 + ((chest.y - y) / rng.uniform(0.5, 1.1)) ** 2
        gas = np.maximum(gas, rng.uniform(0.4, 1.8) * _round(far + ragged))
    return gas


def _anatomy(rng: Generator, size: int) -> tuple[_Chest, np.ndarray, np.ndarray]:
    """Return a healthy patient: geometry, attenuation (n, n), and cm of lung along the beam (n, n)."""
    chest = _chest(rng, size)
    body, dome = _body(rng, chest), _diaphragm(rng, chest)
    cavity = chest.depth * _round((chest.x / np.maximum(chest.width, 1e-3)) ** 2)
    # The beam is tangent to the dome, so its path grows with the square root of the depth below the top.
    above = np.maximum(1 - np.sqrt(np.maximum(chest.y - dome, 0) / 1.7), 0)
    lung = np.minimum(cavity * (1 - _heart(rng, chest)) * above, 0.9 * body)
    bodies, rings = _vertebrae(rng, chest)
    bone = bodies + _project(chest, [*_ribs(rng, chest), *_shoulders(rng, chest), *rings])
    vessels = _project(chest, _vessels(rng, chest)) * np.minimum(lung / 4, 1)
    gas = _project(chest, _airways(rng, chest)) + _bowel_gas(rng, chest, dome)
    mottle = 1 + 0.012 * (_clouds(rng, chest, 1.2) + _clouds(rng, chest, 4))  # layers of muscle and fat
    soft = np.maximum(body * mottle - lung - gas, 0) + vessels
    parenchyma = lung * (1 + 0.05 * _clouds(rng, chest, 0.35))  # vessels too small to draw
    return chest, SOFT * soft + LUNG * parenchyma + (BONE - SOFT / 2) * bone, lung


def _foci(rng: Generator, chest: _Chest, lung: np.ndarray, radii: np.ndarray, plateau: int) -> np.ndarray:
    """Return (n, n) in 0..1, ragged clouds of `radii` (k, 2) in cm around k random points of aerated lung."""
    aerated, ragged = np.flatnonzero(lung > 0.6 * lung.max()), 0.35 * _clouds(rng, chest, 1.0)
    clear = np.ones_like(lung)
    for at, (across, down) in zip(rng.choice(aerated, len(radii)), radii.tolist(), strict=True):
        x, y = float(chest.x[0, at % len(lung)]), float(chest.y[at // len(lung), 0])
        far = np.maximum(((chest.x - x) / across) ** 2 + ((chest.y - y) / down) ** 2 + ragged, 0)
        clear *= 1 - np.exp(-(far**plateau)) * (chest.x * x > 0)  # a focus stays in its lung
    return (1 - clear) * np.clip(0.85 + 0.15 * _clouds(rng, chest, 0.6), 0, 1)


def _lobar(rng: Generator, chest: _Chest, lung: np.ndarray) -> np.ndarray:
    """Return one consolidation; half of them end at a fissure, half have air bronchograms."""
    filled = _foci(rng, chest, lung, rng.uniform(3.0, 5.2, (1, 2)), plateau=2)
    x, y = (float((filled * v).sum() / filled.sum()) for v in (chest.x, chest.y))
    if rng.random() < 0.5:
        level = chest.y - y + rng.normal(0, 0.15) * (chest.x - x)
        filled *= np.clip(0.5 + (level * int(rng.choice(SIDES)) + rng.uniform(0.3, 1.5)) / 0.3, 0, 1)
    if rng.random() < 0.5:
        t, hilum, bronchi = np.linspace(0, 1.2, 90), 2.4 * np.sign(x), []
        for ex, ey in rng.normal((x, y), 1.5, (5, 2)):
            bx, by, sway = hilum + (ex - hilum) * t, (ey + 1) * t - 1, 0.2 * np.sin(4 * t + ex)
            bronchi.append(_tube(bx + sway, by + sway, 0.14 - 0.07 * t, 4))
        filled *= 1 - np.minimum(1.5 * _project(chest, bronchi), 0.45)
    return filled


def _patchy(rng: Generator, chest: _Chest, lung: np.ndarray) -> np.ndarray:
    """Return bronchopneumonia: several small foci in one or both lungs."""
    return _foci(rng, chest, lung, rng.uniform(1.1, 2.2, (rng.integers(5, 13), 2)), plateau=1)


def _diffuse(rng: Generator, chest: _Chest, lung: np.ndarray) -> np.ndarray:
    """Return interstitial disease: haze and nets of septa, where noise crosses zero, over both lungs."""
    coarse, fine = (np.exp(-2 * _clouds(rng, chest, scale) ** 2) for scale in (0.5, 0.3))
    haze = 0.5 + 0.2 * _clouds(rng, chest, 4)
    return np.clip(haze + rng.uniform(0.1, 0.3) * (coarse * fine + 0.5 * fine), 0, 1)


# Pattern -> its function, its share of the patients with pneumonia, and the range of the share of air that
# fluid replaces: the least is hardly visible behind the ribs, the most is white.
PATTERNS = {
    "lobar": (_lobar, 0.4, 0.44, 1.0),
    "patchy": (_patchy, 0.35, 0.26, 1.0),
    "diffuse": (_diffuse, 0.25, 0.34, 0.9),
}


def _disease(rng: Generator, chest: _Chest, lung: np.ndarray) -> tuple[str, np.ndarray]:
    """Draw a pattern; return its name and added attenuation (n, n), 0 where lung is thinner than 0.6 cm."""
    pattern = str(rng.choice(list(PATTERNS), p=[share for _, share, _, _ in PATTERNS.values()]))
    paint, _, low, high = PATTERNS[pattern]
    fluid = math.exp(rng.uniform(math.log(low), math.log(high))) * paint(rng, chest, lung)
    added = (SOFT - LUNG) * fluid * np.maximum(lung - 0.6, 0)
    return pattern, np.maximum(added - 0.12 * added.max(), 0)  # drop the invisible rim


def _position(rng: Generator, canvas: list[np.ndarray], size: int) -> list[np.ndarray]:
    """Rotate, shift and scale the patient; return the same field (size, size) of each map."""
    turn, zoom = math.radians(rng.normal(0, 1.8)), rng.normal(1, 0.04)
    shift = rng.normal(0, 0.5, 2) * size / FIELD_CM
    cos, sin = math.cos(turn) / zoom, math.sin(turn) / zoom
    matrix = np.array([[cos, -sin], [sin, cos]])
    offset = (len(canvas[0]) - 1) / 2 + shift - matrix @ np.full(2, (size - 1) / 2)
    return [ndimage.affine_transform(m, matrix, offset, (size, size), order=1) for m in canvas]


def _expose(rng: Generator, healthy: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Turn attenuation into brightness, 0 to about 1, with blur, scatter, quantum noise and a tone curve.

    Blur, scatter and the automatic window are computed without the lesion, so that it changes no other pixel.
    """
    size = len(healthy)
    primary = np.exp(-ndimage.gaussian_filter(healthy, rng.uniform(0.35, 0.8) * size / 256))
    scatter = ndimage.uniform_filter(ndimage.uniform_filter(primary, size // 5), size // 5)
    scatter = scatter * rng.uniform(0.05, 0.5)
    signal = primary * np.exp(-opacity) + scatter
    photons = math.exp(rng.uniform(math.log(1e4), math.log(1.5e5)))  # at a pixel without body
    grain = ndimage.gaussian_filter(rng.standard_normal(healthy.shape, dtype=np.float32), 0.5)
    density = grain / np.sqrt(photons * signal) - np.log(signal)
    body = -np.log((primary + scatter)[::4, ::4])
    low, high = map(float, np.quantile(body[body > 0.6], (0.02, 0.985)))
    under, over = rng.uniform(-0.03, 0.25) * (high - low), rng.uniform(-0.02, 0.22) * (high - low)
    bright = np.clip((density - low + under) / (high - low + under + over), 0, 1.1)
    bend = rng.uniform(0.8, 2.4)  # steepness of the S-shaped tone curve
    curve = 0.5 + np.tanh(bend * (bright - 0.5)) / (2 * math.tanh(bend / 2))
    return np.maximum(curve, 0) ** rng.uniform(0.8, 1.25)


_font = functools.cache(ImageFont.load_default)


def _finish(rng: Generator, bright: np.ndarray) -> np.ndarray:
    """Turn brightness into uint8 with shutters and, mostly, a side marker; both are random."""
    size = len(bright)
    image = Image.fromarray(np.clip(bright * 247 + 4, 0, 255).astype(np.uint8))
    left, top, right, bottom = (rng.uniform(0, 0.07, 4) * size * (rng.random(4) < 0.25)).astype(int).tolist()
    lead = int(rng.integers(0, 14))
    image = image.crop((left, top, size - right, size - bottom))
    image = ImageOps.expand(image, (left, top, right, bottom), fill=lead)
    letter, x = str(rng.choice(["R", "L"])), rng.uniform(0.03, 0.1)
    y = rng.uniform(0.03, 0.25) if rng.random() < 0.5 else rng.uniform(0.85, 0.93)
    if rng.random() < 0.85:
        at = (size * (x if letter == "R" else 1 - x), size * y)
        font = _font(round(rng.uniform(0.035, 0.07) * size))
        ImageDraw.Draw(image).text(at, letter, fill=int(rng.integers(190, 256)), font=font, anchor="mm")
    return np.asarray(image)


def simulate_patient(
    patient: int, seed: int = 0, size: int = 256, pneumonia: bool | None = None
) -> list[PhantomImage]:
    """Simulate one to three images of one patient: same anatomy and disease, different position and exposure.

    The images depend on the arguments alone, not on the order of calls or the process.

    Args:
        patient: number of the patient, from 1.
        seed: random seed; another seed gives other patients under the same numbers.
        size: height and width in pixels, at least 64.
        pneumonia: whether the patient has pneumonia. None: one of each pair (1, 2), (3, 4) ..., at random.
    """
    if pneumonia is None:
        first = np.random.default_rng((seed, (patient - 1) // 2, 1)).random() < 0.5
        pneumonia = bool(first) ^ bool(patient % 2)
    # Separate streams, so that anatomy and exposure do not depend on how many numbers the disease draws.
    anatomy, disease, images = np.random.default_rng((seed, patient)).spawn(3)
    chest, healthy, lung = _anatomy(anatomy, size)
    pattern, opacity = _disease(disease, chest, lung) if pneumonia else ("none", np.zeros_like(lung))
    out = []
    for rng in images.spawn(int(images.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))):
        body, lesion = _position(rng, [healthy, opacity], size)
        image = _finish(rng, _expose(rng, body, lesion))
        label = "PNEUMONIA" if pneumonia else "NORMAL"
        out.append(PhantomImage(image, lesion > 0, f"phantom{patient:04d}", label, pattern))
    return out
