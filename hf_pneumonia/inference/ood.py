"""The out-of-distribution check ("gate"): fitted after training, and asked of every image.

By what the stages of a network make of an image, by its layout, and by signs of its file. A network answers
"pneumonia" or "normal" to a cat, too; the OOD check knows nothing of those answers.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from scipy.stats import t as students
from sklearn.decomposition import PCA

from hf_pneumonia.data.cohort import Cohort
from hf_pneumonia.data.dicom import BODY_PARTS, MODALITIES
from hf_pneumonia.data.files import written_whole
from hf_pneumonia.data.images import few_grays
from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.intervals import wilson
from hf_pneumonia.modeling.augment import Augment
from hf_pneumonia.modeling.build import network_input

logger = logging.getLogger(__name__)

OOD_FILE = "gate.safetensors"

_HUES = 3.0  # differs in hue from what any image has (hue_spread)
# Grays between the 1st and the 99th percentile below which an image is blank; a dark image has 60 and more.
_FLAT = 12

_IMAGE_MODALITIES = {"CR", "DX", "RG", "RF"}
_CHEST = {"CHEST", "THORAX", "LUNG", "RIB", "HEART"}
_SIDE_VIEWS = {"LL", "RL", "LATERAL", "LLD", "RLD"}

# Sides of the thumbnail that layout is judged by: coarse, so that ribs do not matter and their place does.
_LAYOUT = 16
_FRAME_GRAYS = 12  # that a line of a frame may span: compression and resizing let the image run into it
# Fields a side in which the middle stage is looked at: what is where, and not only how much (docs/LOG.md).
_FIELDS = 4

# Images that the statistics are taken of, drawn from each split where it has more: enough for 64 directions.
_IMAGES = 1024
_DIRECTIONS = 64

# Images of one hospital are alike in exposure, and those of another are chest X-rays too: each counts as it is,
# and once varied. Turned and moved ones pass anyway.
_VARIED = {"exposure": 0.3, "blur": 0.7, "noise": 0.03}

# Widest frame that a varied image is put into, as a share of the side: exports and screenshots have some.
_FRAME = 0.08

# Share of validation's images, as they are and varied, above each limit; and the margin on top of it: images of
# another scanner lie further out than validation's.
_REFUSED, _MARGIN = 0.0025, 1.1


@dataclass(frozen=True)
class Spread:
    """A Gaussian of few directions, and what lies across them: principal components of training images."""

    mean: np.ndarray  # (d,)
    scale: np.ndarray  # (d,), by which numbers less mean are divided
    directions: np.ndarray  # (k, d) orthonormal
    variances: np.ndarray  # (k,) along the directions

    def distances(self, numbers: np.ndarray) -> np.ndarray:
        """(n, d) -> (n, 2) squared distances from the mean: along the directions, in their deviations, and
        across them."""
        centred = (numbers - self.mean) / self.scale
        squared, along = np.square(centred).sum(1), np.square(centred @ self.directions.T)
        both = [(along / self.variances).sum(1), (squared - along.sum(1)).clip(0)]
        return np.stack(both, axis=1).astype(np.float64)


@dataclass(frozen=True)
class OODCheck:
    """Statistics of the images that a network was trained on."""

    layout: Spread  # of their thumbnails
    stages: tuple[Spread, ...]  # of what the network's stages make of them, from `watch_stages`
    limits: np.ndarray  # (1 + stages,) distances from which on a picture is refused

    def distances(self, squares: np.ndarray, statistics: list[np.ndarray]) -> np.ndarray:
        """(n, 1 + stages) how far pictures lie from images in layout and in each stage: the geometric mean of
        the two distances of `Spread`, so that neither decides alone. Args: as `scores`."""
        numbers = [layout_numbers(squares), *statistics]
        spreads = (self.layout, *self.stages)
        both = [spread.distances(one) for spread, one in zip(spreads, numbers, strict=True)]
        # What lies across may be nothing, as of a blank picture.
        return np.stack([np.sqrt(one.clip(1e-9).prod(1)) for one in both], axis=1)

    def scores(self, squares: np.ndarray, statistics: list[np.ndarray]) -> np.ndarray:
        """Return (n,) float64, how far from chest X-rays pictures are; refused above 1.

        Args:
            squares: (n, s, s) uint8, the network's input.
            statistics: (n, numbers) float of each, from `watch_stages`.
        """
        return (self.distances(squares, statistics) / self.limits).max(1)

    def tensors(self) -> dict[str, np.ndarray]:
        """All of it by name, as it is saved."""
        found = {"limits": self.limits}
        for number, spread in enumerate((self.layout, *self.stages)):
            name = f"stage{number - 1}" if number else "layout"
            found |= {f"{name}.{key}": np.ascontiguousarray(one) for key, one in vars(spread).items()}
        return found

    def save(self, folder: Path) -> None:
        """Write gate.safetensors into a model's folder."""
        with written_whole(folder / OOD_FILE) as aside:
            aside.write_bytes(save(self.tensors()))


def load_ood_check(folder: Path) -> OODCheck | None:
    """Return the OOD check beside a model; None where it has none.

    Raises:
        UsageError: the file is damaged.
    """
    if not (folder / OOD_FILE).is_file():
        return None
    try:
        tensors = load_file(folder / OOD_FILE)
        for name, tensor in tensors.items():
            least = 0 if name.endswith(("limits", "scale", "variances")) else -np.inf
            if not np.isfinite(tensor).all() or not (tensor > least).all():
                raise ValueError(f"{name} has NaN, infinity, or a spread of 0 or less")
        count = sum(name.endswith(".mean") for name in tensors) - 1
        layout, *stages = (
            Spread(*(tensors[f"{name}.{key}"] for key in ("mean", "scale", "directions", "variances")))
            for name in ("layout", *(f"stage{number}" for number in range(count)))
        )
        for one in (layout, *stages):
            number, size = one.directions.shape
            if not one.mean.shape == one.scale.shape == (size,) or one.variances.shape != (number,):
                raise ValueError("its tensors have other shapes than expected")
        if tensors["limits"].shape != (1 + count,):
            raise ValueError(f"expected {1 + count} limits")
        return OODCheck(layout, tuple(stages), tensors["limits"])
    # TypeError, AttributeError: numbers that NumPy does not have, such as bfloat16.
    except (SafetensorError, KeyError, ValueError, OSError, TypeError, AttributeError) as error:
        raise UsageError(
            "ood-check", f"{folder.name}: its {OOD_FILE} is damaged: {str(error).splitlines()[0]}"
        ) from error


def layout_numbers(squares: np.ndarray) -> np.ndarray:
    """(n, s, s) uint8 -> (n, 256) float32 thumbnails of one brightness and contrast, without frames."""
    inner = [torch.from_numpy(_without_frame(square).copy())[None, None].float() for square in squares]
    small = np.stack([F.interpolate(one, (_LAYOUT, _LAYOUT), mode="area").numpy().ravel() for one in inner])
    # Five levels more, so that a blank picture's noise is not blown up to a layout.
    return (small - small.mean(1, keepdims=True)) / (small.std(1, keepdims=True) + 5)


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


def image_problem(image: Image.Image, square: np.ndarray | None = None) -> str:
    """Return why a picture is no chest X-ray, by its file and its grays; "" where nothing says so.

    Args:
        image: of mode 'L' at its full size, with `info` as `read_image` leaves it.
        square: (s, s) uint8, the same at the network's size, which is counted faster.
    """
    hues, modality, part, view = (image.info.get(name) for name in ("hues", "modality", "body_part", "view"))
    if isinstance(hues, float) and hues > _HUES:
        return "a colour picture, and chest X-rays are gray"
    if modality in MODALITIES and modality not in _IMAGE_MODALITIES:
        return f"its DICOM header says {MODALITIES[modality]}"
    if part in BODY_PARTS and part not in _CHEST:
        return f"its DICOM header says {part.lower()}"
    if view in _SIDE_VIEWS:
        return "its DICOM header says that it is a side view"
    levels = image.histogram() if square is None else np.bincount(square.ravel(), minlength=256)
    levels = np.cumsum(levels)
    low, high = np.searchsorted(levels, [0.01 * levels[-1], 0.99 * levels[-1]])
    if high - low < _FLAT:
        return "blank: it has hardly any contrast"
    return "it has two or three grays, as masks have" if few_grays(image) else ""


@contextmanager
def watch_stages(network: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """While it is open, each pass of the network leaves its stages' statistics in the list, in their order.

    A statistic is the mean and the standard deviation of each channel over places (or tokens). Before those
    of the middle stage, where it has places, stand the means of its channels over 4 x 4 fields.

    Args:
        network: timm's, whose `feature_info` lists its stages. What other threads put through it is skipped.

    Yields:
        List that grows by a (b, numbers) float32 tensor for each statistic, on the network's device.
    """
    kept: list[torch.Tensor] = []
    names = [stage["module"] for stage in getattr(network, "feature_info", [])]
    middle, thread = names[len(names) // 2] if names else None, threading.get_ident()

    def keep(name: str, _, __, output: torch.Tensor) -> None:
        if threading.get_ident() != thread:
            return
        maps = output.detach().float()
        if maps.ndim == 3:  # tokens
            maps = maps.transpose(1, 2)
        elif getattr(network, "output_fmt", "NCHW") == "NHWC":
            maps = maps.permute(0, 3, 1, 2)
        if name == middle and maps.ndim == 4:
            kept.append(F.adaptive_avg_pool2d(maps, _FIELDS).flatten(1))
        places = tuple(range(2, maps.ndim))
        mean = maps.mean(places, keepdim=True)
        deviation = (maps - mean).square_().mean(places).sqrt()  # torch.std takes seven times as long
        kept.append(torch.cat([mean.flatten(1), deviation], dim=1))

    with ExitStack() as hooks:
        for name in names:
            module = network.get_submodule(name)
            hooks.enter_context(module.register_forward_hook(partial(keep, name)))
        yield kept


@torch.inference_mode()
def stage_statistics(model: torch.nn.Module, squares: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Return (n, numbers) float32 of each statistic of `watch_stages`; none where no stages are listed.

    Args:
        model: with timm's network as `timm_model`; left in evaluation mode.
        squares: (n, s, s) uint8, from 1 image.
        batch_size: images per forward pass.
    """
    model.eval()
    device = next(model.parameters()).device
    batches = []
    for start in range(0, len(squares), batch_size):
        images = torch.from_numpy(np.array(squares[start : start + batch_size])).to(device)
        with watch_stages(model.timm_model) as kept:
            model(network_input(images))
        batches.append([one.cpu().numpy() for one in kept])
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def make_ood_check(model: torch.nn.Module, cohort: Cohort, batch_size: int) -> OODCheck | None:
    """Fit an OOD check on the training images, its limits on validation's.

    Args:
        model: the network as it is saved, on any device.
        cohort: the splits; their images at the network's input size.
        batch_size: images per forward pass.

    Returns:
        None where the network's stages can't be watched, or there are fewer than 32 images to train and 8 to
        validate.
    """
    rows = [cohort.rows(split) for split in ("train", "validation")]
    train, validation = (np.sort(np.random.default_rng(0).permutation(one)[:_IMAGES]) for one in rows)
    if len(train) < 32 or len(validation) < 8 or not getattr(model.timm_model, "feature_info", None):
        logger.warning("no out-of-distribution check: it needs 32 images to train, 8 to validate, and stages")
        return None
    try:
        stage_statistics(model, cohort.cache[train[:1]], 1)
    # A few architectures list stages that are no modules, or give no maps; the training is done, and is kept.
    except (AttributeError, TypeError, IndexError, ValueError, RuntimeError) as error:
        kind = type(model.timm_model).__name__
        logger.warning("no OOD check: the stages of %s can't be watched (%s)", kind, error)
        return None

    def seen(rows: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        plain = cohort.cache[rows]
        both = np.concatenate([plain, _framed(_varied(plain))])
        return both, stage_statistics(model, both, batch_size)

    return fit_ood_check(seen(train), seen(validation))


def fit_ood_check(
    train: tuple[np.ndarray, list[np.ndarray]], validation: tuple[np.ndarray, list[np.ndarray]]
) -> OODCheck:
    """Take the statistics of training images, and limits of validation's, which did not train the network.

    A limit is the conformal quantile of validation's images at `1 - _REFUSED`, or what Student's distribution
    of their logarithms foretells for the next image where that is more (it is where they are few), times
    `_MARGIN`.

    Args:
        train, validation: squares (n, s, s) uint8, and the statistics of `watch_stages`.
    """
    layout, *stages = map(_spread, [layout_numbers(train[0]), *train[1]])
    ood_check = OODCheck(layout, tuple(stages), np.ones(1 + len(stages)))
    return replace(
        ood_check, limits=np.array([_limit(column) for column in ood_check.distances(*validation).T])
    )


def measure_ood_check(ood_check: OODCheck, model: torch.nn.Module, cohort: Cohort, batch_size: int) -> dict:
    """Count the chest X-rays of validation and test that an OOD check refuses; args as for `make_ood_check`.

    Returns:
        `images`: by split, how many `images` were `refused`, and their `share` with Wilson's interval.
        benchmarks/ood.py asks about other pictures.
    """
    found = {}
    for split in ("validation", "test"):
        rows = cohort.rows(split)
        squares, hues = cohort.cache[rows], cohort.cache.facts["hues"][rows]
        refused = ood_check.scores(squares, stage_statistics(model, squares, batch_size)) > 1
        for number, square in enumerate(squares):
            picture = Image.fromarray(square)
            picture.info["hues"] = float(hues[number])
            refused[number] |= bool(image_problem(picture))
        count = int(sum(refused))
        share = {"value": count / len(rows), "wilson95": wilson(count, len(rows))}
        found[split] = {"films": len(rows), "refused": count, "share": share}
    return {"films": found}


def _varied(squares: np.ndarray) -> np.ndarray:
    """The same images in other exposures, blurred and noisy, by draws of its own: no other draw is changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = torch.from_numpy(squares).split(256)
        varied = torch.cat([Augment(**_VARIED)(part) for part in parts])
    return (varied * 255).round().to(torch.uint8).numpy()


def _framed(squares: np.ndarray) -> np.ndarray:
    """The same images, every second one in a frame, mostly black, of a width for each side of it."""
    rng, size = np.random.default_rng(0), squares.shape[1]
    framed = squares.copy()
    for number in np.flatnonzero(rng.random(len(squares)) < 0.5):
        top, bottom, left, right = (rng.uniform(0, _FRAME, 4) * size).astype(int)
        inner = (size - left - right, size - top - bottom)
        image = Image.fromarray(squares[number]).resize(inner, Image.Resampling.BICUBIC)
        framed[number] = 0 if rng.random() < 2 / 3 else 255
        framed[number, top : size - bottom, left : size - right] = np.asarray(image)
    return framed


def _spread(taught: np.ndarray) -> Spread:
    mean, scale = taught.mean(0), taught.std(0) + 1e-6
    # Half of them at most: what lies across one or two is too uneven to be judged by.
    count = min(_DIRECTIONS, len(taught) // 4, taught.shape[1] // 2)
    # Randomised (Halko, Martinsson, Tropp, SIAM Review 2011): a ResNet50's last stage has 4,096 numbers.
    pca = PCA(count, svd_solver="randomized", random_state=0).fit((taught - mean) / scale)
    parts = (mean, scale, pca.components_, pca.explained_variance_ + 1e-9)
    return Spread(*(np.asarray(part, dtype=np.float32) for part in parts))


def _limit(found: np.ndarray) -> float:
    count = len(found)
    rank = min(int(np.ceil((1 - _REFUSED) * (count + 1))), count)
    logs = np.log(found)
    reach = students.ppf(1 - _REFUSED / 2, count - 1) * np.sqrt(1 + 1 / count)
    foretold = logs.mean() + reach * logs.std(ddof=1)
    return float(max(np.sort(found)[rank - 1], np.exp(foretold)) * _MARGIN)
