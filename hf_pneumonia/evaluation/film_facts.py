"""Films as they are found -> the numbers that a person should know before a network is trained on them."""

import itertools
from dataclasses import dataclass

import numpy as np

from hf_pneumonia.data.filmset import FilmSet
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.data.overlays import COLOUR_SHARE, TEXT_ROWS, TEXT_SIDE

# What films are told apart by here: the classes, and the films of COVID-19 where they are kept apart.
KINDS = (*LABELS, "COVID-19")

_PIXELS = 1 << 22  # that are in memory at a time


@dataclass(frozen=True)
class FilmFacts:
    """What was measured on the k films that are used, in the order of the store.

    Attributes:
        row: (k,) int64, row of the store.
        kind: (k,) int64, index into KINDS.
        split, source, patient: (k,) str.
        width, height: (k,) int, pixels of the original file.
        text, colour: (k,) bool, whether burned-in text, and colour, was found.
        brightness: (k,) float64, mean gray of the film, 0 (black) to 255 (white).
        levels: (len(KINDS), 256) int64, pixels of each gray level in all films of a kind.
    """

    row: np.ndarray
    kind: np.ndarray
    split: np.ndarray
    source: np.ndarray
    patient: np.ndarray
    width: np.ndarray
    height: np.ndarray
    text: np.ndarray
    colour: np.ndarray
    brightness: np.ndarray
    levels: np.ndarray

    @property
    def aspect(self) -> np.ndarray:
        """(k,) width / height."""
        return self.width / self.height

    @property
    def searched(self) -> np.ndarray:
        """(k,) bool, whether a film is large enough to be searched for text."""
        return np.minimum(self.width, self.height) >= TEXT_SIDE

    @property
    def kinds(self) -> list[int]:
        """Indices into KINDS of which there are films."""
        return np.unique(self.kind).tolist()

    @property
    def splits(self) -> list[str]:
        """Splits of which there are films, train first."""
        order = ["train", "validation", "test", "covid"]
        return sorted(set(self.split.tolist()), key=order.index)

    def count(self, **where: object) -> int:
        """Films of which all of the given attributes have the given value."""
        chosen = np.ones(len(self.row), dtype=bool)
        for name, value in where.items():
            chosen &= getattr(self, name) == value
        return int(chosen.sum())


def measure_films(films: FilmSet) -> FilmFacts:
    """Measure the films that are used: those of a split, which are never unreadable. Memory does not grow
    with their pixels: the store is read in chunks."""
    facts = films.store.facts
    row = np.flatnonzero((films.split != "") & (facts["width"] > 0))
    fact, split = facts[row], films.split[row]
    kind = np.where(split == "covid", len(LABELS), films.label[row])
    brightness, levels = _measure_gray(films, row, kind)
    return FilmFacts(
        row=row,
        kind=kind,
        split=split,
        source=films.source[row],
        patient=films.patient[row],
        width=fact["width"],
        height=fact["height"],
        text=fact["text_rows"] >= TEXT_ROWS,
        colour=fact["colour_share"] >= COLOUR_SHARE,
        brightness=brightness,
        levels=levels,
    )


def _measure_gray(films: FilmSet, row: np.ndarray, kind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`brightness` and `levels` of FilmFacts."""
    brightness = np.zeros(len(row))
    levels = np.zeros((len(KINDS), 256), dtype=np.int64)
    step = max(1, _PIXELS // films.store.size**2)
    for start in range(0, len(row), step):
        chunk = slice(start, start + step)
        pixels = films.store[row[chunk]]
        brightness[chunk] = pixels.mean(axis=(1, 2))
        for index in np.unique(kind[chunk]):
            levels[index] += np.bincount(pixels[kind[chunk] == index].reshape(-1), minlength=256)
    return brightness, levels


def films_of_patients(facts: FilmFacts, kind: int) -> np.ndarray:
    """(p,) films of this kind that each patient who has any has."""
    return np.unique(facts.patient[facts.kind == kind].astype(str), return_counts=True)[1]


def choose_films(facts: FilmFacts, kind: int, count: int, among: np.ndarray | bool = True) -> list[int]:
    """Up to `count` films of one kind, as indices into `facts`: random but always the same ones, of every
    split and source in turn as far as there are such. `among`: (k,) bool, the films to choose from."""
    rng = np.random.default_rng(0)
    inside = rng.permutation(np.flatnonzero((facts.kind == kind) & among))
    places = np.array([f"{facts.split[index]}\0{facts.source[index]}" for index in inside])
    names = sorted(set(places.tolist()), key=lambda place: (facts.splits.index(place.split("\0")[0]), place))
    queues = [inside[places == place] for place in names]
    turns = max(map(len, queues), default=0)
    dealt = (int(queue[turn]) for turn in range(turns) for queue in queues if turn < len(queue))
    return list(itertools.islice(dealt, count))
