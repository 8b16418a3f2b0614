"""Images to try the page with: simulated ones, and those that the model brings. They stay in memory."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from hf_pneumonia.data.phantom import simulate_patient
from hf_pneumonia.errors import UnreadableImage, UsageError
from hf_pneumonia.modeling.fetch import EXAMPLES, LARGEST_EXAMPLE, MOST_EXAMPLES, evidence_folder
from hf_pneumonia.page.viewer import thumbnail_uri

logger = logging.getLogger(__name__)

# Two pairs of the simulated data set's test split (`phantom_folder`): no network was trained on them.
_PATIENTS, _SEED = (1, 2, 11, 12), 0

_THUMBNAIL = 160  # pixels on a side: sharp at the 80 that a thumbnail is wide, on a phone's screen too

SIMULATED = (
    "This image is simulated. A model that was trained on images of patients has never seen such a one."
)


@dataclass(frozen=True)
class Example:
    """An image, the caption of its thumbnail, and a note for its answer."""

    image: Image.Image  # of mode 'L'
    caption: str
    note: str


def simulated_examples() -> list[Example]:
    """Return four simulated images, two normal and two with pneumonia, the same ones each time."""
    images = [simulate_patient(patient, _SEED)[0] for patient in _PATIENTS]
    images.sort(key=lambda image: image.label)
    return [
        Example(Image.fromarray(image.image), f"Simulated, {image.label.lower()}", SIMULATED)
        for image in images
    ]


def real_examples(model: str, read: Callable[[str], Image.Image]) -> list[Example]:
    """Return the images of a model's folder `examples`, numbered: their names may be patients'.

    What can't be read is left out with a warning.

    Args:
        model: run folder, or a repository of the Hub (user/name).
        read: `read_image`, or the page's own decoder.
    """
    examples = []
    for path in _example_files(model):
        try:
            image = read(str(path))
        except UnreadableImage as error:
            logger.warning("an example of the model can't be read: %s", error)
            continue
        caption = f"Example {len(examples) + 1}"
        examples.append(Example(image, caption, f"{caption} of the model's own."))
    return examples


def gallery_html(examples: list[Example]) -> str:
    """Return a button with a thumbnail for each example; one_image.js acts on them."""
    buttons = [
        f'<button type="button" data-example="{number}" title="{escape(example.note)}">'
        f'<img src="{thumbnail_uri(example.image, _THUMBNAIL)}" alt="">'
        f"<span>{escape(example.caption)}</span></button>"
        for number, example in enumerate(examples)
    ]
    return f'<div class="gallery">{"".join(buttons)}</div>'


def _example_files(model: str) -> list[Path]:
    """Images by name: MOST_EXAMPLES at most, none above LARGEST_EXAMPLE."""
    try:
        folder = evidence_folder(model) / "examples"
    except UsageError:
        return []  # the tab "About the model" says why
    found = [
        path
        for path in sorted(folder.glob("[!.]*"))
        if path.suffix.lower() in EXAMPLES and path.is_file() and path.stat().st_size <= LARGEST_EXAMPLE
    ]
    return found[:MOST_EXAMPLES]
