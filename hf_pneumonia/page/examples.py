"""Films to try the page with: simulated ones, and those that the model brings. They stay in memory."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from hf_pneumonia.data.phantom import simulate_patient
from hf_pneumonia.errors import UnreadableFilm
from hf_pneumonia.page.data_uri import thumbnail_uri

logger = logging.getLogger(__name__)

# Two pairs of the simulated data set's test split (`phantom_folder`): no network trained on it has met them.
_PATIENTS, _SEED = (1, 2, 11, 12), 0

_THUMBNAIL = 160  # pixels on a side: sharp at the 80 that a thumbnail is wide, on a phone's screen too

SIMULATED = "This film is simulated. A model that was trained on films of patients has never seen such a one."


@dataclass(frozen=True)
class Example:
    """A film, and what the page says under its thumbnail and with its answer."""

    film: Image.Image  # of mode 'L'
    caption: str
    note: str


def simulated_examples() -> list[Example]:
    """Four simulated films, of two patients in health and two with pneumonia, the same ones each time."""
    films = [simulate_patient(patient, _SEED)[0] for patient in _PATIENTS]
    films.sort(key=lambda film: film.label)
    return [
        Example(Image.fromarray(film.image), f"Simulated, {film.label.lower()}", SIMULATED) for film in films
    ]


def real_examples(paths: Iterable[Path], read: Callable[[str], Image.Image]) -> list[Example]:
    """The films that a model brings, numbered: their names may be patients'. What can't be read is warned of
    and left out.

    Args:
        paths: of the files.
        read: `read_film`, or the page's own decoder.
    """
    examples = []
    for path in paths:
        try:
            film = read(str(path))
        except UnreadableFilm as error:
            logger.warning("an example of the model can't be read: %s", error)
            continue
        caption = f"Example {len(examples) + 1}"
        examples.append(Example(film, caption, f"{caption} of the model's own."))
    return examples


def gallery_html(examples: list[Example]) -> str:
    """A button with a thumbnail for each example; what a press of it means is the tab's business."""
    return '<div class="gallery">' + "".join(map(_button, range(len(examples)), examples)) + "</div>"


def _button(number: int, example: Example) -> str:
    caption = escape(example.caption)
    return (
        f'<button type="button" data-example="{number}" title="{escape(example.note)}">'
        f'<img src="{thumbnail_uri(example.film, _THUMBNAIL)}" alt=""><span>{caption}</span></button>'
    )
