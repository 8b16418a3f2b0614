"""A network and its films -> the gate beside it, and how many chest films it refuses."""

import logging

import numpy as np
import torch
from PIL import Image
from scipy.stats import t as students
from sklearn.decomposition import PCA
from torch import nn

from hf_pneumonia.data.filmset import FilmSet
from hf_pneumonia.evaluation.intervals import wilson
from hf_pneumonia.inference.gate import Gate, Spread, distances, image_problem, layout_numbers
from hf_pneumonia.modeling.augment import Augment
from hf_pneumonia.modeling.features import stage_statistics

logger = logging.getLogger(__name__)

# Films that the statistics are taken of, drawn from each split where it has more: enough for 64 directions.
_FILMS = 1024

# Films of one hospital are alike in exposure, and those of another are chest films too: each counts as it is,
# and once varied. Turned and moved ones pass anyway.
_VARIED = {"exposure": 0.3, "blur": 0.7, "noise": 0.03}

# Widest frame that a varied film is put into, as a share of the side: exports and screenshots have some.
_FRAME = 0.08

_DIRECTIONS = 64

# Share of validation's films, as they are and varied, above each limit, before the margin.
_REFUSED = 0.0025

# Films of another scanner lie further out than validation's.
_MARGIN = 1.1


def make_gate(model: nn.Module, films: FilmSet, batch_size: int) -> Gate | None:
    """Fit a gate on the training films, its limits on validation's.

    Args:
        model: the network as it is saved, on any device.
        films: the splits; their films at the network's input size.
        batch_size: films per forward pass.

    Returns:
        None where the network lists no stages that can be watched, or there are fewer than 32 films to train
        and 8 to validate.
    """
    train, validation = (_some(films.rows(split)) for split in ("train", "validation"))
    if len(train) < 32 or len(validation) < 8 or not getattr(model.timm_model, "feature_info", None):
        return None
    try:
        stage_statistics(model, films.store[train[:1]], 1)
    # A few architectures list stages that are no modules, or give no maps; the training is done, and is kept.
    except (AttributeError, TypeError, IndexError, ValueError, RuntimeError) as error:
        kind = type(model.timm_model).__name__
        logger.warning("no gate: the stages of %s can't be watched (%s)", kind, error)
        return None

    def seen(rows: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        plain = films.store[rows]
        both = np.concatenate([plain, _framed(_varied(plain))])
        return both, stage_statistics(model, both, batch_size)

    return fit_gate(seen(train), seen(validation))


def fit_gate(
    train: tuple[np.ndarray, list[np.ndarray]], validation: tuple[np.ndarray, list[np.ndarray]]
) -> Gate:
    """Take the statistics of training films, and limits of validation's, which the network was not taught.

    Both as they are given: `make_gate` gives each film once more, varied.

    A limit is the conformal quantile of validation's films at `1 - _REFUSED`, or what Student's distribution
    of their logarithms foretells for the next film where that is more (it is where they are few), times
    `_MARGIN`.

    Args:
        train, validation: squares (n, s, s) uint8, and the statistics of `watch_stages`.
    """
    layout, *stages = map(_spread, [layout_numbers(train[0]), *train[1]])
    found = distances(layout, tuple(stages), *validation)
    return Gate(layout, tuple(stages), np.array([_limit(column) for column in found.T]))


def check_gate(gate: Gate, model: nn.Module, films: FilmSet, batch_size: int) -> dict:
    """Count the chest films that a gate refuses. benchmarks/ood.py asks it about other pictures.

    Args:
        gate: of this model.
        model, films, batch_size: as for `make_gate`.

    Returns:
        `films`: by split, validation (which the limits were chosen on) and test, how many `films` were
        `refused`, and their `share` with Wilson's interval.
    """
    found = {}
    for split in ("validation", "test"):
        rows = films.rows(split)
        squares, hues = films.store[rows], films.store.facts["hues"][rows]
        problems = [bool(_problem(*one)) for one in zip(squares, hues, strict=True)]
        scores = gate.scores(squares, stage_statistics(model, squares, batch_size))
        found[split] = _share(np.array(problems, bool) | (scores > 1))
    return {"films": found}


def _some(rows: np.ndarray) -> np.ndarray:
    return np.sort(np.random.default_rng(0).permutation(rows)[:_FILMS])


def _varied(squares: np.ndarray) -> np.ndarray:
    """The same films in other exposures, blurred and noisy, by draws of its own: no other draw is changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = torch.from_numpy(squares).split(256)
        varied = torch.cat([Augment(**_VARIED)(part) for part in parts])
    return (varied * 255).round().to(torch.uint8).numpy()


def _framed(squares: np.ndarray) -> np.ndarray:
    """The same films, every second one in a frame, mostly black, of a width for each side of it."""
    rng, size = np.random.default_rng(0), squares.shape[1]
    framed = squares.copy()
    for number in np.flatnonzero(rng.random(len(squares)) < 0.5):
        top, bottom, left, right = (rng.uniform(0, _FRAME, 4) * size).astype(int)
        inner = (size - left - right, size - top - bottom)
        film = Image.fromarray(squares[number]).resize(inner, Image.Resampling.BICUBIC)
        framed[number] = 0 if rng.random() < 2 / 3 else 255
        framed[number, top : size - bottom, left : size - right] = np.asarray(film)
    return framed


def _problem(square: np.ndarray, hues: float) -> str:
    picture = Image.fromarray(square)
    picture.info["hues"] = float(hues)
    return image_problem(picture)


def _share(refused: np.ndarray) -> dict:
    count = int(refused.sum())
    share = {"value": count / len(refused), "wilson95": wilson(count, len(refused))} if len(refused) else None
    return {"films": len(refused), "refused": count, "share": share}


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
