"""The tab "Several images": a sortable table of the results for files and zip files, and its CSV file."""

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
from hf_pneumonia.inference.inputs import ImageReader, ImageSource, error_reason
from hf_pneumonia.page.answer import UNREADABLE, WORDS, percent, shape, thumbnail_uri
from hf_pneumonia.page.limits import (
    MANY_IMAGES_SECONDS,
    MAX_CONCURRENT,
    MAX_FILE_BYTES,
    MAX_IMAGES,
    MAX_UNPACKED_BYTES,
)
from hf_pneumonia.page.one_image import AT_ONCE
from hf_pneumonia.page.uploads import errors_shown, images_of, uploaded

BATCH = 32

COLUMNS = ("file", "decision", "label", "probability", "threshold", "reason")

# Limits concurrent batches of the page and the API together: each holds a batch of images in memory.
ONE_QUEUE = {"concurrency_limit": MAX_CONCURRENT, "concurrency_id": "many images"}

TOO_LONG = "not read: the time limit was reached; send fewer images at once"

_LIMITS = (
    f"Up to {MAX_IMAGES} chest X-rays, as files or in zip files: at most {MAX_FILE_BYTES >> 20} MB per file "
    f"and {MAX_UNPACKED_BYTES >> 20} MB in total when unpacked. "
    "The server deletes the images within ten minutes and stores no results."
)
_THUMBNAIL = 64  # pixels on a side

# First characters of a formula in a spreadsheet, full-width ones included.
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class ImageRow:
    """The result for one of several images.

    Attributes:
        file: the image's name, for display.
        decision: one of DECISIONS, or UNREADABLE.
        label: one of LABELS; None if the image is refused or could not be read.
        probability: of pneumonia; None if there is no label.
        threshold: from which the image is called pneumonia.
        reason: why the image is refused, would be without `force`, or could not be read; "" otherwise.
        thumbnail: data URI of a small JPEG; "" if the image could not be read, or without thumbnails.
    """

    file: str
    decision: str
    label: str | None
    probability: float | None
    threshold: float
    reason: str
    thumbnail: str = ""


def many_images_tab(classifier: PneumoniaClassifier, read: Callable[[str | bytes], Image.Image]) -> None:
    """Add the tab's components to the open gr.Blocks or gr.Tab. Arguments as for `build_page`."""

    # A generator, so that Gradio stops between batches when the tab is closed.
    def classify(
        files: list[dict] | None,
        force: bool,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[str]:
        with errors_shown():
            try:
                images = images_of(map(uploaded, files or []))
            except UsageError as error:
                yield _notice(f"Files not accepted: {error}")
                return
            if not images:
                yield _notice("Choose images first.")
                return
            rows: list[ImageRow] = []
            progress((0, len(images)), unit="images")
            try:
                for batch in classify_images(classifier, read, images, force=force):
                    rows += batch
                    progress((len(rows), len(images)), unit="images")
                    yield gr.skip()
            except UsageError as error:
                yield _notice(f"Classification failed: {error}")
                return
            yield table(rows)

    gr.Markdown(_LIMITS)
    files = gr.File(label="Chest X-rays, or zip files of them", file_count="multiple", height=180)
    force = gr.Checkbox(label="Classify refused images too, with a warning")
    button = gr.Button("Classify", variant="primary")
    answers = gr.HTML(
        css_template=(_HERE / "many_images.css").read_text(encoding="utf-8"),
        apply_default_css=False,
        js_on_load=(_HERE / "many_images.js").read_text(encoding="utf-8"),
        min_height=80,
    )
    # Not preprocessed: Gradio would leave an empty file per image, and lose the original names.
    running = button.click(
        classify, [files, force], answers, preprocess=False, api_visibility="private", **ONE_QUEUE
    )
    # Other files remove the table and cancel a running classification.
    files.change(None, None, answers, js="() => ''", cancels=running, **AT_ONCE)


def classify_images(
    classifier: PneumoniaClassifier,
    read: Callable[[str | bytes], Image.Image],
    images: list[ImageSource],
    thumbnails: bool = True,
    force: bool = False,
) -> Iterator[list[ImageRow]]:
    """Yield the rows of the images in order, in batches of BATCH. At most one full-size image is in memory.

    After MANY_IMAGES_SECONDS the remaining images are UNREADABLE with the reason TOO_LONG.

    Args:
        classifier: called once per batch.
        read: as `data.images.read_image`.
        images: from `uploads.images_of`.
        thumbnails: whether rows have thumbnails.
        force: classify refused images too.
    """
    end = monotonic() + MANY_IMAGES_SECONDS
    with ImageReader() as reader:

        def decoded(
            batch: list[ImageSource], problems: dict[int, str], small: dict[int, str]
        ) -> Iterator[Image.Image]:
            for number, source in enumerate(batch):
                if monotonic() > end:
                    problems[number] = TOO_LONG
                    continue
                try:
                    image = read(reader.read(source))
                except UnreadableImage as error:
                    problems[number] = str(error)
                except OSError as error:
                    problems[number] = error_reason(error)
                else:
                    small[number] = thumbnail_uri(image, _THUMBNAIL) if thumbnails else ""
                    yield image

        for start in range(0, len(images), BATCH):
            batch, problems, small = images[start : start + BATCH], {}, {}
            # A generator: the classifier keeps only the network's input of each image.
            predictions = iter(classifier(decoded(batch, problems, small), batch_size=BATCH, force=force))
            yield [
                ImageRow(image.name, UNREADABLE, None, None, classifier.threshold, problems[number])
                if number in problems
                else row_of(image.name, next(predictions), small[number])
                for number, image in enumerate(batch)
            ]


def row_of(file: str, prediction: Prediction, thumbnail: str = "") -> ImageRow:
    """Return the row of a readable image, without a probability if it is refused."""
    refused = prediction.decision in REFUSED
    label, probability = (None, None) if refused else (prediction.label, prediction.probability)
    return ImageRow(
        file, prediction.decision, label, probability, prediction.threshold, prediction.reason, thumbnail
    )


def confidence(row: ImageRow) -> float | None:
    """Return the calibrated probability of the decision's class; None for other decisions."""
    return {PNEUMONIA: row.probability, NORMAL: 1 - (row.probability or 0)}.get(row.decision)


def count_rows(rows: Iterable[ImageRow]) -> dict[str, int]:
    """Return the number of images of every decision, zeros included."""
    counts = Counter(row.decision for row in rows)
    return {decision: counts[decision] for decision in (*DECISIONS, UNREADABLE)}


def summary(rows: list[ImageRow]) -> str:
    """Return the counts as a sentence: both classes always, other decisions if they occur."""
    counts = count_rows(rows).items()
    named = [f"{count} {decision}" for decision, count in counts if count or decision in (PNEUMONIA, NORMAL)]
    return f"{len(rows)} image{'s' if len(rows) != 1 else ''}: {', '.join(named)}."


def csv_text(rows: list[ImageRow]) -> str:
    """Return CSV with a header and a line per image, probabilities in full precision.

    A name or reason that a spreadsheet would read as a formula is prefixed with an apostrophe.
    """
    file = io.StringIO()
    writer = csv.writer(file)  # with line ends as in RFC 4180, so that a lone "\r" in a cell is quoted
    writer.writerow(COLUMNS)
    for row in rows:
        cells = [getattr(row, column) for column in COLUMNS]
        # No number is negative here: only text can start like a formula.
        writer.writerow(f"'{cell}" if str(cell).startswith(_FORMULA) else cell for cell in cells)
    return file.getvalue()


def table(rows: list[ImageRow]) -> str:
    """Return HTML of the counts, a link with the CSV file as its data, and a row per image; names escaped."""
    link = (
        '<a class="csv" download="images.csv" href="data:text/csv;charset=utf-8;base64,'
        f'{base64.b64encode(csv_text(rows).encode()).decode()}">Download as CSV</a>'
    )
    heads = "".join(
        f'<th scope="col" aria-sort="none" data-kind="{kind}" data-first="{first}">'
        f'<button type="button">{head} <span class="arrow" aria-hidden="true"></span></button></th>'
        for head, kind, first in (
            ("File", "text", "ascending"),
            ("Result", "number", "ascending"),
            ("Probability of pneumonia", "number", "descending"),
        )
    )
    return (
        f'<div class="images"><div class="summary"><p role="status">{escape(summary(rows))}</p>{link}</div>'
        '<div class="frame" role="region" aria-label="Results" tabindex="0"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(map(_line, rows))}</tbody></table></div></div>"
    )


def _line(row: ImageRow) -> str:
    thumbnail = f'<img src="{row.thumbnail}" alt="" width="48" height="48">' if row.thumbnail else ""
    reason = f'<span class="reason">{escape(row.reason)}</span>' if row.reason else ""
    probability, shown = "", ""
    if row.probability is not None:
        probability, shown = row.probability, escape(percent(row.probability))
    return (
        f'<tr><th scope="row" data-key="{escape(row.file)}"><div class="image">'
        f'<div class="thumbnail">{thumbnail}</div>'
        f"<div>{escape(row.file)}</div></div></th>"
        f'<td data-key="{list(WORDS).index(row.decision)}">'
        f'<span class="decision {row.decision.replace(" ", "-")}">'
        f"{shape(row.decision)}&nbsp;{WORDS[row.decision]}</span>{reason}</td>"
        f'<td class="number" data-key="{probability}">{shown}</td></tr>'
    )


def _notice(text: str) -> str:
    return f'<p role="alert">{escape(text)}</p>'
