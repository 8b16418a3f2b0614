"""The tab "Many images": files and zip files -> rows of answers -> a table that sorts, and its CSV file."""

import base64
import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from time import monotonic

import gradio as gr
from PIL import Image

from hf_pneumonia.errors import UnreadableImage, UsageError
from hf_pneumonia.inference.classifier import (
    DECISIONS,
    NORMAL,
    PNEUMONIA,
    REFUSED,
    PneumoniaClassifier,
    Prediction,
)
from hf_pneumonia.inference.inputs import ImageReader, Source, why_not
from hf_pneumonia.page.answer import UNREADABLE, WORDS, percent, shape, thumbnail_uri
from hf_pneumonia.page.limits import (
    AT_A_TIME,
    MANY_IMAGES_SECONDS,
    MAX_FILE_BYTES,
    MAX_IMAGES,
    MAX_UNPACKED_BYTES,
)
from hf_pneumonia.page.uploads import errors_told, images_of, uploaded

BATCH = 32

COLUMNS = ("file", "decision", "label", "probability", "threshold", "reason")

# Jobs of many images at a time, of the page and of the API together: each holds one batch of images.
IN_TURN = {"concurrency_limit": AT_A_TIME, "concurrency_id": "many images"}

TOO_LONG = "not read: the batch took too long; send fewer images at a time"

_LIMITS = (
    f"Up to {MAX_IMAGES} images, as files or in zip files: {MAX_FILE_BYTES >> 20} MB each, "
    f"{MAX_UNPACKED_BYTES >> 20} MB in all once unpacked. "
    "The table stays in this tab of your browser; nothing is kept here."
)
_THUMBNAIL = 64  # pixels on a side

# What a spreadsheet takes for the beginning of a formula, in any of the widths that it reads alike.
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One image of many.

    Attributes:
        file: its name, for people.
        decision: one of `prediction.DECISIONS`, or UNREADABLE.
        label: one of LABELS; None for what is refused, or could not be read.
        probability: of pneumonia; None where there is no label.
        threshold: from which it is called pneumonia.
        reason: why it is refused, would be without `force`, or could not be read; "" otherwise.
        thumbnail: data URI of a small JPEG; "" where it could not be read, or none was asked for.
    """

    file: str
    decision: str
    label: str | None
    probability: float | None
    threshold: float
    reason: str
    thumbnail: str = ""


def many_images_tab(classifier: PneumoniaClassifier, read: Callable[[str | bytes], Image.Image]) -> None:
    """Add the tab's parts to the open gr.Blocks or gr.Tab. Arguments as `build_page`."""

    # A generator: when the tab is closed, Gradio asks for no further batch.
    def read_them(
        files: list[dict] | None,
        force: bool,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[str]:
        with errors_told():
            try:
                images = images_of(map(uploaded, files or []))
            except UsageError as error:
                yield _notice(f"These files are not read: {error}.")
                return
            if not images:
                yield _notice("Choose images first.")
                return
            rows: list[ImageRow] = []
            progress((0, len(images)), unit="films")
            try:
                for batch in score_images(classifier, read, images, force=force):
                    rows += batch
                    progress((len(rows), len(images)), unit="films")
                    yield gr.skip()
            except UsageError as error:
                yield _notice(f"The model gave no answer: {error}.")
                return
            yield table(rows)

    gr.Markdown(_LIMITS)
    files = gr.File(label="Images, or zip files of them", file_count="multiple", height=180)
    force = gr.Checkbox(label="Answer also for images that are refused, with a warning")
    button = gr.Button("Read them", variant="primary")
    answers = gr.HTML(
        css_template=(_HERE / "many_images.css").read_text(encoding="utf-8"),
        apply_default_css=False,
        js_on_load=(_HERE / "many_images.js").read_text(encoding="utf-8"),
        min_height=80,
    )
    # Not preprocessed: Gradio would leave an empty file per image behind, and lose the images' own names.
    reading = button.click(
        read_them, [files, force], answers, preprocess=False, api_visibility="private", **IN_TURN
    )
    # With other files the table goes, and so does a table that is still being made.
    hidden = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    files.change(None, None, answers, js="() => ''", cancels=reading, **hidden)


def score_images(
    classifier: PneumoniaClassifier,
    read: Callable[[str | bytes], Image.Image],
    images: list[Source],
    thumbnails: bool = True,
    force: bool = False,
) -> Iterator[list[ImageRow]]:
    """Yield rows of the images in their order, BATCH at a time. At most one full-size image is in memory.

    Images that are not read after MANY_IMAGES_SECONDS are UNREADABLE for the reason TOO_LONG.

    Args:
        classifier: called once per batch.
        read: as `data.image.read_image`.
        images: from `uploads.images_of`.
        thumbnails: whether rows have one.
        force: answer also for refused images.
    """
    end = monotonic() + MANY_IMAGES_SECONDS
    with ImageReader() as reader:

        def decoded(batch: list[Source], problems: dict[int, str], pictures: dict[int, str]):
            for number, source in enumerate(batch):
                if monotonic() > end:
                    problems[number] = TOO_LONG
                    continue
                try:
                    image = read(reader.read(source))
                except UnreadableImage as error:
                    problems[number] = str(error)
                except OSError as error:
                    problems[number] = why_not(error)
                else:
                    pictures[number] = thumbnail_uri(image, _THUMBNAIL) if thumbnails else ""
                    yield image

        for start in range(0, len(images), BATCH):
            batch, problems, pictures = images[start : start + BATCH], {}, {}
            # A generator: the classifier keeps of each image no more than the network takes.
            predictions = iter(classifier(decoded(batch, problems, pictures), batch_size=BATCH, force=force))
            yield [
                ImageRow(image.name, UNREADABLE, None, None, classifier.threshold, problems[number])
                if number in problems
                else row_of(image.name, next(predictions), pictures[number])
                for number, image in enumerate(batch)
            ]


def row_of(file: str, prediction: Prediction, thumbnail: str = "") -> ImageRow:
    """Return the row of an image that could be read. A refused one has no probability."""
    refused = prediction.decision in REFUSED
    label, probability = (None, None) if refused else (prediction.label, prediction.probability)
    return ImageRow(
        file, prediction.decision, label, probability, prediction.threshold, prediction.reason, thumbnail
    )


def confidence(row: ImageRow) -> float | None:
    """Return the calibrated probability of the class that is named; None where none is."""
    return {PNEUMONIA: row.probability, NORMAL: 1 - (row.probability or 0)}.get(row.decision)


def count_rows(rows: Iterable[ImageRow]) -> dict[str, int]:
    """Count images by decision, 0 included."""
    counts = Counter(row.decision for row in rows)
    return {decision: counts[decision] for decision in (*DECISIONS, UNREADABLE)}


def summary(rows: list[ImageRow]) -> str:
    """Return the line of counts; both classes are named, other decisions only where they occur."""
    counts = count_rows(rows).items()
    named = [f"{count} {decision}" for decision, count in counts if count or decision in (PNEUMONIA, NORMAL)]
    return f"{len(rows)} image{'s' if len(rows) != 1 else ''}: {', '.join(named)}."


def csv_text(rows: list[ImageRow]) -> str:
    """Return a header and a line per image, probabilities in full.

    A name or reason that a spreadsheet would take for a formula has an apostrophe before it, which tells the
    spreadsheet that it is text.
    """
    file = io.StringIO()
    writer = csv.writer(file)  # its lines end as RFC 4180 has it, so that a lone "\r" in a cell is quoted too
    writer.writerow(COLUMNS)
    for row in rows:
        cells = [getattr(row, column) for column in COLUMNS]
        # Numbers are not negative here: only text begins as a formula does.
        writer.writerow(f"'{cell}" if str(cell).startswith(_FORMULA) else cell for cell in cells)
    return file.getvalue()


def table(rows: list[ImageRow]) -> str:
    """Return HTML of the counts, a link that holds the CSV file, and a line per image. Names are escaped."""
    link = (
        '<a class="csv" download="images.csv" href="data:text/csv;charset=utf-8;base64,'
        f'{base64.b64encode(csv_text(rows).encode()).decode()}">Download as CSV</a>'
    )
    heads = "".join(
        f'<th scope="col" aria-sort="none" data-kind="{kind}" data-first="{first}">'
        f'<button type="button">{head} <span class="arrow" aria-hidden="true"></span></button></th>'
        for head, kind, first in (
            ("Image", "text", "ascending"),
            ("Decision", "number", "ascending"),
            ("Probability of pneumonia", "number", "descending"),
        )
    )
    return (
        f'<div class="images"><div class="summary"><p role="status">{escape(summary(rows))}</p>{link}</div>'
        '<div class="frame" role="region" aria-label="Images" tabindex="0"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(map(_line, rows))}</tbody></table></div></div>"
    )


def _line(row: ImageRow) -> str:
    picture = f'<img src="{row.thumbnail}" alt="" width="48" height="48">' if row.thumbnail else ""
    reason = f'<span class="reason">{escape(row.reason)}</span>' if row.reason else ""
    probability, shown = "", ""
    if row.probability is not None:
        probability, shown = row.probability, escape(percent(row.probability))
    return (
        f'<tr><th scope="row" data-key="{escape(row.file)}"><div class="image">'
        f'<div class="picture">{picture}</div>'
        f"<div>{escape(row.file)}</div></div></th>"
        f'<td data-key="{list(WORDS).index(row.decision)}">'
        f'<span class="decision {row.decision.replace(" ", "-")}">'
        f"{shape(row.decision)}&nbsp;{WORDS[row.decision]}</span>{reason}</td>"
        f'<td class="number" data-key="{probability}">{shown}</td></tr>'
    )


def _notice(text: str) -> str:
    return f'<p role="alert">{escape(text)}</p>'
