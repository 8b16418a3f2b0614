"""Out-of-distribution (OOD) check: refuses images that are not frontal chest X-rays.

A network predicts "pneumonia" or "normal" for a photograph of a cat, too. The check compares an image's
features at each stage of the network and its coarse layout with the training images, and reads its colours,
gray levels and DICOM header. It does not use the prediction. It is fitted after training.
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
from hf_pneumonia.data.files import atomic_write
from hf_pneumonia.data.images import few_grays
from hf_pneumonia.errors import UsageError
from hf_pneumonia.evaluation.intervals import wilson
from hf_pneumonia.modeling.augment import Augment
from hf_pneumonia.modeling.build import network_input

logger = logging.getLogger(__name__)

OOD_FILE = "gate.safetensors"

_HUES = 3.0  # hue_spread above which an image is in colour; X-rays stay below it
# Gray levels between the 1st and 99th percentile below which an image is blank; dark X-rays have 60 or more.
_FLAT = 12

_IMAGE_MODALITIES = {"CR", "DX", "RG", "RF"}
_CHEST = {"CHEST", "THORAX", "LUNG", "RIB", "HEART"}
_SIDE_VIEWS = {"LL", "RL", "LATERAL", "LLD", "RLD"}

# Side of the layout thumbnail in pixels: coarse enough to show the position of the ribs but not single ribs.
_LAYOUT = 16
_FRAME_GRAYS = 12  # gray levels within a line of a frame: compression and resizing blur its edge
# The middle stage is also averaged over 4 x 4 fields, which keeps the position of features (docs/LOG.md).
_FIELDS = 4

# At most this many images per split are used, each twice: enough to fit 64 directions.
_IMAGES = 512
_DIRECTIONS = 64

# Exposure differs between hospitals more than within one: each image is used as it is and once augmented.
# Rotation and shift are not needed: rotated and shifted images pass anyway.
_VARIED = {"exposure": 0.3, "blur": 0.7, "noise": 0.03}

# Largest width of an added frame as a fraction of the image's side; exports and screenshots have frames.
_FRAME = 0.08

# Share of validation images, original and augmented, above each limit; and a margin on each limit, since
# images of another scanner are further from the training images than validation images are.
_REFUSED, _MARGIN = 0.0025, 1.1


@dataclass(frozen=True)
class Gaussian:
    """Gaussian in the space of the first principal components of the training images."""

    mean: np.ndarray  # (d,)
    scale: np.ndarray  # (d,) standard deviations
    directions: np.ndarray  # (k, d) orthonormal
    variances: np.ndarray  # (k,) along the directions

    def distances(self, features: np.ndarray) -> np.ndarray:
        """Return two squared distances from the mean: Mahalanobis along the components, and the residual.

        Args:
            features: (n, d) float.

        Returns:
            (n, 2) float64.
        """
        centred = (features - self.mean) / self.scale
        squared, along = np.square(centred).sum(1), np.square(centred @ self.directions.T)
        both = [(along / self.variances).sum(1), (squared - along.sum(1)).clip(0)]
        return np.stack(both, axis=1).astype(np.float64)


@dataclass(frozen=True)
class OODCheck:
    """Statistics of a network's training images."""

    layout: Gaussian  # of the thumbnails
    stages: tuple[Gaussian, ...]  # of the stage statistics, from `watch_stages`
    limits: np.ndarray  # (1 + stages,) distances above which an image is refused

    def distances(self, squares: np.ndarray, statistics: list[np.ndarray]) -> np.ndarray:
        """Return (n, 1 + stages) float64 distances from the training images, for layout and each stage.

        A distance is the geometric mean of the two distances of `Gaussian`, so that neither decides alone.

        Args:
            squares, statistics: as for `scores`.
        """
        features = [layout_features(squares), *statistics]
        gaussians = (self.layout, *self.stages)
        pairs = [gaussian.distances(part) for gaussian, part in zip(gaussians, features, strict=True)]
        # The residual may be 0, as for a blank image.
        return np.stack([np.sqrt(pair.clip(1e-9).prod(1)) for pair in pairs], axis=1)

    def scores(self, squares: np.ndarray, statistics: list[np.ndarray]) -> np.ndarray:
        """Return (n,) float64 OOD scores; an image with a score above 1 is refused.

        Args:
            squares: (n, s, s) uint8, the network's input.
            statistics: (n, d) float per statistic of `watch_stages`.
        """
        return (self.distances(squares, statistics) / self.limits).max(1)

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the tensors of gate.safetensors by name."""
        tensors = {"limits": self.limits}
        for number, gaussian in enumerate((self.layout, *self.stages)):
            name = f"stage{number - 1}" if number else "layout"
            tensors |= {f"{name}.{key}": np.ascontiguousarray(array) for key, array in vars(gaussian).items()}
        return tensors

    def save(self, folder: Path) -> None:
        """Write gate.safetensors to a model's folder."""
        with atomic_write(folder / OOD_FILE) as aside:
            aside.write_bytes(save(self.tensors()))


def load_ood_check(folder: Path) -> OODCheck | None:
    """Return the OOD check in a model's folder, or None if there is none.

    Raises:
        UsageError: gate.safetensors is damaged.
    """
    if not (folder / OOD_FILE).is_file():
        return None
    try:
        tensors = load_file(folder / OOD_FILE)
        for name, tensor in tensors.items():
            least = 0 if name.endswith(("limits", "scale", "variances")) else -np.inf
            if not np.isfinite(tensor).all() or not (tensor > least).all():
                raise ValueError(f"{name} has NaN, infinity, or a variance of 0 or less")
        count = sum(name.endswith(".mean") for name in tensors) - 1
        layout, *stages = (
            Gaussian(*(tensors[f"{name}.{key}"] for key in ("mean", "scale", "directions", "variances")))
            for name in ("layout", *(f"stage{number}" for number in range(count)))
        )
        for fit in (layout, *stages):
            number, size = fit.directions.shape
            if not fit.mean.shape == fit.scale.shape == (size,) or fit.variances.shape != (number,):
                raise ValueError("unexpected tensor shapes")
        if tensors["limits"].shape != (1 + count,):
            raise ValueError(f"expected {1 + count} limits")
        return OODCheck(layout, tuple(stages), tensors["limits"])
    # TypeError, AttributeError: dtypes that NumPy lacks, such as bfloat16.
    except (SafetensorError, KeyError, ValueError, OSError, TypeError, AttributeError) as error:
        raise UsageError(
            "damaged-ood-check",
            f"{folder.name}/{OOD_FILE}: damaged: {str(error).splitlines()[0]}. Train or copy the model again",
        ) from error


def layout_features(squares: np.ndarray) -> np.ndarray:
    """Return thumbnails without frames, normalised in brightness and contrast.

    Args:
        squares: (n, s, s) uint8.

    Returns:
        (n, 256) float32.
    """
    inner = (torch.from_numpy(_without_frame(square).copy())[None, None].float() for square in squares)
    small = np.stack([F.interpolate(one, (_LAYOUT, _LAYOUT), mode="area").numpy().ravel() for one in inner])
    # + 5 keeps the noise of a blank image from being amplified to a layout.
    return (small - small.mean(1, keepdims=True)) / (small.std(1, keepdims=True) + 5)


def _without_frame(square: np.ndarray) -> np.ndarray:
    """Crop uniform rows and columns at the edges, at most an eighth of the side each."""
    most = len(square) // 8
    kept = []
    for lines in (square, square.T):
        uniform = np.ptp(lines, axis=1) <= _FRAME_GRAYS
        first = next((line for line in range(most) if not uniform[line]), most)
        last = next((line for line in range(most) if not uniform[-1 - line]), most)
        kept.append(slice(first, len(square) - last))
    return square[kept[0], kept[1]]


def image_problem(image: Image.Image, square: np.ndarray | None = None) -> str:
    """Return why an image is not a frontal chest X-ray by its colours, gray levels and DICOM header, or "".

    Args:
        image: mode 'L' at full size, with `info` from `read_image`.
        square: (s, s) uint8, the same image at the network's size: its histogram is faster.
    """
    hues, modality, part, view = (image.info.get(name) for name in ("hues", "modality", "body_part", "view"))
    if isinstance(hues, float) and hues > _HUES:
        return "a colour picture, and chest X-rays are gray"
    if modality in MODALITIES and modality not in _IMAGE_MODALITIES:
        return f"its DICOM header says {MODALITIES[modality]}"
    if part in BODY_PARTS and part not in _CHEST:
        return f"its DICOM header says {part.lower()}"
    if view in _SIDE_VIEWS:
        return "its DICOM header says side view"
    levels = image.histogram() if square is None else np.bincount(square.ravel(), minlength=256)
    levels = np.cumsum(levels)
    low, high = np.searchsorted(levels, [0.01 * levels[-1], 0.99 * levels[-1]])
    if high - low < _FLAT:
        return "blank: it has hardly any contrast"
    return "it has only two or three gray levels, like a mask" if few_grays(image) else ""


@contextmanager
def watch_stages(network: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """Record statistics of each stage in every forward pass of this thread while the context is open.

    The statistics of a stage are the mean and standard deviation of each channel over positions (or tokens).
    The middle stage, if it has positions, also gives the channel means over 4 x 4 fields, ahead of these.

    Args:
        network: timm network that lists its stages in `feature_info`.

    Yields:
        List to which each forward pass appends (b, d) float32 tensors on the network's device.
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
        positions = tuple(range(2, maps.ndim))
        mean = maps.mean(positions, keepdim=True)
        deviation = (maps - mean).square_().mean(positions).sqrt()  # torch.std takes seven times as long
        kept.append(torch.cat([mean.flatten(1), deviation], dim=1))

    with ExitStack() as hooks:
        for name in names:
            module = network.get_submodule(name)
            hooks.enter_context(module.register_forward_hook(partial(keep, name)))
        yield kept


@torch.inference_mode()
def stage_statistics(model: torch.nn.Module, squares: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Return the statistics of `watch_stages`, (n, d) float32 each; an empty list if no stages are listed.

    Args:
        model: has the timm network as `timm_model`; left in evaluation mode.
        squares: (n, s, s) uint8, n >= 1.
        batch_size: images per forward pass.
    """
    model.eval()
    device = next(model.parameters()).device
    batches = []
    for start in range(0, len(squares), batch_size):
        images = torch.from_numpy(np.array(squares[start : start + batch_size])).to(device)
        with watch_stages(model.timm_model) as kept:
            model(network_input(images))
        batches.append([statistic.cpu().numpy() for statistic in kept])
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def fit_ood_check(model: torch.nn.Module, cohort: Cohort, batch_size: int) -> OODCheck | None:
    """Fit an OOD check on the training images and its limits on the validation images.

    Args:
        model: network with the saved weights, on any device.
        cohort: splits, with images at the network's input size.
        batch_size: images per forward pass.

    Returns:
        The check; None if the network lists no usable stages, or there are fewer than 32 training or 8
        validation images.
    """
    rows = [cohort.rows(split) for split in ("train", "validation")]
    train, validation = (np.sort(np.random.default_rng(0).permutation(split)[:_IMAGES]) for split in rows)
    if len(train) < 32 or len(validation) < 8 or not getattr(model.timm_model, "feature_info", None):
        logger.warning(
            "no OOD check: it needs 32 training images, 8 validation images and a network with feature_info"
        )
        return None
    try:
        stage_statistics(model, cohort.cache[train[:1]], 1)
    # A few architectures list stages that are not modules or return no maps: training must not fail here.
    except (AttributeError, TypeError, IndexError, ValueError, RuntimeError) as error:
        kind = type(model.timm_model).__name__
        logger.warning("no OOD check: %s returns no features by stage (%s)", kind, error)
        return None

    def with_varied(rows: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        plain = cohort.cache[rows]
        squares = np.concatenate([plain, _framed(_varied(plain))])
        return squares, stage_statistics(model, squares, batch_size)

    return fit_ood_statistics(with_varied(train), with_varied(validation))


def fit_ood_statistics(
    train: tuple[np.ndarray, list[np.ndarray]], validation: tuple[np.ndarray, list[np.ndarray]]
) -> OODCheck:
    """Fit an OOD check on statistics of training images, and its limits on validation images.

    A limit is `_MARGIN` times the larger of two estimates of the `1 - _REFUSED` quantile of validation
    distances: the conformal one, and a Student's t prediction limit of the log distances, which is the larger
    one for few images.

    Args:
        train, validation: squares, (n, s, s) uint8, and their statistics from `watch_stages`.
    """
    layout, *stages = map(_fit_gaussian, [layout_features(train[0]), *train[1]])
    ood_check = OODCheck(layout, tuple(stages), np.ones(1 + len(stages)))
    return replace(
        ood_check, limits=np.array([_limit(column) for column in ood_check.distances(*validation).T])
    )


def measure_refusals(ood_check: OODCheck, model: torch.nn.Module, cohort: Cohort, batch_size: int) -> dict:
    """Count the validation and test images that an OOD check refuses.

    benchmarks/ood.py measures it on other images.

    Args:
        ood_check: the check.
        model, cohort, batch_size: as for `fit_ood_check`.

    Returns:
        `films`: split -> number of `films`, number `refused`, and their `share` with a Wilson interval.
    """
    splits = {}
    for split in ("validation", "test"):
        rows, count = cohort.rows(split), 0
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            squares = cohort.cache[batch]
            refused = ood_check.scores(squares, stage_statistics(model, squares, batch_size)) > 1
            for row, square, far in zip(batch, squares, refused, strict=True):
                image = Image.fromarray(square)
                image.info["hues"] = float(cohort.cache.facts["hues"][row])
                count += bool(far or image_problem(image))
        share = {"value": count / len(rows), "wilson95": wilson(count, len(rows))}
        splits[split] = {"films": len(rows), "refused": count, "share": share}
    return {"films": splits}


def _varied(squares: np.ndarray) -> np.ndarray:
    """Vary exposure, blur and noise, without changing the state of the global random generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = torch.from_numpy(squares).split(256)
        varied = torch.cat([Augment(**_VARIED)(part) for part in parts])
    return (varied * 255).round().to(torch.uint8).numpy()


def _framed(squares: np.ndarray) -> np.ndarray:
    """Put half of the images into frames of random widths, black or white."""
    rng, size = np.random.default_rng(0), squares.shape[1]
    framed = squares.copy()
    for number in np.flatnonzero(rng.random(len(squares)) < 0.5):
        top, bottom, left, right = (rng.uniform(0, _FRAME, 4) * size).astype(int)
        inner = (size - left - right, size - top - bottom)
        image = Image.fromarray(squares[number]).resize(inner, Image.Resampling.BICUBIC)
        framed[number] = 0 if rng.random() < 2 / 3 else 255
        framed[number, top : size - bottom, left : size - right] = np.asarray(image)
    return framed


def _fit_gaussian(features: np.ndarray) -> Gaussian:
    mean, scale = features.mean(0), features.std(0) + 1e-6
    # At most half of the dimensions: a residual of one or two dimensions varies too much to have a limit.
    count = min(_DIRECTIONS, len(features) // 4, features.shape[1] // 2)
    # Randomised SVD (Halko, Martinsson, Tropp, SIAM Review 2011): a last stage may have 4,096 features.
    pca = PCA(count, svd_solver="randomized", random_state=0).fit((features - mean) / scale)
    parts = (mean, scale, pca.components_, pca.explained_variance_ + 1e-9)
    return Gaussian(*(np.asarray(part, dtype=np.float32) for part in parts))


def _limit(distances: np.ndarray) -> float:
    count = len(distances)
    rank = min(int(np.ceil((1 - _REFUSED) * (count + 1))), count)
    logs = np.log(distances)
    reach = students.ppf(1 - _REFUSED / 2, count - 1) * np.sqrt(1 + 1 / count)
    predicted = logs.mean() + reach * logs.std(ddof=1)
    return float(max(np.sort(distances)[rank - 1], np.exp(predicted)) * _MARGIN)
