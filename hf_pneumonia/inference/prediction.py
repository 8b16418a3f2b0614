"""What a model says of a film, and how it is asked."""

import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from hf_pneumonia.data.cores import available_cores, one_core_each, work_ahead
from hf_pneumonia.data.film import squash
from hf_pneumonia.data.forms import is_one_film, read_any_film
from hf_pneumonia.errors import UnreadableFilm, UsageError
from hf_pneumonia.evaluation.thresholds import moved_band
from hf_pneumonia.inference.gate import image_problem

# What a film is called.
PNEUMONIA, NORMAL, UNCERTAIN, NOT_A_FILM = "pneumonia", "normal", "uncertain", "not a chest film"
DECISIONS = (PNEUMONIA, NORMAL, UNCERTAIN, NOT_A_FILM)

# What two threads may read at a time, one film given twice included: not so open files and Pillow images.
_THREAD_SAFE = (str, os.PathLike, bytes, np.ndarray)


@dataclass(frozen=True)
class Prediction:
    """What a model says of one film.

    Attributes:
        label: one of LABELS: PNEUMONIA from the threshold on.
        probability: of pneumonia, 0 to 1, calibrated where the model is. Of what is no chest film it means
            nothing, as label and heat map do: ask for the decision first.
        threshold: the model's operating point.
        decision: one of DECISIONS: "pneumonia" or "normal"; "uncertain" in the band around the threshold,
            where a person should read the film; "not a chest film" where the gate refuses it.
        reason: why it is refused; "" otherwise.
        heat_map: (h, w) float32 of the network's input size, 0 to 1, where it saw pneumonia; None where none
            was asked for.
    """

    label: str
    probability: float
    threshold: float
    decision: str
    reason: str = ""
    heat_map: np.ndarray | None = field(default=None, repr=False, compare=False)


class FilmClassifier(ABC):
    """Films -> predictions, by way of squares at a network's size. Several threads may ask it at a time.

    Attributes:
        name: the last folder, or the repository's id.
        image_size: side of the network's input in pixels.
        threshold: probability from which a film is called pneumonia, chosen on validation; 0.5 where the
            model states none.
        operating_point: all that the model states of it; empty where it states nothing.
        band: lowest and highest probability that is left open around the threshold; None where the model
            states none.
        trade_off: the points of validation's ROC curve, as `evaluation.trade_off.trade_off` gives them; empty
            where the model states none.
        notes: what a reader of its answers should know, a line each.
    """

    name: str
    image_size: int
    threshold: float
    operating_point: dict
    band: tuple[float, float] | None
    trade_off: dict[str, list[float]]
    notes: list[str]

    def __call__(
        self, film: Any, heat_map: bool = False, batch_size: int = 16
    ) -> Prediction | list[Prediction]:
        """What the model says of one film, or of several.

        Args:
            film: one film in any form that `read_any_film` takes (path, bytes, file, Pillow image, array,
                pydicom Dataset), or any number of them: list, tuple, generator ...
            heat_map: whether to say where the network saw it, too.
            batch_size: films of several that a core puts through the network at a time.

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
            return self.predict_squares(square[None], heat_map, [problem])[0]
        if hasattr(film, "__len__"):
            # A batch is one core's: of a few films each core has some.
            batch_size = max(1, min(batch_size, -(-len(film) // available_cores())))

        def predict(batch: list[Callable[[], tuple[np.ndarray, str]]]) -> list[Prediction]:
            squares, problems = zip(*(task() for task in batch), strict=True)
            return self.predict_squares(np.stack(squares), heat_map, problems)

        tasks, threads = self._tasks(film), available_cores()
        batches = iter(lambda: list(itertools.islice(tasks, batch_size)), [])
        with one_core_each():
            return list(itertools.chain.from_iterable(work_ahead(predict, batches, threads, 2 * threads)))

    def prepare(self, film: Image.Image) -> tuple[np.ndarray, str]:
        """What `predict_squares` takes of a film: its square at the network's size, and `image_problem`."""
        square = squash(film, self.image_size)
        return square, image_problem(film, square)

    @abstractmethod
    def predict_squares(
        self, squares: np.ndarray, heat_map: bool = False, problems: Sequence[str] | None = None
    ) -> list[Prediction]:
        """What the model says of films that are brought to its input size by `squash`.

        Args:
            squares: (b, image_size, image_size) uint8, from 1 film.
            heat_map: whether to say where the network saw it, too.
            problems: why each is no chest film, where that is known already; "" where nothing is.

        Raises:
            UsageError: as `__call__`.
        """

    def makes_heat_maps(self) -> bool:
        """Whether the network can say where it looked: not all kinds can, and only a try tells."""
        black = np.zeros((1, self.image_size, self.image_size), np.uint8)
        try:
            self.predict_squares(black, heat_map=True)
        except UsageError:
            return False
        return True

    def decide(self, probability: float, threshold: float | None = None) -> str:
        """What a chest film of this probability is called: "pneumonia", "normal" or "uncertain".

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
