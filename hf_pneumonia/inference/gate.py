"""Is this a chest film at all? By what the network's stages make of it, its layout, and signs of its file.

A network answers "pneumonia" or "normal" to a cat, too. Knows nothing of those answers.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from hf_pneumonia.data.dicom import BODY_PARTS, MODALITIES
from hf_pneumonia.errors import UsageError

GATE = "gate.safetensors"

# Differs in hue from what any film has (hue_spread).
HUES = 3.0

# Grays between the 1st and the 99th percentile below which a film is blank; a dark film has 60 and more.
FLAT = 12

_FILM_MODALITIES = {"CR", "DX", "RG", "RF"}
_CHEST = {"CHEST", "THORAX", "LUNG", "RIB", "HEART"}
_SIDE_VIEWS = {"LL", "RL", "LATERAL", "LLD", "RLD"}

# Sides of the thumbnail that layout is judged by: coarse, so that ribs do not matter and their place does.
LAYOUT = 16

_FRAME_GRAYS = 12  # that a line of a frame may span: compression and resizing let the film run into it


@dataclass(frozen=True)
class Spread:
    """A Gaussian of few directions, and what lies across them: principal components of training films.

    Attributes:
        mean, scale: (d,) of each number; the others are of numbers less mean, divided by scale.
        directions: (k, d) orthonormal.
        variances: (k,) along the directions.
    """

    mean: np.ndarray
    scale: np.ndarray
    directions: np.ndarray
    variances: np.ndarray

    def distances(self, numbers: np.ndarray) -> np.ndarray:
        """(n, d) -> (n, 2) squared distances from the mean: along the directions, in their deviations, and
        across them."""
        centred = (numbers - self.mean) / self.scale
        squared, along = np.square(centred).sum(1), np.square(centred @ self.directions.T)
        both = [(along / self.variances).sum(1), (squared - along.sum(1)).clip(0)]
        return np.stack(both, axis=1).astype(np.float64)


@dataclass(frozen=True)
class Gate:
    """Statistics of the films that a network was taught.

    Attributes:
        layout: of their thumbnails.
        stages: of what the network's stages make of them, from `watch_stages`.
        limits: (1 + stages,) distances of layout and of each stage from which on a picture is refused.
    """

    layout: Spread
    stages: tuple[Spread, ...]
    limits: np.ndarray

    def scores(self, squares: np.ndarray, statistics: list[np.ndarray]) -> np.ndarray:
        """How far from chest films pictures are; refused above 1.

        Args:
            squares: (n, s, s) uint8, the network's input.
            statistics: (n, numbers) float of each, from `watch_stages`.

        Returns:
            (n,) float64.
        """
        return (distances(self.layout, self.stages, squares, statistics) / self.limits).max(1)

    def tensors(self) -> dict[str, np.ndarray]:
        """All of it by name, as it is saved."""
        spreads = {"layout": self.layout} | {f"stage{number}": one for number, one in enumerate(self.stages)}
        parts = {
            f"{name}.{key}": one for name, spread in spreads.items() for key, one in vars(spread).items()
        }
        return {name: np.ascontiguousarray(one) for name, one in (parts | {"limits": self.limits}).items()}

    def save(self, folder: Path) -> None:
        """Write gate.safetensors into a model's folder, whole or not at all.

        Raises:
            UsageError: it can't be written, as on a full disk.
        """
        aside = folder / f".{GATE}"
        try:
            save_file(self.tensors(), aside)
        except SafetensorError as error:
            raise UsageError(f"the gate can't be written ({error}); free some space") from error
        # safetensors leaves its files to the owner alone.
        aside.chmod((folder / "config.json").stat().st_mode)
        aside.replace(folder / GATE)


def load_gate(folder: Path) -> Gate | None:
    """The gate beside a model; None where it has none.

    Raises:
        UsageError: the file is damaged.
    """
    if not (folder / GATE).is_file():
        return None
    try:
        tensors = load_file(folder / GATE)
        if not {one.dtype.name for one in tensors.values()} <= {"float32", "float64"}:
            raise ValueError("it holds other numbers than a gate does")
        count = sum(name.endswith(".mean") for name in tensors) - 1
        layout, *stages = (
            _spread(tensors, name) for name in ("layout", *(f"stage{n}" for n in range(count)))
        )
        gate = Gate(layout, tuple(stages), tensors["limits"])
        if gate.tensors().keys() != tensors.keys():
            raise ValueError("it holds other things than a gate of this version")
    # TypeError, AttributeError: numbers that NumPy does not have, such as bfloat16.
    except (SafetensorError, KeyError, ValueError, OSError, TypeError, AttributeError) as error:
        raise UsageError(f"{folder.name}: its {GATE} is damaged: {str(error).splitlines()[0]}") from error
    as_many = gate.limits.shape == (1 + count,) and layout.mean.shape == (LAYOUT**2,)
    if not as_many or not (gate.limits > 0).all():
        raise UsageError(f"{folder.name}: its {GATE} is damaged")
    return gate


def distances(
    layout: Spread, stages: tuple[Spread, ...], squares: np.ndarray, statistics: list[np.ndarray]
) -> np.ndarray:
    """(n, 1 + stages) how far pictures lie from films in layout and in each stage: the geometric mean of the
    two distances of `Spread`, so that neither decides alone."""
    numbers = [layout_numbers(squares), *statistics]
    both = [spread.distances(one) for spread, one in zip((layout, *stages), numbers, strict=True)]
    # What lies across may be nothing, as of a blank picture.
    return np.stack([np.sqrt(one.clip(1e-9).prod(1)) for one in both], axis=1)


def layout_numbers(squares: np.ndarray) -> np.ndarray:
    """(n, s, s) uint8 -> (n, LAYOUT**2) float32 thumbnails of one brightness and contrast, without frames."""
    small = np.stack([_thumbnail(_without_frame(square)) for square in squares])
    # Five levels more, so that a blank picture's noise is not blown up to a layout.
    return (small - small.mean(1, keepdims=True)) / (small.std(1, keepdims=True) + 5)


def image_problem(film: Image.Image, square: np.ndarray | None = None) -> str:
    """Why a picture is no chest film, as far as its file and its grays tell; "" where nothing says so.

    Args:
        film: of mode 'L' at its full size, with `info` as `read_film` leaves it.
        square: (s, s) uint8, the same at the network's size, where that is at hand: it has fewer grays.
    """
    hues, modality, part, view = (film.info.get(name) for name in ("hues", "modality", "body_part", "view"))
    if isinstance(hues, float) and hues > HUES:
        return "a colour picture, and chest films are gray"
    if modality in MODALITIES and modality not in _FILM_MODALITIES:
        return f"its DICOM header says {MODALITIES[modality]}"
    if part in BODY_PARTS and part not in _CHEST:
        return f"its DICOM header says {part.lower()}"
    if view in _SIDE_VIEWS:
        return "its DICOM header says that it is a side view"
    levels = film.histogram() if square is None else np.bincount(square.ravel(), minlength=256)
    levels = np.cumsum(levels)
    low, high = np.searchsorted(levels, [0.01 * levels[-1], 0.99 * levels[-1]])
    if high - low < FLAT:
        return "blank: it has hardly any contrast"
    return ""


def _without_frame(square: np.ndarray) -> np.ndarray:
    """Less the rows and columns of one gray at its edges, an eighth of the side at most on each."""
    most = len(square) // 8
    kept = []
    for lines in (square, square.T):
        uniform = np.ptp(lines, axis=1) <= _FRAME_GRAYS
        first = next((line for line in range(most) if not uniform[line]), most)
        last = next((line for line in range(most) if not uniform[-1 - line]), most)
        kept.append(slice(first, len(square) - last))
    return square[kept[0], kept[1]]


def _thumbnail(square: np.ndarray) -> np.ndarray:
    import torch  # a second, and who only asks `image_problem` needs none of it

    pixels = torch.from_numpy(np.array(square))[None, None].float()
    return torch.nn.functional.interpolate(pixels, (LAYOUT, LAYOUT), mode="area").numpy().ravel()


def _spread(tensors: dict[str, np.ndarray], name: str) -> Spread:
    parts = [tensors[f"{name}.{key}"] for key in ("mean", "scale", "directions", "variances")]
    mean, scale, directions, variances = parts
    shapes = mean.shape == scale.shape == directions.shape[1:] and variances.shape == directions.shape[:1]
    finite = all(np.isfinite(part).all() for part in parts)
    if mean.ndim != 1 or not shapes or not finite:
        raise ValueError(f"{name} has other shapes than expected, or no numbers")
    if not ((scale > 0).all() and (variances > 0).all()):
        raise ValueError(f"{name} has a spread of 0 or less")
    return Spread(*parts)
