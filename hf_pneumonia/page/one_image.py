"""The tab "One image": its inputs, examples, answer and operating point."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
from PIL import Image

from hf_pneumonia.data.phantom import simulate_patient
from hf_pneumonia.errors import UnreadableImage, UsageError
from hf_pneumonia.inference.classifier import REFUSED, PneumoniaClassifier
from hf_pneumonia.modeling.saved import EXAMPLES, LARGEST_EXAMPLE, MOST_EXAMPLES, evidence_folder
from hf_pneumonia.page.answer import (
    answer_html,
    answer_panel,
    percent,
    prediction_line,
    thumbnail_uri,
    viewer,
    viewer_value,
)
from hf_pneumonia.page.trade_off import (
    USUAL_PREVALENCE,
    Setting,
    band_at,
    in_words,
    own_setting,
    setting_html,
    settings_of,
    worth_html,
)
from hf_pneumonia.page.uploads import errors_told, uploaded

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


_WAYS_IN = "JPEG, PNG of 8 or 16 bits, TIFF, DICOM. A copied picture can be pasted anywhere here (Ctrl+V)."

# Events that need no turn in the queue, and none of which is for programs: /predict is.
_AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

_ZIP = b"PK\3\4"  # a zip file begins so


def look_at(
    classifier: PneumoniaClassifier, image: Image.Image, name: str, heat_map: bool, note: str = ""
) -> tuple[dict[str, Any], Any]:
    """Classify an image for `card_html` and the viewer.

    Args:
        image: of mode 'L'.
        name: its name for the person.
        heat_map: whether the network can give one.
        note: to stand with the answer.

    Returns:
        The answer for `card_html` as plain values, since the browser keeps it, and the viewer's value.
    """
    prediction = classifier(image, heat_map=heat_map)
    refused = prediction.decision if prediction.decision in REFUSED else ""
    said = {
        "name": name, "note": note, "probability": prediction.probability, "refused": refused,
        "reason": prediction.reason,
    }  # fmt: skip
    if refused:
        return said, viewer_value(image, None, f"Without a heat map: {refused}.")
    return said, viewer_value(image, prediction.heat_map)


def card_html(
    classifier: PneumoniaClassifier, said: dict[str, Any] | None, threshold: float, force: bool = False
) -> str:
    """Return the content of `answer_panel`.

    Args:
        said: of `look_at`; {"problem": ...}, with the image's "name" if it has one, where there is no answer;
            None before any image.
        threshold: of the setting.
        force: give an answer also for a refused image, with the reason as a warning.
    """
    if not said:
        return ""
    name = said.get("name", "")
    lines = [name and f"Image: {name}"]
    if "problem" in said:
        return f"<p>{escape(said['problem'])}</p>" + _quiet(lines)
    probability = said["probability"]
    lines.append(said["note"])
    decision = _decision(classifier, said, threshold, force)
    if decision not in REFUSED and threshold != classifier.threshold:
        lines.append(
            f"The operating point is moved to {in_words(threshold)}; the model's own is "
            f"{in_words(classifier.threshold)}."
        )
    band = band_at(classifier, threshold)
    return answer_html(probability, threshold, band, decision, said["reason"]) + _quiet(lines)


def short_html(
    classifier: PneumoniaClassifier, said: dict[str, Any] | None, threshold: float, force: bool = False
) -> str:
    """Return the answer in one line, for under the slider where a phone has no room for the card beside it.

    Args:
        said, threshold, force: as for `card_html`.
    """
    if not said or "problem" in said:
        return ""
    probability = said["probability"]
    decision = _decision(classifier, said, threshold, force)
    line = prediction_line(decision, probability).partition(" (")[0].removeprefix("Prediction: ")
    of_it = "" if decision in REFUSED else f" (probability of pneumonia: {percent(probability)})"
    return f"<p>{escape(f'This image: {line}{of_it}')}</p>"


def read_upload(read: Callable[[str], Image.Image], path: str) -> Image.Image:
    """Read an uploaded image.

    Raises:
        UnreadableImage: by `read`; or it is a zip file, and those are read by another tab.
    """
    with open(path, "rb") as file:
        if file.read(len(_ZIP)) == _ZIP:
            raise UnreadableImage('a zip file: the tab "Many images" reads it')
    return read(path)


def one_image_tab(
    classifier: PneumoniaClassifier, read: Callable[[str], Image.Image], examples: Sequence[Example] = ()
) -> None:
    """Add the tab's parts to the open gr.Blocks or gr.Tab. Arguments as `build_page`."""
    settings = settings_of(classifier)
    own = own_setting(settings, classifier.threshold)
    heat_map = classifier.makes_heat_maps()

    def answer(choice: Any, name: str, note: str, image: Callable[[], Image.Image]) -> dict[str, Any]:
        try:
            said, view = look_at(classifier, image(), name, heat_map, note)
        except UnreadableImage as error:
            said, view = {"problem": f"This file can't be read as an image: {error}", "name": name}, None
        except UsageError as error:
            said, view = {"problem": f"The model gave no answer: {error}", "name": name}, None
        return {"choice": choice, "said": said, "view": view}

    @errors_told()
    def from_file(file: Any, choice: Any) -> dict[str, Any] | None:
        if not file:  # another choice has been made since
            return None
        upload = uploaded(file)
        return answer(choice, upload.name, "", lambda: read_upload(read, upload.path))

    @errors_told()
    def from_example(event: gr.EventData) -> dict[str, Any]:
        number = getattr(event, "number", None)
        if not isinstance(number, int) or not 0 <= number < len(examples):
            raise UsageError("from-example", "there is no such example")
        example, choice = examples[number], getattr(event, "choice", None)
        return answer(choice, example.caption, example.note, lambda: example.image)

    @errors_told()
    def move(
        index: float, percent: float | None, said: dict | None, force: bool = False
    ) -> tuple[str, str, str, str]:
        index = int(index)
        threshold = settings[index].threshold if settings else classifier.threshold
        return (
            card_html(classifier, said, threshold, force),
            short_html(classifier, said, threshold, force),
            setting_html(classifier, settings, index),
            worth_html(classifier, settings, index, percent),
        )

    fresh = move(own, USUAL_PREVALENCE, None)
    parts = _parts(settings, own, examples, *fresh[2:])
    said, view, answered, card, short = parts.said, parts.view, parts.answered, parts.card, parts.short
    moved = [card, short, parts.of_setting, parts.worth]
    setting = [parts.slider, parts.prevalence, said, parts.force]

    def then_check(done: Any) -> None:
        """Meanwhile the image may be gone; its answer goes too."""
        done.then(None, said, [card, short], js="(said) => said ? [] : ['', '']", **_AT_ONCE)

    # Each choice is scored, and the browser knows whether its answer is still awaited.
    scoring = {"show_progress_on": [card], "trigger_mode": "multiple", "api_visibility": "private"}
    number = "(file) => window.oneImage.file(file)"
    # Not preprocessed, which would lose the image's own name.
    chosen = [parts.file, parts.choice]
    of_file = parts.file.upload(from_file, chosen, answered, preprocess=False, js=number, **scoring)
    for done in (of_file, parts.gallery.select(from_example, None, answered, **scoring)):
        # The field is emptied: the next image can be dropped where this one was.
        show = "(answer) => window.oneImage.show(answer)"
        shown = done.then(None, answered, [said, view, parts.file], js=show, **_AT_ONCE)
        # By where the slider is now, and not where it was when the image was sent.
        then_check(shown.then(move, setting, moved, **_AT_ONCE))
        fail = "() => window.oneImage.fail('No answer came. Try again.')"
        done.failure(None, None, [said, card, parts.file], js=fail, **_AT_ONCE)
    # With a new choice the last image goes, though the new one may never come.
    empty = "() => [null, null, '', '', null]"
    parts.gallery.input(None, None, [said, view, card, short, answered], js=empty, **_AT_ONCE)
    everything = [parts.slider, parts.prevalence, parts.force, parts.file, said, view, answered, *moved]
    as_new = json.dumps([own, USUAL_PREVALENCE, False, None, None, None, None, *fresh])
    clear = f"() => {{ window.oneImage.clear(); return {as_new}; }}"
    parts.clear.click(None, None, everything, js=clear, **_AT_ONCE)
    sliding = {"trigger_mode": "always_last", **_AT_ONCE}
    then_check(
        gr.on(
            [parts.slider.input, parts.prevalence.input, parts.force.input], move, setting, moved, **sliding
        )
    )

    def go_back(percent: float | None, said: dict | None, force: bool) -> tuple:
        return own, *move(own, percent, said, force)

    then_check(parts.back.click(go_back, setting[1:], [parts.slider, *moved], **_AT_ONCE))


def _parts(
    settings: list[Setting], own: int, examples: Sequence[Example], of_setting: str, worth: str
) -> SimpleNamespace:
    """The tab's components in their places."""
    parts = SimpleNamespace()
    with gr.Row(elem_id="one-image"):
        with gr.Column(elem_id="image-input"):
            parts.file = gr.File(label="Chest X-ray", file_count="single", height=132, elem_id="image-file")
            _html(f'<p class="quiet">{_WAYS_IN}</p>')
            parts.gallery = _html(
                gallery_html(examples),
                js_on_load=Path(__file__).with_name("one_image.js").read_text(encoding="utf-8"),
                elem_id="image-examples",
                points=[f"Operating point {in_words(setting.threshold)}" for setting in settings],
            )
            parts.clear = gr.Button("Clear", size="sm", elem_id="image-clear")
        with gr.Column(elem_id="image-answer"):
            parts.said, parts.choice = (gr.JSON(visible=False) for _ in range(2))
            parts.answered = gr.HTML(visible=False)  # of gr.JSON Gradio does not serve the files
            parts.card = answer_panel()
            parts.force = gr.Checkbox(
                label="Answer also for an image that is refused, with a warning", elem_id="image-force"
            )
            parts.view = viewer()
        with gr.Column(elem_id="image-trade-off"):
            movable = len(settings) > 1
            _html("<h2>Sensitivity against specificity</h2>")
            parts.slider = gr.Slider(
                0,
                max(len(settings) - 1, 1),
                value=own,
                step=1,
                label="Operating point: sensitive to specific",
                visible=movable,
                buttons=[],
                elem_id="image-setting",
            )
            _html(
                '<div class="ends" aria-hidden="true"><span>finds more</span><span>clears more</span></div>',
                visible=movable,
            )
            # The region has to be there before its content for a screen reader to notice it.
            live = '<div aria-live="polite">${value || ""}</div>'
            parts.short = _html("", html_template=live, visible=movable, elem_id="image-short")
            parts.of_setting = _html(of_setting, elem_id="image-found")
            parts.back = gr.Button(
                "Back to the model's operating point", size="sm", visible=movable, elem_id="image-back"
            )
            parts.prevalence = gr.Number(
                USUAL_PREVALENCE,
                label="Prevalence where you are, in percent of images",
                step=1,
                visible=bool(settings),
                elem_id="image-prevalence",
            )
            parts.worth = _html(worth, elem_id="image-worth")
    return parts


def _html(value: str, **options: Any) -> gr.HTML:
    return gr.HTML(value, apply_default_css=False, **options)


def _decision(classifier: PneumoniaClassifier, said: dict[str, Any], threshold: float, force: bool) -> str:
    if said.get("refused") and not force:
        return said["refused"]
    return classifier.decide(said["probability"], None if threshold == classifier.threshold else threshold)


def _quiet(lines: Sequence[str]) -> str:
    return "".join(f'<p class="answer-quiet">{escape(line)}</p>' for line in lines if line)
