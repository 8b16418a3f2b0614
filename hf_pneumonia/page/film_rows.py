"""Films -> rows of answers, batch by batch. Knows nothing of how they are shown."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import monotonic

from PIL import Image

from hf_pneumonia.errors import UnreadableFilm
from hf_pneumonia.inference.inputs import FilmReader, Source, why_not
from hf_pneumonia.inference.prediction import (
    DECISIONS,
    NORMAL,
    NOT_A_FILM,
    PNEUMONIA,
    FilmClassifier,
    Prediction,
)
from hf_pneumonia.page.data_uri import thumbnail_uri
from hf_pneumonia.page.limits import MANY_FILMS_SECONDS
from hf_pneumonia.page.wording import UNREADABLE

BATCH = 32

TOO_LONG = "not read: the batch took too long; send fewer films at a time"

_THUMBNAIL = 64  # pixels on a side


@dataclass(frozen=True, slots=True)
class FilmRow:
    """One film of many.

    Attributes:
        file: its name, for people.
        decision: one of `prediction.DECISIONS`, or UNREADABLE.
        label: one of LABELS; None for what is not a chest film, or could not be read.
        probability: of pneumonia; None where there is no label.
        threshold: from which it is called pneumonia.
        reason: why it is refused, or could not be read; "" otherwise.
        thumbnail: data URI of a small JPEG; "" where it could not be read, or none was asked for.
    """

    file: str
    decision: str
    label: str | None
    probability: float | None
    threshold: float
    reason: str
    thumbnail: str = ""


def score_films(
    classifier: FilmClassifier,
    read: Callable[[str | bytes], Image.Image],
    films: list[Source],
    thumbnails: bool = True,
) -> Iterator[list[FilmRow]]:
    """Rows of the films in their order, BATCH at a time. At most one full-size film is in memory. Films that
    are not read after MANY_FILMS_SECONDS are UNREADABLE, and TOO_LONG their reason.

    Args:
        classifier: asked once per batch.
        read: as `data.film.read_film`.
        films: from `uploads.films_of`.
        thumbnails: whether rows have one.
    """
    end = monotonic() + MANY_FILMS_SECONDS
    with FilmReader() as reader:
        for start in range(0, len(films), BATCH):
            yield _score_batch(classifier, read, reader, films[start : start + BATCH], thumbnails, end)


def count_rows(rows: Iterable[FilmRow]) -> dict[str, int]:
    """Number of films by decision; each decision is there, with 0 if need be."""
    counts = Counter(row.decision for row in rows)
    return {decision: counts[decision] for decision in (*DECISIONS, UNREADABLE)}


def confidence(row: FilmRow | Prediction) -> float | None:
    """Calibrated probability of the class that is named; None where none is."""
    return {PNEUMONIA: row.probability, NORMAL: 1 - (row.probability or 0)}.get(row.decision)


def row_of(file: str, prediction: Prediction, thumbnail: str = "") -> FilmRow:
    """The row of a film that could be read. What is no chest film has no probability."""
    refused = prediction.decision == NOT_A_FILM
    return FilmRow(
        file,
        prediction.decision,
        None if refused else prediction.label,
        None if refused else prediction.probability,
        prediction.threshold,
        prediction.reason,
        thumbnail,
    )


def _score_batch(
    classifier: FilmClassifier,
    read: Callable[[str | bytes], Image.Image],
    reader: FilmReader,
    films: list[Source],
    thumbnails: bool,
    end: float,
) -> list[FilmRow]:
    problems: dict[int, str] = {}
    pictures: dict[int, str] = {}

    def images() -> Iterator[Image.Image]:
        for number, film in enumerate(films):
            if monotonic() > end:
                problems[number] = TOO_LONG
                continue
            try:
                image = read(reader.read(film))
            except UnreadableFilm as error:
                problems[number] = str(error)
            except OSError as error:
                problems[number] = why_not(error)
            else:
                pictures[number] = thumbnail_uri(image, _THUMBNAIL) if thumbnails else ""
                yield image

    # By a generator: the classifier keeps of each image no more than the network takes.
    predictions = iter(classifier(images(), batch_size=BATCH))
    return [
        FilmRow(film.name, UNREADABLE, None, None, classifier.threshold, problems[number])
        if number in problems
        else row_of(film.name, next(predictions), pictures[number])
        for number, film in enumerate(films)
    ]
