"""Prediction, and the interface of a classifier: films in any form -> predictions."""

import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from hf_pneumonia.data.cores import available_cores, one_core_each, work_ahead
from hf_pneumonia.data.film import is_one_film, read_any_film, squash
from hf_pneumonia.errors import UnreadableFilm, UsageError
from hf_pneumonia.evaluation.thresholds import moved_band
from hf_pneumonia.inference.gate import image_problem

# What a film is called.
PNEUMONIA, NORMAL, UNCERTAIN = "pneumonia", "normal", "uncertain"
# Recognisably something else (a photograph, a CT, blank, inverted); and only unlike what it was trained on.
NOT_A_FILM, NOT_ASSESSED = "not a chest film", "not assessed"
REFUSED = (NOT_A_FILM, NOT_ASSESSED)
DECISIONS = (PNEUMONIA, NORMAL, UNCERTAIN, *REFUSED)

UNLIKE = "unlike the X-rays that this model was trained on"

# What two threads may read at a time, one film given twice included: not so open files and Pillow images.
_THREAD_SAFE = (str, os.PathLike, bytes, np.ndarray)


@dataclass(frozen=True)
class Prediction:
    """What a model says of one film.

    Attributes:
        label: one of LABELS: PNEUMONIA from the threshold on.
        probability: of pneumonia, 0 to 1, calibrated where the model is. Like label and heat map it means
            little for an image that is refused: look at the decision first.
        threshold: the model's operating point.
        decision: one of DECISIONS: "pneumonia" or "normal"; "uncertain" in the band around the threshold,
            where a person should read the film; "not a chest film" or "not assessed" where it is refused.
        reason: why it is refused, or would be without `force`; "" otherwise.
        heat_map: (h, w) float32 of the network's input size, 0 to 1, where it saw pneumonia; None where none
            was asked for.
    """

    label: str
    probability: float
    threshold: float
    decision: str
    reason: str = ""
    heat_map: np.ndarray | None = field(default=None, repr=False, compare=False)


def refusal(reason: str) -> str:
    """Return the decision for an image that is refused for this reason."""
    return NOT_ASSESSED if reason == UNLIKE else NOT_A_FILM


class FilmClassifier(ABC):
    """Films -> predictions, by way of squares at a network's size. Several threads may ask it at a time."""

    name: str  # the last folder, or the repository's id
    image_size: int  # side of the network's input in pixels
    threshold: float  # a film is called pneumonia from this probability on; 0.5 where the model states none
    operating_point: dict  # all that the model states of it; empty where it states nothing
    band: tuple[float, float] | None  # of uncertain probabilities; None where the model states none
    trade_off: dict[str, list[float]]  # of `evaluation.thresholds.trade_off`; empty where it states none
    notes: list[str]  # what a reader of its answers should know, a line each

    def __call__(
        self, film: Any, heat_map: bool = False, batch_size: int = 16, force: bool = False
    ) -> Prediction | list[Prediction]:
        """Return what the model says of one film, or of several.

        Args:
            film: one film in any form that `read_any_film` takes (path, bytes, file, Pillow image, array,
                pydicom Dataset), or any number of them: list, tuple, generator ...
            heat_map: whether to say where the network saw it, too.
            batch_size: films of several that a core puts through the network at a time.
            force: decide by the probability also where an image is refused; the reason stays.

        Returns:
            A Prediction, or a list of them in the order of the films.

        Raises:
            UnreadableFilm: a film can't be read; of several, the message says which.
            UsageError: batch_size is no number from 1, heat maps of this kind of network can't be made, or
                its answer is no number.
            TypeError: this is no film.
            OSError: a file can't be read for another reason than its content.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UsageError(f"batch_size expects a number from 1, got {batch_size!r}")
        if is_one_film(film):
            square, problem = self.prepare(read_any_film(film))
            return self._answers(square[None], heat_map, [problem], force)[0]
        if hasattr(film, "__len__"):
            # A batch is one core's: of a few films each core has some.
            batch_size = max(1, min(batch_size, -(-len(film) // available_cores())))

        def predict(batch: list[Callable[[], tuple[np.ndarray, str]]]) -> list[Prediction]:
            squares, problems = zip(*(task() for task in batch), strict=True)
            return self._answers(np.stack(squares), heat_map, problems, force)

        tasks, threads = self._tasks(film), available_cores()
        batches = iter(lambda: list(itertools.islice(tasks, batch_size)), [])
        with one_core_each():
            return list(itertools.chain.from_iterable(work_ahead(predict, batches, threads, 2 * threads)))

    def prepare(self, film: Image.Image) -> tuple[np.ndarray, str]:
        """Return a film's square at the network's size, and `image_problem`: what `predict_squares` takes."""
        square = squash(film, self.image_size)
        return square, image_problem(film, square)

    @abstractmethod
    def predict_squares(
        self, squares: np.ndarray, heat_map: bool = False, problems: Sequence[str] | None = None
    ) -> list[Prediction]:
        """Return what the model says of films that are brought to its input size by `squash`.

        Args:
            squares: (b, image_size, image_size) uint8, from 1 film.
            heat_map: whether to say where the network saw it, too.
            problems: why each is no chest film, where that is known already; "" where nothing is.
        """

    def _answers(self, squares: np.ndarray, heat_map: bool, problems: Sequence[str], force: bool) -> list:
        found = self.predict_squares(squares, heat_map, problems)
        return [replace(one, decision=self.decide(one.probability)) for one in found] if force else found

    def makes_heat_maps(self) -> bool:
        """Whether the network can say where it looked: not all kinds can, and only a try tells."""
        try:
            self.predict_squares(np.zeros((1, self.image_size, self.image_size), np.uint8), heat_map=True)
        except UsageError:
            return False
        return True

    def decide(self, probability: float, threshold: float | None = None) -> str:
        """Return what a chest film of this probability is called: "pneumonia", "normal" or "uncertain".

        Args:
            probability: of pneumonia, 0 to 1.
            threshold: another operating point than the model's; the band moves along, as wide in the logit.
        """
        band = self.band
        if threshold is None:
            threshold = self.threshold
        elif band is not None:
            band = moved_band(band, self.threshold, threshold)
        if band is not None and band[0] <= probability <= band[1]:
            return UNCERTAIN
        return PNEUMONIA if probability >= threshold else NORMAL

    def _tasks(self, films: Iterable) -> Iterator[Callable[[], tuple[np.ndarray, str]]]:
        """For each of several films, in order, what makes of it what `prepare` gives, in any thread."""

        def prepare(number: int, film: Any) -> tuple[np.ndarray, str]:
            try:
                return self.prepare(read_any_film(film))
            except UnreadableFilm as error:
                name = f" ({os.path.basename(film)})" if isinstance(film, str | os.PathLike) else ""
                raise UnreadableFilm(f"films[{number}]{name}: {error}") from error
            except TypeError as error:
                raise TypeError(f"films[{number}]: {error}") from error

        for number, film in enumerate(films):
            if isinstance(film, _THREAD_SAFE):
                yield partial(prepare, number, film)
            else:
                done = prepare(number, film)
                yield lambda done=done: done
