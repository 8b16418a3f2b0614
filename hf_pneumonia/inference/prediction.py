"""Prediction, and the interface of a classifier: images in any form -> predictions."""

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
from hf_pneumonia.data.images import is_one_image, read_any_image, squash
from hf_pneumonia.errors import UnreadableImage, UsageError
from hf_pneumonia.evaluation.thresholds import moved_band
from hf_pneumonia.inference.ood import image_problem

# What an image is called.
PNEUMONIA, NORMAL, UNCERTAIN = "pneumonia", "normal", "uncertain"
# Recognisably something else (a photograph, a CT, blank, inverted); and only unlike what it was trained on.
NOT_A_CHEST_XRAY, NOT_ASSESSED = "not a chest X-ray", "not assessed"
REFUSED = (NOT_A_CHEST_XRAY, NOT_ASSESSED)
DECISIONS = (PNEUMONIA, NORMAL, UNCERTAIN, *REFUSED)

UNLIKE = "unlike the X-rays that this model was trained on"

# What two threads may read at a time, one image given twice included: not so open files and Pillow images.
_THREAD_SAFE = (str, os.PathLike, bytes, np.ndarray)


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Attributes:
        label: one of LABELS: PNEUMONIA from the threshold on.
        probability: of pneumonia, 0 to 1, calibrated where the model is. Like label and heat map it means
            little for an image that is refused: look at the decision first.
        threshold: the model's operating point.
        decision: one of DECISIONS: "pneumonia" or "normal"; "uncertain" in the band around the threshold,
            where a person should read the image; "not a chest X-ray" or "not assessed" where it is refused.
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
    return NOT_ASSESSED if reason == UNLIKE else NOT_A_CHEST_XRAY


class Classifier(ABC):
    """Images -> predictions, by way of squares at a network's size. Several threads may ask it at a time."""

    name: str  # the last folder, or the repository's id
    image_size: int  # side of the network's input in pixels
    threshold: float  # an image is called pneumonia from this probability on; 0.5 where the model states none
    operating_point: dict  # all that the model states of it; empty where it states nothing
    band: tuple[float, float] | None  # of uncertain probabilities; None where the model states none
    trade_off: dict[str, list[float]]  # of `evaluation.thresholds.trade_off`; empty where it states none
    notes: list[str]  # what a reader of its answers should know, a line each

    def __call__(
        self, image: Any, heat_map: bool = False, batch_size: int = 16, force: bool = False
    ) -> Prediction | list[Prediction]:
        """Return what the model says of one image, or of several.

        Args:
            image: one image in any form that `read_any_image` takes (path, bytes, file, Pillow image, array,
                pydicom Dataset), or any number of them: list, tuple, generator ...
            heat_map: whether to say where the network saw it, too.
            batch_size: images of several that a core puts through the network at a time.
            force: decide by the probability also where an image is refused; the reason stays.

        Returns:
            A Prediction, or a list of them in the order of the images.

        Raises:
            UnreadableImage: an image can't be read; of several, the message says which.
            UsageError: batch_size is no number from 1, heat maps of this kind of network can't be made, or
                its answer is no number.
            TypeError: this is no image.
            OSError: a file can't be read for another reason than its content.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UsageError(f"batch_size expects a number from 1, got {batch_size!r}")
        if is_one_image(image):
            square, problem = self.prepare(read_any_image(image))
            return self._answers(square[None], heat_map, [problem], force)[0]
        if hasattr(image, "__len__"):
            # A batch is one core's: of a few images each core has some.
            batch_size = max(1, min(batch_size, -(-len(image) // available_cores())))

        def predict(batch: list[Callable[[], tuple[np.ndarray, str]]]) -> list[Prediction]:
            squares, problems = zip(*(task() for task in batch), strict=True)
            return self._answers(np.stack(squares), heat_map, problems, force)

        tasks, threads = self._tasks(image), available_cores()
        batches = iter(lambda: list(itertools.islice(tasks, batch_size)), [])
        with one_core_each():
            return list(itertools.chain.from_iterable(work_ahead(predict, batches, threads, 2 * threads)))

    def prepare(self, image: Image.Image) -> tuple[np.ndarray, str]:
        """Return an image's square at the network's size, and `image_problem`: what `predict_squares` takes."""
        square = squash(image, self.image_size)
        return square, image_problem(image, square)

    @abstractmethod
    def predict_squares(
        self, squares: np.ndarray, heat_map: bool = False, problems: Sequence[str] | None = None
    ) -> list[Prediction]:
        """Return what the model says of images that are brought to its input size by `squash`.

        Args:
            squares: (b, image_size, image_size) uint8, from 1 image.
            heat_map: whether to say where the network saw it, too.
            problems: why each is no chest X-ray, where that is known already; "" where nothing is.
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
        """Return what a chest X-ray of this probability is called: "pneumonia", "normal" or "uncertain".

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

    def _tasks(self, images: Iterable) -> Iterator[Callable[[], tuple[np.ndarray, str]]]:
        """For each of several images, in order, what makes of it what `prepare` gives, in any thread."""

        def prepare(number: int, image: Any) -> tuple[np.ndarray, str]:
            try:
                return self.prepare(read_any_image(image))
            except UnreadableImage as error:
                name = f" ({os.path.basename(image)})" if isinstance(image, str | os.PathLike) else ""
                raise UnreadableImage(f"images[{number}]{name}: {error}") from error
            except TypeError as error:
                raise TypeError(f"images[{number}]: {error}") from error

        for number, image in enumerate(images):
            if isinstance(image, _THREAD_SAFE):
                yield partial(prepare, number, image)
            else:
                done = prepare(number, image)
                yield lambda done=done: done
